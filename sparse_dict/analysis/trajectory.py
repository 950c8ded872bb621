"""Agreement with the next size as it grew with the optimiser steps made.

Training keeps decoders on a log schedule (`training.snapshots`); those of a dictionary and of the
next larger one after the same number of rows are compared as finished dictionaries are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.claims import NO_CHAIN
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.mcs import match, max_cosine, normalised
from sparse_dict.analysis.study import Chain, Entry
from sparse_dict.errors import UserError
from sparse_dict.sae import folder as folders

Floats = NDArray[np.floating[Any]]
HALF = (0.4, 0.6)  # of the training: batches do not divide it exactly


@dataclass(frozen=True)
class Followed:
    """The features of one dictionary as it was trained."""

    size: int
    mcs: dict[int, Floats]  # of each feature with the next size, (n,), by rows seen, rising

    @property
    def halves(self) -> Floats:
        """MCS at half and at full training, (n, 2)."""
        half = half_of(self.mcs)
        assert half is not None
        return np.stack([self.mcs[half], self.mcs[max(self.mcs)]], axis=1)


@dataclass(frozen=True)
class Trajectory:
    """Agreement of the main chain, and of those that differ from it in the seed, while trained."""

    # dict_size, next_size, seed, seen, steps, mmcs, random_mmcs, n_above, share_above
    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    followed: dict[int, list[Followed]] = field(default_factory=dict)  # by seed, a size each
    batch_size: int = 1  # rows of an optimiser step
    missing: str | None = None  # why there is nothing to show


def follow(comparison: Comparison) -> Trajectory:
    """Compare the snapshots of the main chain; `missing` says what stands in the way, if anything.

    All features count, since snapshots do not hold which ones fire.
    """
    chain = comparison.main
    if chain is None:
        return Trajectory(missing=NO_CHAIN)
    rows: list[dict[str, Any]] = []
    followed = {}
    try:
        batch_size = _batch_size(chain.entries[0])  # all of a family have the same
        for alike in comparison.same_but_seed(chain):
            followed[alike.seed] = _follow_chain(comparison, alike, rows)
    except UserError as error:
        return Trajectory(missing=str(error))
    points = pd.DataFrame(rows)
    points["steps"] = points["seen"] / batch_size
    return Trajectory(points, followed, batch_size)


def _batch_size(entry: Entry) -> int:
    size = (entry.metrics["config"].get("training") or {}).get("batch_size")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{entry.name}: metrics.json holds no training.batch_size")
    return size


def _follow_chain(
    comparison: Comparison, chain: Chain, rows: list[dict[str, Any]]
) -> list[Followed]:
    """Append the points of a chain to `rows`; its dictionaries but the largest."""
    kept = [_snapshots(entry) for entry in chain.entries]
    threshold, d = comparison.settings.threshold, comparison.study.d_in
    followed = []
    for (entry, own), (larger, others) in pairwise(zip(chain.entries, kept, strict=True)):
        found = {}
        for seen in sorted(own.keys() & others.keys()):
            values = _mcs(comparison, own[seen], others[seen])
            above = values > threshold
            found[seen] = values
            rows.append(
                {
                    "dict_size": entry.size,
                    "next_size": larger.size,
                    "seed": chain.seed,
                    "seen": seen,
                    "mmcs": float(values.mean()),
                    "random_mmcs": random_directions.mean_mcs(d, [larger.size]),
                    "n_above": int(above.sum()),
                    "share_above": float(above.mean()),
                }
            )
        if half_of(found) is None:
            raise UserError(
                f"{entry.name} and the next size have no snapshots at half and at the end of the "
                "training (train with training.snapshots of at least 2)"
            )
        followed.append(Followed(entry.size, found))
    return followed


def _snapshots(entry: Entry) -> dict[int, NDArray[np.float32]]:
    kept = folders.read_snapshots(entry.trained.folder)
    for seen, decoder in kept.items():
        if decoder.shape != entry.decoder.shape:
            raise UserError(f"{entry.name}: the snapshot after {seen} rows has another shape")
    return {seen: normalised(decoder) for seen, decoder in kept.items()}


def half_of(seen: Iterable[int]) -> int | None:
    """Which of the numbers of rows is about half of the last one; None if there is none."""
    rows = list(seen)
    low, high = (share * max(rows, default=0) for share in HALF)
    return next((n for n in rows if low <= n <= high), None)


def _mcs(
    comparison: Comparison, rows: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    if comparison.shown.matching != "max":  # one to one; snapshots have no encoder, so no codes
        return match(rows, others)[1]
    return max_cosine(rows, others, comparison.settings.block_rows)
