"""How close each feature of a dictionary comes to any feature of another one.

Its maximum cosine similarity (MCS) is the largest signed cosine between its decoder row and those
of another dictionary; MMCS is the mean over the *smaller* dictionary.
"""

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Floats
from sparse_dict.errors import UserError
from sparse_dict.machine.background import in_background
from sparse_dict.storage.arrays import Rows, as_rows

# scipy's assignment solver holds its costs in float64: 12 bytes a pair with our float32 cosines.
MAX_PAIRS = 2**28


def normalised(rows: Rows) -> NDArray[np.float32]:
    """Rows divided by their norm, in float64 and rounded once; zero rows stay zero (cosine 0)."""
    rows64 = as_rows(rows, "rows", dtype=np.float64)
    norms = np.linalg.norm(rows64, axis=1, keepdims=True)
    return (rows64 / np.where(norms > 0, norms, 1)).astype(np.float32)


def max_cosine(rows: Rows, others: Rows, block_rows: int = 2048) -> NDArray[np.float32]:
    """Largest cosine of each of `rows` (n, d) with any of `others` (m, d), whatever their norms.

    -inf where `others` is empty.
    """
    rows, others = normalised(rows), normalised(others)
    as_rows(others, "the others", rows.shape[1])
    return nearest(rows, others, block_rows)[1]


def nearest(
    rows: NDArray[np.float32], others: NDArray[np.float32], block_rows: int = 2048
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which of `others` (m, d) has the largest cosine with each of `rows` (n, d), and that cosine.

    Both normalised. Works on tiles of block_rows x block_rows, so memory does not grow with n * m;
    -1 and -inf where `others` is empty.
    """
    which = np.full(len(rows), -1, dtype=np.int64)
    best = np.full(len(rows), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), block_rows):
        part = slice(start, start + block_rows)
        for left in range(0, len(others), block_rows):
            tile = rows[part] @ others[left : left + block_rows].T
            at = tile.argmax(axis=1)
            found = np.take_along_axis(tile, at[:, None], axis=1)[:, 0]
            better = found > best[part]
            which[part] = np.where(better, at + left, which[part])
            best[part] = np.where(better, found, best[part])
    return which, best


def mmcs(smaller: Rows, larger: Rows) -> float:
    """MMCS: the mean over `smaller` (n, d) of each row's largest cosine with a row of `larger`.

    Rows of `larger` (m, d) may serve several rows of `smaller`. nan where `smaller` is empty.
    """
    return float(max_cosine(smaller, larger).mean(dtype=np.float64)) if len(smaller) else np.nan


def match(
    rows: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.int64], Floats]:
    """One-to-one partners with the largest sum of cosines, and the cosines; both normalised.

    `rows` (n, d) must not outnumber `others` (m, d). Memory grows as n * m * 12 bytes.
    """
    if len(rows) * len(others) > MAX_PAIRS:
        raise UserError(
            f"one-to-one matching of {len(rows)} with {len(others)} features needs more than "
            f"{12 * MAX_PAIRS / 2**30:.0f} GiB: use comparison.matching=max"
        )
    return assign(rows @ others.T)


def match_codes(
    codes: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.int64], Floats]:
    """As `match`, by Pearson's correlation of codes, which is 0 where a feature is never active.

    `codes` (rows, n) and `others` (rows, m), n <= m, are of the same rows or of the same tokens.
    """
    centred = ((c - c.mean(0, dtype=np.float64)).T for c in (codes, others))
    return match(*map(normalised, centred))


def assign(similarity: Floats) -> tuple[NDArray[np.int64], Floats]:
    """One-to-one partners with the largest sum of `similarity` (n, m), n <= m, and the values."""
    from scipy.optimize import linear_sum_assignment

    chosen, partners = in_background(lambda: linear_sum_assignment(similarity, maximize=True))
    return partners, similarity[chosen, partners]


def distinct(
    rows: NDArray[np.float32],
    others: NDArray[np.float32],
    threshold: float,
    block_rows: int = 2048,
) -> NDArray[np.bool_]:
    """Which of `rows` (n, d) have a partner of their own above the threshold, shape (n,).

    As many as can have different partners among `others` (m, d) at the same time; both normalised.
    Memory grows as block_rows * m * 4 bytes, and with the pairs above the threshold.
    """
    from scipy.sparse import csr_array, vstack
    from scipy.sparse.csgraph import maximum_bipartite_matching

    blocks = range(0, max(len(rows), 1), block_rows)  # one even of no rows
    near = [csr_array(rows[i : i + block_rows] @ others.T > threshold) for i in blocks]
    return np.asarray(maximum_bipartite_matching(vstack(near, "csr"), perm_type="column") >= 0)
