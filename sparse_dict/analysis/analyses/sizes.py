"""What larger dictionaries add: MMCS and counts of features by dictionary size.

Everything here compares the main chain with the next size and counts all features, even where
`comparison.against` or `comparison.features` say otherwise: the post's claims are about these.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claims import (
    FAILS,
    HOLDS,
    NO_CHAIN,
    OPEN,
    Claim,
    Statement,
    counted_chains,
    interval,
    verdict,
)
from sparse_dict.analysis.comparison import GAUSSIAN, MATCHING, Comparison, Variant
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import Chain

Floats = NDArray[np.floating[Any]]

RANDOM_SHARE = 0.01  # share of random directions above the MCS below which one is unrelated
STEEP = 0.02  # MMCS counts as rising if it grows by more than this per doubling of the size
MOST = 0.5  # larger shares of features count as most of them
FEWEST = 5  # features of each sort that a size needs to count in a slope of counts
# Columns of `features`.
MCS, HIGH, DISTINCT, UNRELATED, DEAD = range(5)

UNRELATED_RULE = (
    f"“no analogue” means an MCS that more than {RANDOM_SHARE:.0%} of random directions exceed"
)

DIMENSIONS = Statement(
    "more_than_dimensions",
    "More features are found again than the activations have dimensions",
    "text",
    "more than dimensions",
    "Features with a partner of their own (one to one) above the threshold in the next larger "
    "dictionary, at the chosen L1 and the size that has most of them, divided by the width of the "
    "activations: holds if the 95 % interval lies above 1, does not hold if below. Needs a "
    "dictionary wider than the activations, and a larger one.",
)
PLATEAU = Statement(
    "mmcs_rises_then_level",
    "MMCS rises fast with the dictionary's size and then stays level",
    "text",
    "rises, then a plateau",
    "Slopes of MMCS on log2 size over the smaller and the larger half of the sizes (a middle one "
    f"is in both) at the chosen L1: holds if the first slope's 95 % interval lies above {STEEP} a "
    f"doubling and the second's within {STEEP} of zero, does not hold if the first's lies below or "
    "the second's outside. The interval shown is the second's. Needs four sizes.",
)
FALLS_WITH_SIZE = Statement(
    "mmcs_falls_with_size",
    "MMCS falls as dictionaries grow",
    "text",
    "falls",
    "Slope of MMCS on log2 size over all sizes at the chosen L1: holds if the 95 % interval lies "
    "below 0, does not hold if above. Needs three sizes. (The post says this as well as the claim "
    "above; both cannot be true of the same sizes.)",
)
IDENTICAL = Statement(
    "nearly_identical_at_512",
    "At size 512 most features are nearly identical to ones of a larger dictionary",
    "text",
    "most",
    "Share of features of size 512 with MCS above the threshold at the chosen L1: holds if the "
    f"95 % interval lies above {MOST}, does not hold if below.",
)
NO_ANALOGUE = Statement(
    "no_analogue_at_2048",
    "At size 2,048 the majority of features have no analogue in 4,096",
    "text",
    "the majority",
    "Share of features of size 2,048 without an analogue at the chosen L1, where "
    f"{UNRELATED_RULE}: holds if the 95 % interval lies above {MOST}, does not hold if below.",
)
NEVER_USED = Statement(
    "no_analogue_dead_at_2048",
    "Many of the features of 2,048 without an analogue in 4,096 are never active",
    "text",
    "many",
    "Share of features never active on the evaluation rows, of those of size 2,048 without an "
    "analogue: holds if the 95 % interval lies above 0.25, does not hold if below. Needs 20 such "
    "features.",
)
MORE_AT_2048 = Statement(
    "more_similar_at_2048",
    "Yet at size 2,048 more features are highly similar to ones of a larger dictionary than at 512",
    "text",
    "more",
    "Number of features with MCS above the threshold at size 2,048 less that at 512, at the chosen "
    "L1: holds if the 95 % interval lies above 0, does not hold if below.",
)
SLOWER = Statement(
    "similar_grow_slower",
    "The number of highly similar features grows more slowly with size than that of unrelated ones",
    "text",
    "more slowly",
    "Slope of ln number on ln size for features without an analogue, less that for those with MCS "
    f"above the threshold, at the chosen L1, where {UNRELATED_RULE}: holds if the 95 % interval "
    f"lies above 0, does not hold if below. Needs three sizes with {FEWEST} of each sort.",
)
STATEMENTS = (
    DIMENSIONS,
    PLATEAU,
    FALLS_WITH_SIZE,
    IDENTICAL,
    NO_ANALOGUE,
    NEVER_USED,
    MORE_AT_2048,
    SLOWER,
)


def features(comparison: Comparison, chain: Chain) -> dict[int, Floats]:
    """For each size but the largest, its features: MCS, then 1 or 0 for each other property.

    Shape (size, 5): MCS, HIGH (above the threshold), DISTINCT (above it with a partner of its own),
    UNRELATED (no more alike than random directions), DEAD (never active).
    """
    found: dict[int, Floats] = {}
    threshold, d = comparison.settings.threshold, comparison.study.d_in
    for entry, larger in zip(chain.entries[:-1], chain.entries[1:], strict=True):
        mcs = comparison.mcs(entry, Variant(comparison.shown.matching, "next", "all"))
        bar = random_directions.max_quantile(1 - RANDOM_SHARE, d, larger.size)
        flags = [mcs > threshold, comparison.distinct(entry, larger), mcs <= bar, ~entry.alive]
        found[entry.size] = np.stack([mcs, *flags], axis=1).astype(np.float64)
    return found


def section(context: Context) -> Section:
    """MMCS and counts of features by size."""
    section = Section("What larger dictionaries add")
    comparison, chain = context.comparison, context.comparison.main
    if chain is None:
        section.blocks.append(MISSING.format(NO_CHAIN))
        return section
    threshold, d = comparison.settings.threshold, comparison.study.d_in
    found = features(comparison, chain)
    section.blocks.append(
        "If larger dictionaries went on finding features of the model, the number of features "
        "found again in the next size would grow with the size, beyond the number of dimensions "
        f"({d}) if the model packs more features than that into its activations. What grows "
        "instead once these are exhausted is the number of features without an analogue: their "
        f"MCS is one that more than {RANDOM_SHARE:.0%} of random directions exceed."
    )
    section.blocks.append(
        context.draw(
            "sizes", by_size(found, comparison, chain), "MMCS and numbers of features by size",
            "Left: MMCS with the next size, and what random directions (grey) and "
            f"{GAUSSIAN} (purple) reach. Right: features with "
            f"MCS above {threshold:g}; those of them that have a partner of their own (one to "
            "one); those without an analogue; and those of the latter that were never active on "
            f"the evaluation rows. Dotted: the {d} dimensions of the activations.",
        )
    )  # fmt: skip
    section.blocks.append(
        Table("Numbers of features by size", counts(found, threshold), fold=len(found) > 12)
    )
    return section


def counts(found: dict[int, Floats], threshold: float) -> pd.DataFrame:
    """One row per size."""
    return pd.DataFrame(
        [
            {
                "size": size,
                "MMCS": float(part[:, MCS].mean()),
                f"above {threshold:g}": int(part[:, HIGH].sum()),
                "one to one": int(part[:, DISTINCT].sum()),
                "without an analogue": int(part[:, UNRELATED].sum()),
                "of these never active": int((part[:, UNRELATED] * part[:, DEAD]).sum()),
            }
            for size, part in found.items()
        ]
    )


def by_size(found: dict[int, Floats], comparison: Comparison, chain: Chain) -> Figure:
    """MMCS, and numbers of features of each sort, by dictionary size."""
    figure, (left, right) = figures.plt.subplots(1, 2, figsize=(figures.WIDTH, 3.3))
    table, d = counts(found, comparison.settings.threshold), comparison.study.d_in
    sizes = table["size"].to_numpy()
    left.plot(sizes, table["MMCS"], color=figures.BLUE, marker="o", ms=4, lw=1.2)
    random = [random_directions.mean_mcs(d, [entry.size]) for entry in chain.entries[1:]]
    left.plot(sizes, random, color="0.4", ls=":", lw=1.2)
    nexts = Variant("max", "next", "all")
    like = [comparison.gaussian_mean(entry, nexts) for entry in chain.entries[:-1]]
    left.plot(sizes, like, color=figures.PURPLE, ls=":", lw=1.2)
    left.set_ylim(0, 1)
    left.set_ylabel("MMCS with the next size")
    colours = (figures.BLUE, figures.GREEN, figures.ORANGE, figures.RED)
    for label, colour in zip(table.columns[2:], colours, strict=True):
        known = table[label] > 0  # a logarithm has no zero
        right.plot(
            sizes[known], table[label][known], label=label, color=colour, marker="o", ms=4, lw=1.2,
            ls="--" if label == "one to one" else "-",
        )  # fmt: skip
    right.axhline(d, color="0.4", ls=":", lw=1.2)
    right.set_yscale("log")
    right.set_ylabel("features")
    for axis in (left, right):
        figures.size_axis(axis, sizes.tolist(), 0 if len(sizes) <= 5 else 45)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"What larger dictionaries add, {figures.named(chain)}\n"
        f"{MATCHING[comparison.shown.matching]}, next size, all features"
    )
    return figure


def claims(context: Context) -> list[Claim]:
    """How agreement with the next size, and the numbers of features, change with the size."""
    comparison, chain = context.comparison, context.comparison.main
    if chain is None:
        return [statement.undecided() for statement in STATEMENTS]
    chains = counted_chains(comparison, chain)
    found = _Found(comparison, chain, {c: features(comparison, c) for c in chains})
    return [
        _dimensions(found),
        _plateau(found),
        _falls(found),
        _identical(found),
        *_no_analogue(found),
        _more_at_2048(found),
        _slower(found),
    ]


@dataclass(frozen=True)
class _Found:
    """`features` of the main chain and, where an interval is over seeds, of the other seeds'."""

    comparison: Comparison
    chain: Chain
    chains: dict[Chain, dict[int, Floats]]

    @property
    def sizes(self) -> list[int]:
        """The sizes that have a larger one, in rising order."""
        return list(self.chains[self.chain])

    def mean(self, size: int, column: int) -> float:
        """Mean of a column at a size, averaged over seeds."""
        return float(np.mean([parts[size][:, column].mean() for parts in self.chains.values()]))

    def number(self, size: int, column: int) -> str:
        """How many features of a size have a property, as text."""
        return f"{self.mean(size, column) * size:.4g} of {size}"

    def estimate(
        self, sizes: Sequence[int], statistic: Callable[[Sequence[Floats]], float]
    ) -> Estimate:
        """`statistic` of the features of these sizes, a table each, with its interval."""
        return interval(
            self.comparison, self.chain, lambda c: [self.chains[c][n] for n in sizes], statistic
        )

    def mmcs_slope(self, sizes: Sequence[int]) -> Estimate:
        """Change of MMCS per doubling of the size."""
        return self.estimate(sizes, lambda parts: _slope(sizes, [p[:, MCS].mean() for p in parts]))


def _slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Least squares of values on log2 size."""
    return float(np.polyfit(np.log2(sizes), values, 1)[0])


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def _dimensions(found: _Found) -> Claim:
    d = found.comparison.study.d_in
    if max(found.sizes) <= d:
        return DIMENSIONS.undecided(f"needs two sizes above {d}, the width of the activations")
    most = max(found.sizes, key=lambda size: found.mean(size, DISTINCT) * size)
    estimate = found.estimate([most], lambda parts: float(parts[0][:, DISTINCT].sum() / d))
    ours = f"{found.number(most, DISTINCT)}, for {d} dimensions: {estimate.value:.2f} times"
    return DIMENSIONS.decided(ours, estimate, verdict(estimate, 1))


def _plateau(found: _Found) -> Claim:
    sizes = found.sizes
    if len(sizes) < 3:
        return PLATEAU.undecided("needs four sizes")
    smaller, larger = sizes[: (len(sizes) + 1) // 2], sizes[len(sizes) // 2 :]
    first, last = found.mmcs_slope(smaller), found.mmcs_slope(larger)
    level = last.low > -STEEP and last.high < STEEP
    sloping = last.low > STEEP or last.high < -STEEP
    outcome = OPEN
    if verdict(first, STEEP) == HOLDS and level:
        outcome = HOLDS
    elif verdict(first, STEEP) == FAILS or sloping:
        outcome = FAILS
    ours = (
        f"{_interval(first)} a doubling from {smaller[0]} to {smaller[-1]}, "
        f"{_interval(last)} from {larger[0]} to {larger[-1]}"
    )
    return PLATEAU.decided(ours, last, outcome)


def _falls(found: _Found) -> Claim:
    sizes = found.sizes
    if len(sizes) < 2:
        return FALLS_WITH_SIZE.undecided("needs three sizes")
    estimate = found.mmcs_slope(sizes)
    outcome = {HOLDS: FAILS, FAILS: HOLDS, OPEN: OPEN}[verdict(estimate, 0)]
    ours = f"{estimate.value:+.3f} a doubling from {sizes[0]} to {sizes[-1]}"
    return FALLS_WITH_SIZE.decided(ours, estimate, outcome)


def _identical(found: _Found) -> Claim:
    if 512 not in found.sizes:
        return IDENTICAL.undecided("needs sizes 512 and a larger one")
    estimate = found.estimate([512], lambda parts: float(parts[0][:, HIGH].mean()))
    ours = f"{estimate.value:.0%} ({found.number(512, HIGH)})"
    return IDENTICAL.decided(ours, estimate, verdict(estimate, MOST))


def _no_analogue(found: _Found) -> list[Claim]:
    if 2048 not in found.sizes or 4096 not in [entry.size for entry in found.chain.entries]:
        return [s.undecided("needs sizes 2048 and 4096") for s in (NO_ANALOGUE, NEVER_USED)]
    share = found.estimate([2048], lambda parts: float(parts[0][:, UNRELATED].mean()))
    ours = f"{share.value:.0%} ({found.number(2048, UNRELATED)})"
    claims = [NO_ANALOGUE.decided(ours, share, verdict(share, MOST))]

    def dead(parts: Sequence[Floats]) -> float:
        table = parts[0]
        return float(table[table[:, UNRELATED] == 1, DEAD].mean())

    if min(part[2048][:, UNRELATED].sum() for part in found.chains.values()) < 20:
        return [*claims, NEVER_USED.undecided("fewer than 20 features without an analogue")]
    share = found.estimate([2048], dead)
    ours = f"{share.value:.0%} never active"
    return [*claims, NEVER_USED.decided(ours, share, verdict(share, 0.25))]


def _more_at_2048(found: _Found) -> Claim:
    if not {512, 2048} <= set(found.sizes):
        return MORE_AT_2048.undecided("needs sizes 512, 2048 and a larger one")

    def more(parts: Sequence[Floats]) -> float:
        small, large = parts
        return float(large[:, HIGH].sum() - small[:, HIGH].sum())

    estimate = found.estimate([512, 2048], more)
    ours = f"{found.number(2048, HIGH)} against {found.number(512, HIGH)}"
    return MORE_AT_2048.decided(ours, estimate, verdict(estimate, 0))


def _slower(found: _Found) -> Claim:
    sizes = [
        size
        for size in found.sizes
        if min(found.mean(size, column) * size for column in (HIGH, UNRELATED)) >= FEWEST
    ]
    if len(sizes) < 3:
        why = f"needs three sizes with {FEWEST} features above the threshold and {FEWEST} without"
        return SLOWER.undecided(f"{why} an analogue; there are {len(sizes)}")

    def growth(parts: Sequence[Floats], column: int) -> float:
        # Half a feature is added because a resample may hold none, which has no logarithm.
        logs = [np.log2(part[:, column].sum() + 0.5) for part in parts]
        return _slope(sizes, logs)

    def faster(parts: Sequence[Floats]) -> float:
        return growth(parts, UNRELATED) - growth(parts, HIGH)

    high, unrelated = (
        np.mean([growth([p[n] for n in sizes], column) for p in found.chains.values()])
        for column in (HIGH, UNRELATED)
    )
    estimate = found.estimate(sizes, faster)
    ours = f"as size to the power {high:.2f}, against {unrelated:.2f}"
    return SLOWER.decided(ours, estimate, verdict(estimate, 0))


ANALYSIS = Analysis("sizes", section, STATEMENTS, claims)
