"""Pairs of dictionaries that differ in the seed alone; intervals over seeds."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, jackknife
from sparse_dict.analysis.study import Entry, Study, kin, rows, seed_groups
from sparse_dict.analysis.tables import FEWEST_SEEDS, SEED

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class SeedPair:
    """Two dictionaries of one size and kind, matched one-to-one; arrays have shape (n,)."""

    first: Entry
    second: Entry
    cosine: Floats  # of decoder rows, under the decoders' optimal matching
    shared: Bools
    frequency: Floats  # of the first one's features: share of rows

    @property
    def pw_mcc(self) -> float:
        """Mean cosine of optimally matched decoder rows (see `match_features`)."""
        return float(self.cosine.mean())

    def of(self, features: NDArray[np.int64]) -> "SeedPair":
        """The same pair with some of the features."""
        parts = (values[features] for values in (self.cosine, self.shared, self.frequency))
        return SeedPair(self.first, self.second, *parts)


def of_table(pairs: pd.DataFrame, study: Study) -> list[SeedPair]:
    """The dictionaries of a study that differ in the seed alone, from the table of pairs."""
    named = {entry.name: entry for entry in study.entries}
    own = pairs[(pairs["differ"] == SEED) & pairs["first"].isin(named)]
    return [
        SeedPair(
            named[str(first)], named[str(second)], part["cosine"].to_numpy(),
            part["same"].to_numpy(bool), named[str(first)].frequency,
        )
        for (first, second), part in own.groupby(["first", "second"], sort=False)
    ]  # fmt: skip


def sides(study: Study) -> list[tuple[list[Entry], list[Entry]]]:
    """Dictionaries of one size and kind in two groups, in the order in which they are compared.

    Two halves of the seeds; or, where seeds were trained on either half of the rows, the two halves
    of the rows, seeds in opposite orders.
    """
    found = [(g[: len(g) // 2], g[len(g) // 2 :]) for g in seed_groups(study)]
    halves: dict[Any, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(study.entries, key=lambda e: e.seed):
        half, split = rows(entry)
        halves[entry.size, kin(entry), split][half].append(entry)
    both = [(of["half_a"], of["half_b"][::-1]) for of in halves.values()]
    return found + [(a, b) for a, b in both if a and b]


def common_seeds(pairs: Sequence[SeedPair]) -> set[int]:
    """The seeds that every kind, level and size among the pairs has."""
    groups: dict[tuple[str, float, int], set[int]] = {}
    for p in pairs:
        key = (p.first.family, p.first.level, p.first.size)
        groups.setdefault(key, set()).update((p.first.seed, p.second.seed))
    return set.intersection(*groups.values())


def estimate(
    pairs: Sequence[SeedPair], statistic: Callable[[Sequence[SeedPair]], float]
) -> Estimate:
    """A number of pairs of seeds with its 95 % interval.

    Where every kind, level and size has three or more seeds in common, a delete-one jackknife over
    these seeds with Student's t (pairs that share a seed depend on each other, so the pairs do not
    count as independent values; nor would means over the pairs of each seed). Else a bootstrap of
    features within each pair, each pair once, however often `statistic` uses it.
    """
    common = common_seeds(pairs)
    if len(common) < FEWEST_SEEDS:
        features = [np.arange(len(p.cosine)) for p in pairs]
        return bootstrap(
            features, lambda drawn: statistic([p.of(i) for p, i in zip(pairs, drawn, strict=True)])
        )
    pairs = [p for p in pairs if {p.first.seed, p.second.seed} <= common]
    without = [
        statistic([p for p in pairs if seed not in (p.first.seed, p.second.seed)])
        for seed in sorted(common)
    ]
    return jackknife(statistic(pairs), without)


def by_size(pairs: Sequence[SeedPair], of: Callable[[SeedPair], float]) -> dict[int, float]:
    """Mean over the pairs of each size, by rising size."""
    values: dict[int, list[float]] = {}
    for pair in sorted(pairs, key=lambda p: p.first.size):
        values.setdefault(pair.first.size, []).append(of(pair))
    return {size: float(np.mean(part)) for size, part in values.items()}


def shared_fraction(pairs: Sequence[SeedPair]) -> float:
    """Share of features that the other seed learned too; mean over pairs, then sizes."""
    return float(np.mean(list(by_size(pairs, shared).values())))


def shared(pair: SeedPair) -> float:
    """Share of the first one's features that the other seed learned too."""
    return float(pair.shared.mean())
