"""What maximum cosines look like when nothing is shared: the exact law for random directions."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincinv, betaln

from sparse_dict.analysis.measures import Floats

GRID = 4001  # points on [-1, 1]; densities of means of maxima are convolved on it


def cosine_cdf(t: ArrayLike, d: int) -> Floats:
    """P(cosine <= t) of a fixed direction and a uniformly random one in `d` dimensions.

    (1 + cosine) / 2 follows Beta((d - 1) / 2, (d - 1) / 2).
    """
    a = (d - 1) / 2
    return np.asarray(betainc(a, a, np.clip((1 + np.asarray(t, dtype=float)) / 2, 0, 1)))


def max_cdf(t: ArrayLike, d: int, m: int) -> Floats:
    """P(largest of the cosines with `m` independent random directions <= t) = F(t)^m."""
    return np.asarray(cosine_cdf(t, d) ** m)


def max_quantile(p: float, d: int, m: int) -> float:
    """The value that this maximum exceeds with probability 1 - p: F^-1(p^(1/m))."""
    a = (d - 1) / 2
    return float(2 * betaincinv(a, a, p ** (1 / m)) - 1)


def max_pdf(t: ArrayLike, d: int, m: int) -> Floats:
    """Its density m F^(m-1) f, where f(t) is (1 - t^2)^((d - 3) / 2) / B(1/2, (d - 1) / 2)."""
    inside = np.clip(1 - np.asarray(t, dtype=float) ** 2, 1e-300, None)
    density = np.exp((d - 3) / 2 * np.log(inside) - betaln(0.5, (d - 1) / 2))
    return np.asarray(m * cosine_cdf(t, d) ** (m - 1) * density)


@lru_cache(maxsize=4096)
def max_mean(d: int, m: int) -> float:
    """Expected maximum: the integral of 1 - F^m over [-1, 1], less one.

    F^m climbs from 0 to 1 within a few hundredths, so Gauss-Legendre runs on 64 short pieces.
    """
    nodes, weights = np.polynomial.legendre.leggauss(16)
    edges = np.linspace(-1, 1, 65)
    half = (edges[1] - edges[0]) / 2
    t = ((edges[:-1] + half)[:, None] + half * nodes).ravel()
    return float(1 - half * np.tile(weights, 64) @ max_cdf(t, d, m))


def mean_mcs(d: int, sizes: Sequence[int]) -> float:
    """Expected MCS of a random direction against dictionaries of these sizes, averaged over them.

    This is the random expectation of MMCS-with-larger; ``nan`` without a size.
    """
    return float(np.mean([max_mean(d, m) for m in sizes])) if sizes else float("nan")


@lru_cache(maxsize=256)
def _density(d: int, sizes: tuple[int, ...]) -> tuple[Floats, Floats]:
    t = np.linspace(-1, 1, GRID)
    step = t[1] - t[0]
    density = max_pdf(t, d, sizes[0])
    for m in sizes[1:]:  # the sum of k maxima lives on [-k, k], on the same step
        density = np.convolve(density, max_pdf(t, d, m)) * step
    k = len(sizes)
    return np.linspace(-1, 1, len(density)), density * k


def mcs_pdf(t: Floats, d: int, sizes: Sequence[int]) -> Floats:
    """Density of the MCS of a random direction, averaged over random dictionaries of `sizes`.

    Exact for one size; for several the cosines of a given direction are independent, so the
    densities are convolved (on a grid of step 0.0005).
    """
    if len(sizes) == 1:
        return max_pdf(t, d, sizes[0])
    grid, density = _density(d, tuple(sizes))
    return np.interp(t, grid, density)


def mcs_cdf(t: Floats, d: int, sizes: Sequence[int]) -> Floats:
    """The distribution function that belongs to `mcs_pdf`."""
    if len(sizes) == 1:
        return max_cdf(t, d, sizes[0])
    grid, density = _density(d, tuple(sizes))
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(t, grid, area / area[-1])


def unit_vectors(n: int, d: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Uniformly random directions, shape (n, d), float32."""
    vectors = rng.standard_normal((n, d), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
