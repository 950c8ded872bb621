"""Is a histogram of MCS one hump or two?

Hartigan's dip test, a two-component Gaussian fit, and the mass above the random-direction curve.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from diptest import dipstat
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

DIP_SIMULATIONS = 999
LARGEST_SIMULATED = 2048


@lru_cache(maxsize=64)
def _uniform_dips(n: int) -> Floats:
    rng = np.random.default_rng(n)
    return np.array([dipstat(rng.random(n)) for _ in range(DIP_SIMULATIONS)])


def dip_test(values: Floats) -> tuple[float, float]:
    """The dip and its p-value: how often a uniform sample of the same size has as large a dip.

    The dip is the smallest sup-distance between the sample and a unimodal distribution (J. A.
    Hartigan and P. M. Hartigan, The dip test of unimodality, Annals of Statistics 13, 1985), and
    the uniform is the least favourable unimodal law. The smallest p-value that 999 simulations can
    give is 0.001; their seed depends on the sample size alone. The dip shrinks as 1 / sqrt(n), so
    for more than 2,048 values the simulations of 2,048 are rescaled. (nan, nan) without values.
    """
    n = len(values)
    if n == 0:
        return float("nan"), float("nan")
    dip = float(dipstat(values.astype(np.float64)))
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
