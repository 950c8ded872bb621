"""Agreement of a dictionary with the next size after equally many rows of their training.

Training keeps decoders on a log schedule (`training.snapshots`); they are compared as finished
dictionaries are.
"""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pandas as pd

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import gaussian_rows, random_directions
from sparse_dict.analysis.measures.mcs import match, max_cosine, normalised
from sparse_dict.sae.folder import read_snapshots

HALF = (0.4, 0.6)  # of the training: batches do not divide it exactly


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """MCS of each snapshot of the main dictionaries, all seeds; that at half training by feature.

    All features count, since snapshots do not hold which ones fire. Nothing where a dictionary has
    no snapshot at half of its training.

    Raises:
        UserError: a snapshot is damaged, or of another dictionary.
    """
    comparison, chain = context.comparison, context.comparison.main
    chains = comparison.same_but_seed(chain) if chain else []
    bar, block = comparison.settings.threshold, comparison.settings.block_rows
    rows, halves = [], []
    for entry, larger in (pair for alike in chains for pair in pairwise(alike.entries)):
        own, others = (read_snapshots(one.trained) for one in (entry, larger))
        common = sorted(own.keys() & others.keys())
        if (half := half_of(common)) is None:
            return {}
        of: dict[str, Any] = {"dictionary": entry.name}
        of |= {"size": entry.size, "next_size": larger.size, "seed": entry.seed}
        for seen in common:
            one, other = normalised(own[seen]), normalised(others[seen])
            # one to one without codes: snapshots have no encoder
            plain = comparison.shown.matching == "max"
            mcs = max_cosine(one, other, block) if plain else match(one, other)[1]
            numbers = {
                "seen": seen, "steps": seen / entry.metrics["config"]["training"]["batch_size"],
                "mmcs": float(mcs.mean()),
                "random_mmcs": random_directions.max_mean(one.shape[1], larger.size),
                "gaussian_mmcs": gaussian_rows.mmcs(one, other, block),
                "n_above": (mcs > bar).sum(), "share_above": (mcs > bar).mean(),
            }  # fmt: skip
            rows.append(of | numbers)
            if seen == half:
                halves.append(entry.features(half_mcs=mcs, half_near=mcs > bar))
    return {"features": pd.concat(halves), "snapshots": pd.DataFrame(rows)} if rows else {}


def half_of(seen: Iterable[int]) -> int | None:
    """Which of the numbers of rows is about half of the last one; None if there is none."""
    rows = list(seen)
    low, high = (share * max(rows, default=0) for share in HALF)
    return next((n for n in rows if low <= n <= high), None)
