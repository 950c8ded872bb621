"""How many neurons a feature is spread over: effective neurons of decoder rows."""

from collections.abc import Sequence
from typing import Any, cast

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
    chain_of,
    counted_chains,
    interval,
    verdict,
)
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.effective_neurons import (
    entropy,
    outliers,
    random_simpson,
    random_spread,
    simpson_neurons,
)
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Notes, Section, Table
from sparse_dict.analysis.study import Chain

Floats = NDArray[np.floating[Any]]


# A feature found again counts as sparser than random directions from this share of their effective
# neurons on: the post's difference is 4 % in the other direction.
MARGIN = 0.02

NOT_SPARSE = Statement(
    "neurons_high_vs_random",
    "Features found again are no sparser in the neuron basis than random directions",
    "6",
    "85 against 82 effective neurons",
    "Effective neurons (inverse Simpson index) of features above the threshold at the chosen L1, "
    f"less the exact random expectation: holds if the 95 % interval lies above -{MARGIN:.0%} of "
    "that expectation (so that being alike holds), does not hold if it lies below.",
)


HIGH_VS_LOW = Statement(
    "neurons_high_vs_low",
    "Features found again are spread over slightly more neurons than the others",
    "6",
    "85 against 83",
    "Mean effective neurons of features above the threshold less that of the others, pooled over "
    "sizes at the chosen L1: holds if the 95 % interval lies above 0.",
)

# Directions with nine tenths of their squared length on one of 128 neurons, the rest random, have
# 14 effective neurons, those with as much on two 18; random ones have 82.
FEW = 0.25  # of the effective neurons of random directions: below it a feature is on one or two
RARE = 0.05  # share of features up to which they are outliers

OUTLIERS = Statement(
    "neuron_outliers",
    "A few of the features found again are outliers, written to one or two neurons",
    "6",
    "two outliers",
    "Share of features above the threshold with effective neurons below "
    f"{FEW:.0%} of what random directions have, pooled over sizes at the chosen L1: holds if there "
    f"is one or more and the 95 % interval lies below {RARE:.0%}, does not hold if there is none "
    "or the interval lies above (then they are no outliers).",
)


def section(context: Context) -> Section:
    """Effective neurons by MCS, against random directions; outliers by name."""
    comparison, chain = context.comparison, context.comparison.main
    d, threshold = context.study.d_in, comparison.settings.threshold
    section = Section("Sparsity in the neuron basis")
    if chain is None:
        section.blocks.append(MISSING.format(NO_CHAIN))
        return section
    sd, random_entropy = random_spread(d)
    groups, rows, odd = [], [], []
    for entry in chain.entries[:-1]:
        mcs = comparison.mcs(entry)
        known = np.isfinite(mcs)
        effective, bits = simpson_neurons(entry.decoder), entropy(entry.decoder)
        high, low = known & (mcs > threshold), known & ~(mcs > threshold)
        groups.append((entry.size, effective[high], effective[low]))
        for label, part in ((f"above {threshold:g}", high), ("the others", low)):
            rows.append(
                {
                    "size": entry.size,
                    "MCS": label,
                    "features": int(part.sum()),
                    "effective neurons": _mean(effective[part]),
                    "entropy (nats)": _mean(bits[part]),
                }
            )
        odd += [
            f"{entry.name}, feature {i}: {effective[i]:.1f} effective neurons, MCS {mcs[i]:.2f}, "
            f"active on {entry.frequency[i]:.2%} of rows"
            for i in outliers(np.where(known, effective, np.nan))[:4]
        ]
    section.blocks.append(
        "Effective neurons are 1 / Σp², with p a neuron's share of a decoder row's absolute "
        f"weight: 1 for a single neuron, {d} for all alike. Random directions have "
        f"1 + (d - 1) 2/π = {random_simpson(d):.2f} on average (exact), sd {sd:.1f}; "
        f"their entropy is {random_entropy:.3f} nats."
    )
    if any(np.isfinite(part).any() for _, *parts in groups for part in parts):
        section.blocks.append(
            context.draw(
                "effective_neurons", effective_neurons(groups, d, threshold),
                "Effective neurons of features",
                "Left: mean by size, with 95 % intervals; right: all sizes together, with a normal "
                "curve of the mean and spread of random directions.",
            )
        )  # fmt: skip
    section.blocks.append(Table("Means", pd.DataFrame(rows)))
    if odd:
        section.blocks.append(
            "Outliers, beyond three interquartile ranges from the quartiles of their dictionary "
            "(the four most extreme of each) are listed below."
        )
        section.blocks.append(Notes(odd))
    return section


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def effective_neurons(
    groups: Sequence[tuple[int, Floats, Floats]], d: int, threshold: float
) -> Figure:
    """Effective neurons of features with high and low MCS, (size, high, low), and random ones."""
    figure, axes = figures.grid(1, 2, 3.2, width_ratios=[1, 1.2])
    mean, (sd, _) = random_simpson(d), random_spread(d)
    axis = axes[0, 0]
    for index, (colour, shift) in enumerate(((figures.BLUE, -0.1), (figures.ORANGE, 0.1)), start=1):
        for place, group in enumerate(groups):
            values = cast(Floats, group[index])
            values = values[np.isfinite(values)]
            if len(values) < 2:
                continue
            reach = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
            axis.errorbar(
                place + shift, values.mean(), yerr=reach, color=colour, marker="o", ms=4, lw=1
            )
    axis.axhline(mean, color="black", lw=1)
    axis.set_xticks(range(len(groups)), [str(size) for size, *_ in groups])
    axis.tick_params(axis="x", rotation=0 if len(groups) <= 5 else 45)
    axis.set_xlim(-0.5, len(groups) - 0.5)
    axis.set_xlabel("dictionary size")
    axis.set_ylabel("effective neurons, mean and 95 %")

    axis = axes[0, 1]
    high, low = (np.concatenate([cast(Floats, group[i]) for group in groups]) for i in (1, 2))
    high, low = high[np.isfinite(high)], low[np.isfinite(low)]
    values = np.concatenate([high, low])
    edges = np.linspace(values.min(), values.max() + 1e-9, 41)
    for part, label, colour in (
        (high, f"MCS > {threshold:g}", figures.BLUE),
        (low, "the others", figures.ORANGE),
    ):
        if len(part):
            axis.hist(
                part, bins=cast(Sequence[float], edges), density=True, color=colour, alpha=0.5,
                linewidth=0, label=f"{label} ({len(part)})",
            )  # fmt: skip
    t = np.linspace(edges[0], edges[-1], 500)
    normal = np.exp(-0.5 * ((t - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    axis.plot(t, normal, color="black", lw=1, label=f"random: {mean:.1f} ± {sd:.1f}")
    axis.set_xlabel("effective neurons of a feature")
    axis.set_ylabel("density")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"Sparsity in the neuron basis ({d} neurons)")
    return figure


STATEMENTS = (NOT_SPARSE, HIGH_VS_LOW, OUTLIERS)


def claims(context: Context) -> list[Claim]:
    """Effective neurons of features found again, against random ones and the others; outliers."""
    comparison, chain = context.comparison, chain_of(context.comparison)
    if chain is None:
        return [statement.undecided() for statement in STATEMENTS]
    threshold, d = comparison.settings.threshold, comparison.study.d_in

    def samples(chain: Chain) -> list[Floats]:
        pooled = []
        for entry in chain.entries[:-1]:
            mcs = comparison.mcs(entry)
            neurons = simpson_neurons(entry.decoder)
            known = np.isfinite(mcs) & np.isfinite(neurons)
            pooled.append(np.stack([neurons[known], mcs[known] > threshold], axis=1))
        return [np.concatenate(pooled)]

    def mean(samples: Sequence[Floats], found_again: bool) -> float:
        neurons, found = samples[0].T
        return _mean(neurons[found == found_again])

    expected = random_simpson(d)
    pooled = [samples(other) for other in counted_chains(comparison, chain)]
    found = [part[0][:, 1] for part in pooled]
    if min(min(part.sum(), (part == 0).sum()) for part in found) < 5:
        why = "fewer than 5 features above the threshold, or below it"
        return [statement.undecided(why) for statement in STATEMENTS]
    above = interval(comparison, chain, samples, lambda s: mean(s, True) - expected)
    apart = interval(comparison, chain, samples, lambda s: mean(s, True) - mean(s, False))
    ours, others = (
        float(np.mean([mean(part, which) for part in pooled])) for which in (True, False)
    )
    sparser = verdict(above, -MARGIN * expected)

    def few(samples: Sequence[Floats]) -> float:
        neurons, found = samples[0].T
        return float((neurons[found == 1] < FEW * expected).mean()) if found.any() else np.nan

    share = interval(comparison, chain, samples, few)
    n = int(sum(part.sum() for part in found))
    on_few = round(sum(few(part) * part[0][:, 1].sum() for part in pooled))
    outcome = OPEN
    if on_few and share.high < RARE:
        outcome = HOLDS
    elif not on_few or share.low > RARE:
        outcome = FAILS
    return [
        NOT_SPARSE.decided(f"{ours:.1f} against {expected:.1f}", above, sparser),
        HIGH_VS_LOW.decided(f"{ours:.1f} against {others:.1f}", apart, verdict(apart, 0)),
        OUTLIERS.decided(f"{on_few} of {n} features above the threshold", share, outcome),
    ]


ANALYSIS = Analysis("sparsity", section, STATEMENTS, claims)
