"""A uniformly random order of more rows than fit in memory, known a piece at a time."""

import numpy as np
from numpy.typing import NDArray

CARDS = 1 << 16  # dealt at once


class Shuffle:
    """Assigns a shard to each of `rows` rows, and an order to the rows of each shard.

    Row i gets the i-th card of a shuffled deck that names each shard as often as it has places; the
    deck is dealt in pieces of `cards`: how many of each shard are among them (multivariate
    hypergeometric), then in which order. So each of the rows! permutations is as likely as any
    other, and it follows from the arguments alone: processes that deal to rows of their own agree.

    Attributes:
        sizes: rows of each shard, int64 (n_shards,).
    """

    def __init__(self, rows: int, shard_rows: int, seed: int, cards: int = CARDS) -> None:
        full, rest = divmod(rows, shard_rows)
        self.rows = rows
        self.sizes = np.array([shard_rows] * full + [rest] * (rest > 0), np.int64)
        self._seed = seed
        self._cards = cards
        self._free = self.sizes.copy()  # places left in each shard behind the last dealt piece
        self._counts = np.random.Generator(np.random.Philox([seed, 0]))
        self._dealt = 0  # pieces
        self._piece = np.empty(0, np.int64)  # the last one's cards

    def deal(self, start: int, stop: int) -> NDArray[np.int64]:
        """Shards of rows start..stop-1, (stop - start,); no call may begin before the last one."""
        parts = []
        while start < stop:
            number = start // self._cards
            while self._dealt <= number:
                self._deal_piece()
            first = number * self._cards
            parts.append(self._piece[start - first : stop - first])
            start = min(stop, first + self._cards)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def order(self, shard: int) -> NDArray[np.int64]:
        """The order in which a shard holds the rows dealt to it, (sizes[shard],)."""
        rng = np.random.Generator(np.random.Philox([self._seed, 2, shard]))
        return rng.permutation(int(self.sizes[shard]))

    def _deal_piece(self) -> None:
        n = min(self._cards, self.rows - self._dealt * self._cards)
        counts = self._counts.multivariate_hypergeometric(self._free, n)
        self._free -= counts
        rng = np.random.Generator(np.random.Philox([self._seed, 1, self._dealt]))
        self._piece = rng.permutation(np.repeat(np.arange(len(counts)), counts))
        self._dealt += 1
