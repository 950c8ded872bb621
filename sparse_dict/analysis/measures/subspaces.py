"""How much two subspaces have in common, and what random ones have."""

import numpy as np
from numpy.typing import NDArray


def overlap(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean squared cosine of the principal angles between the spans of rows (n, d) and (m, d)."""
    bases = [np.linalg.qr(rows.T)[0] for rows in (one, other)]
    return float(np.square(bases[0].T @ bases[1]).sum() / min(len(one), len(other)))


def random_overlap(n: int, m: int, d: int) -> tuple[float, float]:
    """Mean and variance of `overlap` for uniformly random subspaces of dimensions n and m of d.

    The trace of the product of a fixed projector of rank n and a uniformly random one of rank m has
    mean n m / d and variance 2 n m (d - n)(d - m) / (d^2 (d - 1)(d + 2)), by the second moments of
    the orthogonal group (Collins and Śniady 2006); of two lines it is Beta(1/2, (d - 1) / 2).
    """
    most, least = max(n, m), max(min(n, m), 1)
    variance = 2 * n * m * (d - n) * (d - m) / (d**2 * (d - 1) * (d + 2))
    return most / d, variance / least**2
