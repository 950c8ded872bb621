"""Maps from the activations of one model or layer to those of another, on the same tokens.

And how much two subspaces have in common.
"""

import numpy as np

from sparse_dict.analysis.measures import Floats
from sparse_dict.analysis.measures.mcs import assign


def fit(first: Floats, second: Floats) -> dict[str, tuple[Floats, float]]:
    """Identity, permutation and rotation, as far as the widths allow: maps, and what they explain.

    A row of the first space times a map (d, e) is one of the second; lengths do not count. The
    first half of the rows is fitted to; on the second one the share of the second space's variance
    is taken that a map explains. Each map may scale all directions alike; a permutation is the
    one-to-one matching of largest sum of correlations (Li et al. 2015, arXiv 1511.07543), a
    rotation the solution of the orthogonal Procrustes problem (Schoenemann 1966), which with
    unequal widths keeps what fits into the smaller one.
    Rows (n, d) and (n, e) are of the same tokens.
    """
    half = len(first) // 2
    means = first[:half].mean(0, dtype=np.float64), second[:half].mean(0, dtype=np.float64)
    x, y = first - means[0], second - means[1]
    cross = x[:half].T @ y[:half]  # (d, e)
    u, _, vt = np.linalg.svd(cross, full_matrices=False)
    maps = {"rotation": u @ vt}
    if cross.shape[0] == cross.shape[1]:
        spread = [np.sqrt(np.square(part[:half]).sum(0)) for part in (x, y)]
        partners, _ = assign(cross / np.maximum(np.outer(*spread), 1e-30))
        eye = np.eye(len(cross))
        maps = {"identity": eye, "permutation": eye[partners], **maps}
    found, held_out = {}, y[half:]
    for name, matrix in maps.items():
        mapped = x @ matrix
        square = max(float(np.square(mapped[:half]).sum()), 1e-30)
        scale = float((mapped[:half] * y[:half]).sum() / square)  # that suits the fitted rows
        error = np.square(held_out - scale * mapped[half:]).sum()
        found[name] = matrix, float(1 - error / max(float(np.square(held_out).sum()), 1e-30))
    return found


def overlap(one: Floats, other: Floats) -> float:
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
