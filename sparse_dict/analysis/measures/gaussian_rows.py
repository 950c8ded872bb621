"""Rows that share nothing but their mean and covariance: a null that is harder to beat than chance.

Decoder rows that lie in few dimensions, or point the same way, come closer to each other than
uniformly random directions do, whatever they are features of.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Floats
from sparse_dict.analysis.measures.mcs import max_cosine, normalised

FEWEST = 2048  # rows that are compared, at least: small dictionaries are drawn several times


@dataclass(frozen=True, eq=False)
class Law:
    """A Gaussian with the mean and the covariance of some rows, and how many there are."""

    n: int
    mean: Floats  # (d,)
    root: Floats  # (r, d): root.T @ root is the covariance

    @classmethod
    def of(cls, rows: Floats) -> "Law":
        """That of `rows` (n, d)."""
        mean = rows.mean(0, dtype=np.float64)
        root = np.linalg.qr(rows - mean, mode="r") / np.sqrt(len(rows))
        return cls(len(rows), mean, root)

    def draw(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """As many rows, of unit norm, (n, d)."""
        return normalised(self.mean + rng.standard_normal((self.n, len(self.root))) @ self.root)


def mcs(law: Law, others: Sequence[Law], block_rows: int, seed: int = 0) -> NDArray[np.float64]:
    """MCS of rows drawn from `law` with rows drawn from each of `others`, averaged over these."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(-(-FEWEST // law.n)):
        rows = law.draw(rng)
        each = [max_cosine(rows, other.draw(rng), block_rows) for other in others]
        found.append(np.mean(each, axis=0, dtype=np.float64))
    return np.concatenate(found)


def mmcs(rows: Floats, others: Floats, block_rows: int = 2048) -> float:
    """The mean of `mcs` between the laws of `rows` (n, d) and of `others` (m, d), of unit norm."""
    one, other = (Law.of(normalised(part)) for part in (rows, others))
    return float(mcs(one, [other], block_rows).mean())
