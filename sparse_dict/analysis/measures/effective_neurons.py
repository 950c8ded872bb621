"""Over how many neurons a direction is spread: effective neurons (the inverse Simpson index)."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Floats


def shares(rows: Floats) -> Floats:
    """Each neuron's share |w| / sum |w| of each row (n, d), float64; zero rows give ``nan``."""
    sizes = np.abs(rows.astype(np.float64))
    totals = sizes.sum(axis=1, keepdims=True)
    return sizes / np.where(totals > 0, totals, np.nan)


def simpson_neurons(rows: Floats) -> Floats:
    """Effective neurons 1 / sum p^2 of each row, in [1, d] (inverse Simpson index), shape (n,)."""
    return np.asarray(1 / (shares(rows) ** 2).sum(axis=1))


def entropy(rows: Floats) -> Floats:
    """Shannon entropy -sum p ln p of each row in nats, in [0, ln d], shape (n,)."""
    p = shares(rows)
    return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=1))


def random_simpson(d: int) -> float:
    """Exact expectation of `simpson_neurons` for a random direction: 1 + (d - 1) 2 / pi.

    1 / sum p^2 = S^2 / R^2 with S = sum |w| and R^2 = sum w^2. For Gaussian w the direction, hence
    S^2 / R^2, is independent of R^2, so E[S^2 / R^2] = E[S^2] / E[R^2]; E|w_i| = sqrt(2 / pi)
    gives E[S^2] = d + d (d - 1) 2 / pi, and E[R^2] = d. That is 81.85 at d = 128.
    """
    return 1 + (d - 1) * 2 / np.pi


@lru_cache(maxsize=8)
def random_spread(d: int, samples: int = 20_000) -> tuple[float, float]:
    """Simulated for random directions: sd of `simpson_neurons`, and mean `entropy` in nats.

    Neither has a closed form as short as the mean; the seed is fixed.
    """
    rows = np.random.default_rng(0).standard_normal((samples, d))
    return float(simpson_neurons(rows).std()), float(entropy(rows).mean())


def outliers(values: Floats, reach: float = 3.0) -> NDArray[np.int64]:
    """Positions beyond Tukey's outer fences (quartiles -+ `reach` interquartile ranges).

    Most extreme first; ``nan`` values are never outliers.
    """
    known = values[np.isfinite(values)]
    if len(known) < 4:
        return np.array([], dtype=np.int64)
    low, middle, high = np.percentile(known, [25, 50, 75])
    fence = reach * (high - low)
    out = np.flatnonzero((values < low - fence) | (values > high + fence))
    return out[np.argsort(-np.abs(values[out] - middle), kind="stable")]
