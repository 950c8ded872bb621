"""Is a histogram of MCS one hump or two?

Hartigan's dip test, a two-component Gaussian fit, and the mass above the random-direction curve.
"""

import warnings
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from diptest import dipstat

from sparse_dict.analysis.measures import Floats

DIP_SIMULATIONS = 999
LARGEST_SIMULATED = 2048
P, APART = 0.01, 2  # of the dip test, below which, and Ashman's D, above which humps are two


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


def fit_mixture(values: Floats, floor: float = 0.005) -> dict[str, float]:
    """The likeliest of several fits of two Gaussians; empty for fewer than 8 values.

    `separation` is Ashman's D, |m1 - m2| sqrt(2 / (s1^2 + s2^2)): above 2 the humps are distinct.
    `BIC gain` is the BIC of one Gaussian less that of two: positive favours two. `floor` keeps a
    spike's standard deviation away from zero; it is about half a histogram's bin.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x = values.astype(np.float64)
    if len(x) < 8 or x.min() == x.max():
        return {}
    one = GaussianMixture(1, reg_covar=floor**2).fit(x[:, None])
    fits = []
    for split in (*np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9]), (x.min() + x.max()) / 2):
        parts = x[x <= split], x[x > split]
        if all(map(len, parts)):  # from which the fit begins
            fit = GaussianMixture(
                2, reg_covar=floor**2, tol=1e-7, max_iter=300,
                weights_init=[len(part) / len(x) for part in parts],
                means_init=[[part.mean()] for part in parts],
                precisions_init=[[[1 / (part.var() + floor**2)]] for part in parts],
            )  # fmt: skip
            with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
                fits.append(fit.fit(x[:, None]))
    best = max(fits, key=lambda fit: float(fit.score(x[:, None])))
    means, order = best.means_.ravel(), np.argsort(best.means_.ravel())
    low, high = means[order]
    spread = np.square(np.sqrt(best.covariances_.ravel()[order])).sum()
    return {
        "lower hump": float(low),
        "upper hump": float(high),
        "upper weight": float(best.weights_[order[1]]),
        "separation": float((high - low) * np.sqrt(2 / spread)),
        "BIC gain": float(one.bic(x[:, None]) - best.bic(x[:, None])),
    }


def are_two(found: Mapping[str, float]) -> bool:
    """Whether the dip test rejects one hump, two Gaussians fit better, and they lie apart."""
    apart = found.get("BIC gain", 0) > 0 and found["separation"] > APART
    return apart and found["p"] < P


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
