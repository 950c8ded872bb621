"""Agreement with the next size as it grew with the rows seen.

Training keeps decoders on a log schedule (`training.snapshots`); those of a dictionary and of the
next larger one after the same number of rows are compared as finished dictionaries are.
"""

from collections.abc import Sequence
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
class Trajectory:
    """Agreement of the main chain, and of those that differ from it in the seed, while trained."""

    # dict_size, next_size, seed, seen, mmcs, random_mmcs, n_above, share_above
    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    # by seed and size (n, 2): whether a feature was found again at half and at full training
    halves: dict[int, list[Floats]] = field(default_factory=dict)
    missing: str | None = None  # why there is nothing to show


def follow(comparison: Comparison) -> Trajectory:
    """Compare the snapshots of the main chain; `missing` says what stands in the way, if anything.

    All features count, since snapshots do not hold which ones fire.
    """
    chain = comparison.main
    if chain is None:
        return Trajectory(missing=NO_CHAIN)
    rows: list[dict[str, Any]] = []
    halves = {}
    try:
        for alike in comparison.same_but_seed(chain):
            halves[alike.seed] = _follow_chain(comparison, alike, rows)
    except UserError as error:
        return Trajectory(missing=str(error))
    return Trajectory(pd.DataFrame(rows), halves)


def _follow_chain(comparison: Comparison, chain: Chain, rows: list[dict[str, Any]]) -> list[Floats]:
    """Append the points of a chain to `rows`; whether features were found at half and at full."""
    kept = [_snapshots(entry) for entry in chain.entries]
    threshold, d = comparison.settings.threshold, comparison.study.d_in
    halves = []
    for (entry, own), (larger, others) in pairwise(zip(chain.entries, kept, strict=True)):
        found = {}
        for seen in sorted(own.keys() & others.keys()):
            values = _mcs(comparison, own[seen], others[seen])
            found[seen] = values > threshold
            rows.append(
                {
                    "dict_size": entry.size,
                    "next_size": larger.size,
                    "seed": chain.seed,
                    "seen": seen,
                    "mmcs": float(values.mean()),
                    "random_mmcs": random_directions.mean_mcs(d, [larger.size]),
                    "n_above": int(found[seen].sum()),
                    "share_above": float(found[seen].mean()),
                }
            )
        half = _half(entry, list(found))
        halves.append(np.stack([found[half], found[max(found)]], axis=1).astype(float))
    return halves


def _snapshots(entry: Entry) -> dict[int, NDArray[np.float32]]:
    kept = folders.read_snapshots(entry.trained.folder)
    for seen, decoder in kept.items():
        if decoder.shape != entry.decoder.shape:
            raise UserError(f"{entry.name}: the snapshot after {seen} rows has another shape")
    return {seen: normalised(decoder) for seen, decoder in kept.items()}


def _half(entry: Entry, seen: Sequence[int]) -> int:
    """The snapshot at half of the training.

    Raises:
        UserError: there is none.
    """
    low, high = (share * max(seen, default=0) for share in HALF)
    near = [rows for rows in seen if low <= rows <= high]
    if not near:
        raise UserError(
            f"{entry.name} and the next size have no snapshots at half and at the end of the "
            "training (train with training.snapshots of at least 2)"
        )
    return near[0]


def _mcs(
    comparison: Comparison, rows: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    if comparison.shown.matching == "hungarian":
        return match(rows, others)[1]
    return max_cosine(rows, others, comparison.settings.block_rows)
