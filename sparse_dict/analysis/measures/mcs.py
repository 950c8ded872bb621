"""How close each feature of a dictionary comes to any feature of another one: MCS and MMCS.

The maximum cosine similarity (MCS) of a feature is the largest signed cosine between its decoder
row and the decoder rows of another dictionary; MMCS is the mean over the *smaller* dictionary.
With Hungarian matching every feature gets a partner of its own, such that the sum is largest.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.errors import UserError

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

# scipy's assignment solver holds its costs in float64: 12 bytes a pair with our float32 cosines.
MAX_PAIRS = 2**28


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their norm, in float64 and rounded once; zero rows stay zero (cosine 0)."""
    rows64 = rows.astype(np.float64)
    norms = np.linalg.norm(rows64, axis=1, keepdims=True)
    return (rows64 / np.where(norms > 0, norms, 1)).astype(np.float32)


def max_cosine(
    rows: NDArray[np.float32], others: NDArray[np.float32], block_rows: int = 2048
) -> NDArray[np.float32]:
    """Largest cosine of each of `rows` (n, d) with any of `others` (m, d); both normalised.

    Works on tiles of block_rows x block_rows, so memory does not grow with n * m; -inf where
    `others` is empty.
    """
    best = np.full(len(rows), -np.inf, dtype=np.float32)
    for start in range(0, len(rows), block_rows):
        part = rows[start : start + block_rows]
        found = best[start : start + block_rows]  # a view: written in place
        for left in range(0, len(others), block_rows):
            tile = part @ others[left : left + block_rows].T
            np.maximum(found, tile.max(axis=1), out=found)
    return best


def mmcs(smaller: NDArray[np.float32], larger: NDArray[np.float32]) -> float:
    """MMCS: the mean over `smaller` (n, d) of each row's largest cosine with a row of `larger`.

    Rows of `larger` (m, d) may serve several rows of `smaller`, and neither needs unit norm. nan
    where `smaller` is empty.
    """
    if len(smaller) == 0:
        return float("nan")
    return float(max_cosine(normalised(smaller), normalised(larger)).mean(dtype=np.float64))


def match(
    rows: NDArray[np.float32], others: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """One-to-one partners with the largest sum of cosines, and the cosines; both normalised.

    `rows` (n, d) must not outnumber `others` (m, d). Memory grows as n * m * 12 bytes.

    Raises:
        UserError: the pairs would not fit in about 3 GiB.
    """
    from scipy.optimize import linear_sum_assignment

    if len(rows) * len(others) > MAX_PAIRS:
        raise UserError(
            f"one-to-one matching of {len(rows)} with {len(others)} features needs more than "
            f"{12 * MAX_PAIRS / 2**30:.0f} GiB: use comparison.matching=max"
        )
    cosines = rows @ others.T
    chosen, partners = linear_sum_assignment(cosines, maximize=True)
    return partners, cosines[chosen, partners]


class Similarities:
    """MCS between the dictionaries of a study; each pair is compared once and remembered.

    Dictionaries are named by any hashable key that `add` was given.
    """

    def __init__(self, block_rows: int) -> None:
        self.block_rows = block_rows
        self._rows: dict[str, NDArray[np.float32]] = {}
        self._alive: dict[str, Bools] = {}
        self._max: dict[tuple[str, str], tuple[Floats, Floats]] = {}
        self._matched: dict[tuple[str, str, str], Floats] = {}

    def add(self, key: str, decoder: NDArray[np.float32], alive: Bools) -> None:
        """Register a dictionary: decoder rows (n, d) and which features ever fired (n,)."""
        self._rows[key] = normalised(decoder)
        self._alive[key] = alive

    def mcs(self, key: str, other: str, matching: str, features: str) -> Floats:
        """MCS of each feature of `key` with `other`, shape (n,), float32.

        With ``features="alive"`` both sides are restricted to features that fired: the dead ones
        of `key` get ``nan``, and so do all if `other` has no feature that fired, or with Hungarian
        matching fewer than `key`, so that some would stay without a partner.
        """
        if matching == "max":
            either, living = self._both(key, other)
            return either if features == "all" else np.where(self._alive[key], living, np.nan)
        name = (key, other, features)
        if name not in self._matched:
            self._matched[name] = self._match(key, other, features)
        return self._matched[name]

    def mean_mcs(self, key: str, others: Sequence[str], matching: str, features: str) -> Floats:
        """MCS averaged over several other dictionaries, shape (n,); its mean is the mean MMCS."""
        columns = [self.mcs(key, other, matching, features) for other in others]
        return np.mean(columns, axis=0, dtype=np.float64)

    def _both(self, key: str, other: str) -> tuple[Floats, Floats]:
        """Maxima over all features of `other`, and over those that fired (nan if none did)."""
        if (key, other) not in self._max:
            rows, alive = self._rows[other], self._alive[other]
            living = max_cosine(self._rows[key], rows[alive], self.block_rows)
            dead = max_cosine(self._rows[key], rows[~alive], self.block_rows)
            either = np.maximum(living, dead)
            self._max[key, other] = either, np.where(np.isfinite(living), living, np.nan)
        return self._max[key, other]

    def _match(self, key: str, other: str, features: str) -> Floats:
        rows, others = self._rows[key], self._rows[other]
        found = np.full(len(rows), np.nan, dtype=np.float32)
        used = np.full(len(rows), True)
        if features == "alive":
            used, others = self._alive[key], others[self._alive[other]]
        if used.sum() <= len(others):
            found[used] = match(rows[used], others)[1]
        return found
