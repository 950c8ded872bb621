"""Is a histogram of MCS one hump or two?

Hartigan's dip test, a two-component Gaussian fit, and the mass above the random-direction curve.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Floats = NDArray[np.floating[Any]]

DIP_SIMULATIONS = 999
LARGEST_SIMULATED = 2048


def _hull(x: Floats, y: Floats, increasing: bool) -> tuple[NDArray[np.int64], Floats]:
    """Greatest convex minorant (slopes increasing) or least concave majorant of points (x, y).

    Gives the positions of its knots and its height at every x. Its slopes are the isotonic
    regression of the slopes between neighbours, weighted by their distance.
    """
    if len(x) == 1:
        return np.array([0]), y
    width = np.diff(x)
    fit = isotonic_regression(np.diff(y) / width, weights=width, increasing=increasing)
    knots = np.asarray(fit.blocks, dtype=np.int64)
    return knots, np.interp(x, x[knots], y[knots])


def dip_statistic(values: Floats) -> float:
    """Hartigan's dip: the smallest sup-distance between the sample and a unimodal distribution.

    Between 1 / (2 n) and 1/4; ``nan`` for an empty sample. Steps (i) to (vii) of J. A. Hartigan
    and P. M. Hartigan, The dip test of unimodality, Annals of Statistics 13 (1985). In counts: the
    convex minorant runs along the distribution just left of each value (`before`), the concave
    majorant along that at each value (`after`).
    """
    n = len(values)
    if n == 0:
        return float("nan")
    x, counts = np.unique(values.astype(np.float64), return_counts=True)
    after = np.cumsum(counts).astype(np.float64)
    before = after - counts
    low, high = 0, len(x) - 1
    dip = 1.0
    while low < high:
        inside = slice(low, high + 1)
        convex, bottom = _hull(x[inside], before[inside], increasing=True)
        concave, top = _hull(x[inside], after[inside], increasing=False)
        # The largest gap between the two lies at a knot of one of them; the modal interval then
        # runs from that knot to the neighbouring knot of the other.
        gap = top - bottom
        g, c = convex[np.argmax(gap[convex])], concave[np.argmax(gap[concave])]
        if gap[g] > gap[c]:
            new_low, new_high = g, concave[np.searchsorted(concave, g)]
        else:
            new_low, new_high = convex[np.searchsorted(convex, c, side="right") - 1], c
        largest = max(gap[g], gap[c])
        if largest <= dip:
            break
        # An atom at either end of the modal interval is allowed, hence the open ends.
        above = after[inside][:new_low] - bottom[:new_low]
        below = top[new_high + 1 :] - before[inside][new_high + 1 :]
        dip = max(dip, above.max(initial=0.0), below.max(initial=0.0))
        if largest <= dip or (new_low == 0 and new_high == high - low):
            break
        low, high = low + int(new_low), low + int(new_high)
    return float(dip) / (2 * n)


@lru_cache(maxsize=64)
def _uniform_dips(n: int) -> Floats:
    rng = np.random.default_rng(n)
    return np.array([dip_statistic(rng.random(n)) for _ in range(DIP_SIMULATIONS)])


def dip_test(values: Floats) -> tuple[float, float]:
    """The dip and its p-value: how often a uniform sample of the same size has as large a dip.

    The uniform is the least favourable unimodal law. The smallest p-value that 999 simulations can
    give is 0.001; their seed depends on the sample size alone. The dip shrinks as 1 / sqrt(n), so
    for more than 2,048 values the simulations of 2,048 are rescaled.
    """
    dip, n = dip_statistic(values), len(values)
    if n == 0:
        return dip, float("nan")
    simulated = min(n, LARGEST_SIMULATED)
    scaled = dip * np.sqrt(n / simulated)
    return dip, (1 + int((_uniform_dips(simulated) >= scaled).sum())) / (1 + DIP_SIMULATIONS)


@dataclass(frozen=True)
class Mixture:
    """Two Gaussian components, the one with the lower mean first, against one Gaussian."""

    weights: tuple[float, float]
    means: tuple[float, float]
    sds: tuple[float, float]
    log_likelihood: float
    bic_gain: float  # BIC of one component less BIC of two: positive favours two

    @property
    def separation(self) -> float:
        """Ashman's D, |m1 - m2| sqrt(2 / (s1^2 + s2^2)); above 2 the humps are distinct."""
        return float(
            (self.means[1] - self.means[0]) * np.sqrt(2 / (self.sds[0] ** 2 + self.sds[1] ** 2))
        )


def _log_normal(x: Floats, mean: Floats, sd: Floats) -> Floats:
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)


def _em(x: Floats, upper: NDArray[np.bool_], floor: float, steps: int = 300) -> Mixture:
    """Expectation-maximisation from a hard split; `floor` keeps a spike's sd away from zero."""
    part = np.stack([~upper, upper], axis=1).astype(np.float64)
    before = -np.inf
    for _ in range(steps):
        mass = part.sum(axis=0) + 1e-12
        mean = (part * x[:, None]).sum(axis=0) / mass
        sd = np.sqrt((part * (x[:, None] - mean) ** 2).sum(axis=0) / mass + floor**2)
        joint = np.log(mass / len(x)) + _log_normal(x[:, None], mean, sd)
        top = joint.max(axis=1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(joint - top).sum(axis=1))
        part = np.exp(joint - total[:, None])
        likelihood = float(total.sum())
        if likelihood - before < 1e-7 * len(x):
            break
        before = likelihood
    one = float(_log_normal(x, x.mean(), np.sqrt(x.var() + floor**2)).sum())
    a, b = np.argsort(mean)
    weight = mass / mass.sum()
    return Mixture(
        (float(weight[a]), float(weight[b])),
        (float(mean[a]), float(mean[b])),
        (float(sd[a]), float(sd[b])),
        likelihood,
        2 * (likelihood - one) - 3 * float(np.log(len(x))),
    )


def fit_mixture(values: Floats, floor: float = 0.005) -> Mixture | None:
    """The likeliest of several two-Gaussian fits; None for fewer than 8 values.

    `floor` is the smallest standard deviation, about the width of one histogram bin.
    """
    x = values.astype(np.float64)
    if len(x) < 8 or x.min() == x.max():
        return None
    splits = [*np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9]), (x.min() + x.max()) / 2]
    fits = [_em(x, x > split, floor) for split in splits if x.min() <= split < x.max()]
    return max(fits, key=lambda fit: fit.log_likelihood)


def shared_excess(values: Floats, random_cdf: Floats) -> float:
    """Share of features that cannot be random: sup over t of F_random(t) - F_observed(t).

    If a share s of the features follows any law H and the rest the random one, then
    F_random - F_observed = s (F_random - H) <= s everywhere: the largest excess is a lower bound
    of s, and close to it where H lies far above the random hump. 0 where nothing exceeds.
    `random_cdf` is F_random at `values`; both have shape (n,).
    """
    if len(values) == 0:
        return float("nan")
    # Just left of the i-th smallest value the observed distribution is i / n.
    excess = np.sort(random_cdf) - np.arange(len(values)) / len(values)
    return max(0.0, float(excess.max()))
