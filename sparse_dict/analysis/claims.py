"""What a claim is: a value, an interval and a verdict by a stated rule."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN
from sparse_dict.analysis.claim import Judged as Claim
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, over_seeds
from sparse_dict.analysis.study import Chain, Entry, fault

Floats = NDArray[np.floating[Any]]

# The share from which on a claim on all features holds: a cosine near the threshold may fall on
# either side of it.
NEARLY_ALL = 0.9
NO_CHAIN = (
    "no dictionary of this study has a larger one that differs from it only in size (train further "
    "sizes with the same L1 and seed)"
)


def verdict(estimate: Estimate, bar: float) -> str:
    """Holds if the interval lies above `bar`, does not if below, undecided if across."""
    if not np.isfinite([estimate.low, estimate.high]).all():
        return OPEN
    return HOLDS if estimate.low > bar else FAILS if estimate.high < bar else OPEN


@dataclass(frozen=True)
class Statement:
    """A claim as it was made, and the rule of its verdict."""

    key: str
    claim: str
    figure: str
    post: str
    rule: str
    says: str | None = HOLDS  # what the post or paper says of `claim`; None: none says anything
    of_all: bool = False  # about all dictionaries, not only those at the chosen level

    def undecided(self, why: str = NO_CHAIN) -> Claim:
        """The claim without a value of ours; `why` stands in its place."""
        return self.decided(why, None, OPEN)

    def decided(self, ours: str, estimate: Estimate | None, outcome: str) -> Claim:
        """The claim with our value, its interval and the verdict, which may still be OPEN."""
        interval = None if estimate is None else (estimate.low, estimate.high)
        over = "" if estimate is None else estimate.over
        return Claim(
            self.key, self.claim, self.figure, self.post, ours, interval, over, outcome, self.rule,
            self.says,
        )  # fmt: skip


def counted_chains(comparison: Comparison, chain: Chain) -> list[Chain]:
    """The chains that `interval` uses: those of all seeds if there are three, else `chain`."""
    alike = comparison.same_but_seed(chain)
    return alike if len(alike) >= 3 else [chain]


def in_seeds(chains: Sequence[Chain]) -> str:
    """What follows a count that is a sum over seeds."""
    return f" in {len(chains)} seeds" if len(chains) > 1 else ""


def interval(
    comparison: Comparison,
    chain: Chain,
    samples: Callable[[Chain], list[Floats]],
    statistic: Callable[[Sequence[Floats]], float],
) -> Estimate:
    """The interval: over seeds if the chain has three or more, else a bootstrap over features."""
    chains = counted_chains(comparison, chain)
    if len(chains) > 1:
        return over_seeds([statistic(samples(other)) for other in chains])
    return bootstrap(samples(chain), statistic)


def mean_of_means(samples: Sequence[Floats]) -> float:
    """The mean of each sample, averaged."""
    return float(np.mean([sample.mean() for sample in samples]))


def chain_of(comparison: Comparison) -> Chain | None:
    """The main chain; None without one, or if only living features count and one of it has none."""
    chain = comparison.main
    if chain is None or any(not len(comparison.counted(e)) for e in chain.entries[:-1]):
        return None
    return chain


def _faults(entries: Sequence[Entry], where: str) -> str:
    """How many dictionaries explain nothing, and why; empty if all explain something."""
    found = Counter(why for entry in entries if (why := fault(entry)))
    if not found:
        return ""
    each = ", ".join(f"{n} {why}" for why, n in found.items())
    return f"{found.total()} of {len(entries)} dictionaries{where} explain nothing ({each})"


def undecidable(comparison: Comparison, of_all: bool = False) -> str:
    """Why a claim cannot be decided, if its dictionaries explain nothing; empty otherwise.

    A claim is about the main chain and those that differ from it in the seed: one dictionary of
    these that explains nothing is enough. A claim about all dictionaries (`of_all`), and any claim
    if there is no chain, needs only that some dictionary explains something.
    """
    entries, chain = comparison.study.entries, comparison.main
    if all(map(fault, entries)):
        return _faults(entries, "")
    if of_all or chain is None:
        return ""
    judged = [entry for alike in comparison.same_but_seed(chain) for entry in alike.entries]
    return _faults(judged, f" at {chain.setting}")


def honest(comparison: Comparison, texts: Sequence[Statement], found: list[Claim]) -> list[Claim]:
    """The claims `found` on `texts`; undecided, the reason first, where `undecidable` says so."""
    why = {text.key: undecidable(comparison, text.of_all) for text in texts}
    return [
        replace(claim, ours=f"cannot be decided: {reason}; {claim.ours}", verdict=OPEN)
        if (reason := why[claim.key])
        else claim
        for claim in found
    ]
