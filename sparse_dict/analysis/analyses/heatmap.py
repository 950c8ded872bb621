"""MMCS with larger dictionaries by size and sparsity: the post's figure 1."""

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claims import (
    NO_CHAIN,
    OPEN,
    Claim,
    Statement,
    chain_of,
    counted_chains,
    interval,
    mean_of_means,
    verdict,
)
from sparse_dict.analysis.comparison import GAUSSIAN, VARIANTS, Comparison, Variant
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.intervals import bootstrap
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import LABELS, NAMES, Chain

Floats = NDArray[np.floating[Any]]
MOST_COLUMNS = 3  # heat maps side by side
MATCH_TABLE_SIZE = 4096  # the table of all variants matches dictionaries up to this size


ABOVE_RANDOM = Statement(
    "mmcs_above_random",
    "Features agree with those of larger dictionaries far better than random directions do",
    "1",
    "clearly above the random .27 to .33",
    "MMCS less its exact random expectation, at the chosen L1, averaged over sizes: holds if the "
    "95 % interval lies above 0.1.",
)


INTERIOR = Statement(
    "interior_l1",
    "MMCS depends on L1 and is best at an intermediate value",
    "1, 4",
    "a ridge across the heat map",
    "Mean MMCS over sizes at the L1 where it is highest, less that at the better end of the L1 "
    "grid: holds if the former is not an end and the 95 % interval lies above 0 (which the choice "
    "of the highest makes a little more likely).",
)


def section(context: Context) -> Section:
    """MMCS over size and sparsity, the number of high features, and a table of all variants."""
    section = Section("Agreement with larger dictionaries")
    comparison, cells, chain = context.comparison, context.cells, context.comparison.main
    if chain is None:
        section.blocks.append(MISSING.format(NO_CHAIN))
        return section
    shown, threshold = comparison.shown, comparison.settings.threshold
    families = comparison.study.families
    swept = " or ".join(dict.fromkeys(LABELS[axis] for axis in cells["axis"]))
    section.blocks.append(
        "For each feature of a dictionary, MCS is its largest (signed) cosine similarity with the "
        f"features of a larger dictionary trained with the same {swept} and seed; MMCS is the mean "
        f"over the smaller dictionary. Shown: {shown}. Random directions in "
        f"{comparison.study.d_in} dimensions reach the values in the last table, and so do rows "
        "drawn from Gaussians with the mean and covariance of each dictionary's rows, which lie "
        "closer to each other if the rows do not fill the space evenly."
    )
    section.blocks.append(
        context.draw(
            "heatmap_mmcs", heatmap(cells, families, shown), "MMCS with larger dictionaries",
            f"Each cell is one dictionary, its size on the left and its {swept} below; the "
            "brighter, the closer its features come to those of larger ones. The largest size has "
            f"no row. A vertical band means that the best {swept} is the same for all sizes, a "
            "diagonal one that it grows with the size.",
        )
    )  # fmt: skip
    section.blocks.append(
        context.draw(
            "high_features", high_counts(cells, families, shown, threshold),
            f"Number of features with MCS above {threshold:g}",
            "The same cells; the count of features that a larger dictionary contains almost "
            "unchanged.",
        )
    )  # fmt: skip
    section.blocks.append(Table(f"All variants, at {chain.setting}", _variants(comparison, chain)))
    return section


def _variants(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """MMCS of the main chain in all variants, a column per size; and the random expectation."""
    table = []
    for variant in VARIANTS:
        row: dict[str, Any] = {"variant": str(variant)}
        for entry in chain.entries[:-1]:
            partners = comparison.partners(entry, variant.against)
            small = max(p.size for p in partners) <= MATCH_TABLE_SIZE
            if variant.matching == "max" or small or variant == comparison.shown:
                values = comparison.counted(entry, variant)
                row[str(entry.size)] = float(values.mean()) if len(values) else np.nan
            else:
                row[str(entry.size)] = np.nan
        table.append(row)
    for against, label in (("next", "next size"), ("all_larger", "mean of all larger")):
        variant = Variant("max", against, "all")
        exact = {str(e.size): comparison.random_mean(e, variant) for e in chain.entries[:-1]}
        table.append({"variant": f"random directions, {label} (exact)", **exact})
        like = {str(e.size): comparison.gaussian_mean(e, variant) for e in chain.entries[:-1]}
        table.append({"variant": f"{GAUSSIAN}, {label} (simulated)", **like})
    return pd.DataFrame(table)


def _family_title(family: str, n_seeds: int) -> str:
    seeds = f"mean over {n_seeds} seeds" if n_seeds > 1 else ""
    return "; ".join(part for part in (family, seeds) if part)


def _heat(
    cells: pd.DataFrame,
    families: Sequence[str],
    value: str,
    title: str,
    colour_label: str,
    fmt: str,
    high: float | None,
) -> Figure:
    """Heat maps of one column of `Comparison.cells`, one panel for each of `families`, in order.

    Up to three panels stand side by side, as many as leave their numbers legible.
    """
    families = [family for family in families if (cells["family"] == family).any()]
    shown = [cells[cells["family"] == family] for family in families]
    tables = [part.pivot_table(index="dict_size", columns="level", values=value) for part in shown]
    widest = max(len(table.columns) for table in tables)
    panel = 1.0 + 0.42 * widest  # inches
    columns = max(1, min(len(tables), MOST_COLUMNS, int((figures.WIDTH - 0.8) / panel)))
    rows = -(-len(tables) // columns)
    width = figures.WIDTH if columns > 1 else max(4.6, min(figures.WIDTH, 2.6 + 0.75 * widest))
    titles = [
        textwrap.fill(_family_title(family, part["seed"].nunique()), int(14 * width / columns) - 10)
        for family, part in zip(families, shown, strict=True)
    ]
    lines = 1 + max(text.count("\n") for text in titles)
    row = 0.38 * (max(len(table) for table in tables) + 1.1) + 0.17 * lines
    figure, axes = plt.subplots(rows, columns, figsize=(width, 0.8 + row * rows), squeeze=False)
    top = high if high is not None else max(1.0, float(cells[value].max()))
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    used = axes.flat[: len(tables)]
    for axis, text, part, table in zip(used, titles, shown, tables, strict=True):
        figures.heat(axis, table, fmt, top)
        axis.set_title(text)
        names = NAMES if columns == 1 else LABELS  # the longer ones need room
        axis.set_xlabel(names[part["axis"].iloc[0]])
        axis.set_ylabel("dictionary size" if axis in axes[:, 0] else "")
        axis.tick_params(axis="x", rotation=0 if widest <= 10 and columns == 1 else 45)
    figure.colorbar(used[0].collections[0], ax=axes, label=colour_label)
    figure.suptitle(title)
    return figure


def heatmap(cells: pd.DataFrame, families: Sequence[str], variant: Variant) -> Figure:
    """MMCS-with-larger by dictionary size and sparsity (the post's figure 1)."""
    title = f"MMCS with larger dictionaries\n{variant}"
    return _heat(cells, families, "mmcs", title, "MMCS", ".2f", 1.0)


def high_counts(
    cells: pd.DataFrame, families: Sequence[str], variant: Variant, threshold: float
) -> Figure:
    """Number of features whose MCS exceeds the threshold, by dictionary size and sparsity."""
    title = f"Features with MCS above {threshold:g}\n{variant}"
    return _heat(cells, families, "n_above", title, "features", ".0f", None)


def claims(context: Context) -> list[Claim]:
    """Whether MMCS exceeds that of random directions, and peaks at an intermediate L1."""
    return [_above_random(context.comparison), _interior(context.comparison)]


def _above_random(comparison: Comparison) -> Claim:
    """MMCS against random directions."""
    chain = chain_of(comparison)
    if chain is None:
        return ABOVE_RANDOM.undecided()

    def samples(chain: Chain) -> list[Floats]:
        return [comparison.counted(e) - comparison.random_mean(e) for e in chain.entries[:-1]]

    estimate = interval(comparison, chain, samples, mean_of_means)
    mmcs = np.mean([comparison.chain_mean(c) for c in counted_chains(comparison, chain)])
    entries = [e for c in counted_chains(comparison, chain) for e in c.entries[:-1]]
    like = mmcs - np.mean([comparison.gaussian_mean(e) for e in entries])
    ours = f"MMCS {mmcs:.3f}, {estimate.value:+.3f} from random, {like:+.3f} from {GAUSSIAN}"
    return ABOVE_RANDOM.decided(ours, estimate, verdict(estimate, 0.1))


def _interior(comparison: Comparison) -> Claim:
    """Whether the L1 of the highest MMCS lies inside the grid."""
    chain = chain_of(comparison)
    if chain is None:
        return INTERIOR.undecided()
    if chain.axis != "l1":
        return INTERIOR.undecided(f"{LABELS[chain.axis]} was swept, not L1")
    sizes = [entry.size for entry in chain.entries]
    grid = sorted(
        (
            other
            for other in comparison.study.chains
            if (other.family, other.seed) == (chain.family, chain.seed)
            and [entry.size for entry in other.entries] == sizes
        ),
        key=lambda other: other.level,
    )
    if len(grid) < 3:
        return INTERIOR.undecided(f"the study has {len(grid)} L1 value(s) for all sizes; needs 3")

    def over_seeds(level: Chain) -> float:
        means = [comparison.chain_mean(alike) for alike in comparison.same_but_seed(level)]
        return float(np.nan_to_num(np.mean(means), nan=-1))

    best, ends = max(grid, key=over_seeds), max((grid[0], grid[-1]), key=comparison.chain_mean)
    if best in (grid[0], grid[-1]):
        ours = f"best at {best.setting}, the end of the grid"
        return INTERIOR.decided(ours, None, OPEN)

    k = len(best.entries) - 1

    def difference(samples: Sequence[Floats]) -> float:
        return mean_of_means(samples[:k]) - mean_of_means(samples[k:])

    both = [comparison.counted(e) for c in (best, ends) for e in c.entries[:-1]]
    estimate = bootstrap(both, difference)
    ours = f"best at {best.setting}, {estimate.value:+.3f} against the better end"
    return INTERIOR.decided(ours, estimate, verdict(estimate, 0))


ANALYSIS = Analysis("heatmap", section, (ABOVE_RANDOM, INTERIOR), claims)
