"""Dictionaries that differ in seed, rows or both, matched pair by pair; intervals over seeds."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures.across_seeds import match_pair
from sparse_dict.analysis.measures.intervals import Estimate, over_seeds, percentiles
from sparse_dict.analysis.study import Entry, Study, kin, rows, seed_groups

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

INITIAL, DATA, BOTH = "initial values", "data", "both"  # in what two dictionaries differ
FEWEST_SEEDS = 3  # over which an interval is taken
MOST_SEEDS = 5  # seeds of each setting that are compared, the lowest ones: ten pairs


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
        """Mean cosine of optimally matched decoder rows (see `match_pair`)."""
        return float(self.cosine.mean())

    def resampled(self, rng: np.random.Generator) -> "SeedPair":
        """The same pair with features drawn with replacement."""
        i = rng.integers(0, len(self.cosine), len(self.cosine))
        return SeedPair(self.first, self.second, self.cosine[i], self.shared[i], self.frequency[i])


def compare(study: Study, match_limit: int) -> list[SeedPair]:
    """Match each dictionary with those that differ in the seed alone, for the five lowest seeds.

    Sizes above `match_limit` are skipped (see `skipped`): exact matching takes time and memory that
    grow steeply.
    """
    pairs = []
    for group in seed_groups(study):
        if group[0].size > match_limit:
            continue
        for first, second in combinations(group[:MOST_SEEDS], 2):
            pairs.append(matched(first, second))
    return pairs


def matched(first: Entry, second: Entry) -> SeedPair:
    """Two dictionaries of one size, matched."""
    cosine, shared = match_pair((first.encoder, first.decoder), (second.encoder, second.decoder))
    return SeedPair(first, second, cosine, shared, first.frequency)


def by_difference(
    study: Study, match_limit: int, same_rows: list[SeedPair]
) -> dict[str, list[SeedPair]]:
    """Dictionaries of up to `match_limit` features that are equal in all but seed and rows.

    `same_rows` are those that differ in the seed alone (`compare`). Of more than five seeds the
    lowest five are compared.
    """
    alike: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in study.entries:
        if entry.size <= match_limit:
            alike[entry.size, kin(entry)].append(entry)
    found: dict[str, list[SeedPair]] = {INITIAL: same_rows, DATA: [], BOTH: []}
    for entries in alike.values():
        counted = sorted({entry.seed for entry in entries})[:MOST_SEEDS]
        for first, second in combinations([e for e in entries if e.seed in counted], 2):
            if kind := _difference(first, second):
                found[kind].append(matched(first, second))
    return found


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


def _difference(first: Entry, second: Entry) -> str | None:
    """Whether two dictionaries differ in data or both; None if rows are the same or overlap."""
    (own, split), (others, other_split) = rows(first), rows(second)
    if (own, split) == (others, other_split):
        return None
    halves = {own, others} == {"half_a", "half_b"} and split == other_split
    if not (halves or own == others == "bootstrap"):
        return None
    return DATA if first.seed == second.seed else BOTH


def skipped(comparison: Comparison) -> str:
    """Says which sizes have several seeds but are too large to match; empty if there is none."""
    limit = comparison.settings.match_limit
    large = sorted({g[0].size for g in seed_groups(comparison.study) if g[0].size > limit})
    if not large:
        return ""
    return f"above comparison.match_limit={limit}, not matched: size {', '.join(map(str, large))}"


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
    n = len(common)
    if n < FEWEST_SEEDS:
        rng = np.random.default_rng(0)
        return percentiles(statistic(pairs), lambda: statistic([p.resampled(rng) for p in pairs]))
    pairs = [p for p in pairs if {p.first.seed, p.second.seed} <= common]
    value = statistic(pairs)
    without = [
        statistic([p for p in pairs if seed not in (p.first.seed, p.second.seed)])
        for seed in sorted(common)
    ]
    return over_seeds([n * value - (n - 1) * part for part in without])


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
