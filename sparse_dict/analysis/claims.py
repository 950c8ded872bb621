"""The post's claims: a value, an interval and a verdict by a stated rule.

Each analysis has its own; here is what they share, and the table at the top of the report.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, over_seeds
from sparse_dict.analysis.report.page import Section, Table
from sparse_dict.analysis.study import LABELS, Chain

Floats = NDArray[np.floating[Any]]

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told here"
NO_CHAIN = (
    "no dictionary of this study has a larger one that differs from it only in size (train further "
    "sizes with the same L1 and seed)"
)


@dataclass(frozen=True)
class Claim:
    """One line of the table."""

    key: str
    claim: str
    figure: str  # of the post or paper
    post: str
    ours: str
    interval: tuple[float, float] | None  # 95 %
    over: str  # what the interval is over
    verdict: str
    rule: str

    def as_json(self) -> dict[str, Any]:
        """Plain values; an interval that is not finite becomes null."""
        value = asdict(self)
        if self.interval is not None and not np.isfinite(self.interval).all():
            value["interval"] = None
        return value


def verdict(estimate: Estimate, bar: float) -> str:
    """Holds if the interval lies above `bar`, does not if below, cannot be told if across."""
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

    def untold(self, why: str = NO_CHAIN) -> Claim:
        """What cannot be told, and why."""
        return Claim(self.key, self.claim, self.figure, self.post, why, None, "", OPEN, self.rule)

    def told(self, ours: str, estimate: Estimate | None, outcome: str) -> Claim:
        """Our value with its interval, and the verdict."""
        interval = None if estimate is None else (estimate.low, estimate.high)
        over = "" if estimate is None else estimate.over
        return Claim(
            self.key, self.claim, self.figure, self.post, ours, interval, over, outcome, self.rule
        )


def counted_chains(comparison: Comparison, chain: Chain) -> list[Chain]:
    """What an `interval` and the value beside it are of: three or more seeds, or `chain` alone."""
    alike = comparison.same_but_seed(chain)
    return alike if len(alike) >= 3 else [chain]


def in_seeds(chains: Sequence[Chain]) -> str:
    """For counts that are sums over seeds."""
    return f" in {len(chains)} seeds" if len(chains) > 1 else ""


def interval(
    comparison: Comparison,
    chain: Chain,
    samples: Callable[[Chain], list[Floats]],
    statistic: Callable[[Sequence[Floats]], float],
) -> Estimate:
    """Over seeds if the chain was trained with three or more, else a bootstrap over features."""
    chains = counted_chains(comparison, chain)
    if len(chains) > 1:
        return over_seeds([statistic(samples(other)) for other in chains])
    return bootstrap(samples(chain), statistic)


def mean_of_means(samples: Sequence[Floats]) -> float:
    """The mean of each sample, averaged."""
    return float(np.mean([sample.mean() for sample in samples]))


def chain_of(comparison: Comparison) -> Chain | None:
    """The main chain; None if there is none, or features are missing that its claims would need.

    That is so where only living features count and a dictionary has none.
    """
    chain = comparison.main
    if chain is None or any(not len(comparison.counted(e)) for e in chain.entries[:-1]):
        return None
    return chain


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The claims as the report's first table."""
    return pd.DataFrame(
        {
            "claim": [c.claim for c in claims],
            "its figure": [c.figure for c in claims],
            "there": [c.post for c in claims],
            "here": [c.ours for c in claims],
            "95 % interval": [
                f"{c.interval[0]:.3f} to {c.interval[1]:.3f}" if c.interval else "-" for c in claims
            ],
            "over": [c.over or "-" for c in claims],
            "verdict": [c.verdict for c in claims],
        }
    )


def section(found: Sequence[Claim], shown: Chain | None) -> Section:
    """The table at the top, and the rules behind the verdicts; `shown` is the main chain."""
    section = Section(
        "The post's claims",
        [
            "Each claim of the post “[Replication] Conjecture's Sparse Coding in Small "
            "Transformers”, and of what has been found since on agreement between seeds, with the "
            "value given there, the value here and a 95 % interval. The verdict follows from the "
            "interval by the rule listed below; “cannot be told here” means that the interval "
            "straddles the bar or that the study lacks what the claim needs. The best L1 is "
            "that of the highest MMCS of the same dictionaries, so values at it are "
            "a little optimistic.",
            Table("Claims and verdicts", table(found)),
        ],
    )
    if shown is not None and shown.axis != "l1":
        section.blocks.append(
            f"Where a rule says L1, it is {LABELS[shown.axis]} that was varied in this study."
        )
    rules = pd.DataFrame({"claim": [c.claim for c in found], "rule": [c.rule for c in found]})
    section.blocks.append(Table("The rules of the verdicts", rules, fold=True))
    return section
