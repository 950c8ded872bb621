"""Histograms of MCS, a panel for each dictionary and variant, under both nulls."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparse_dict.analysis.comparison import GAUSSIAN, Comparison, Variant
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.study import Entry

BINS = np.linspace(0, 1, 51)
COLOURS = {"dead": figures.ORANGE, "alive": figures.BLUE}


def titled(comparison: Comparison, entry: Entry, variant: Variant, of_levels: bool) -> str:
    """How many features are above the threshold: by size of all or of those alive, or by level."""
    of, bar = comparison.numbers(entry, variant), comparison.settings.threshold
    if of_levels:
        alive = comparison.numbers(entry, variant.of("alive"))["n_above"]
        return f"{entry.setting}, size {entry.size}\n{of['n_above']} ({alive} alive)"
    kind, where = "alive" if variant.features == "alive" else "features", of["partners"]
    above = f"{of['n_above']} of {of['n']} {kind} above {bar:g} ({of['share_above']:.0%})"
    told = above if of["n"] else "no feature counts"
    return f"{entry.size} in {where.replace(' ', '/')}: {told}"


def draw(
    comparison: Comparison, panels: Sequence[tuple[Entry, Variant]], columns: int, levels: bool
) -> Figure:
    """A histogram of MCS for each dictionary and variant, with its title, under both nulls."""
    height, titles = 1.6 if levels else 1.8, [titled(comparison, *of, levels) for of in panels]
    rows = pd.concat(
        entry.features(
            panel=title, MCS=comparison.mcs(entry, variant),
            of=np.where(entry.alive, "alive", "dead"),
        )
        for title, (entry, variant) in zip(titles, panels, strict=True)
    )  # fmt: skip
    grid = figures.facets(
        sns.displot, rows.dropna(), "", x="MCS", hue="of", palette=COLOURS, col="panel",
        col_order=titles, col_wrap=columns, bins=BINS, multiple="stack", element="step", lw=0,
        alpha=1, height=height, aspect=figures.WIDTH / columns / height,
        facet_kws={"sharey": False},
    )  # fmt: skip
    grid.set_titles("{col_name}", size=8).set_axis_labels("MCS", "features")
    for axis, (entry, variant) in zip(grid.axes.flat, panels, strict=True):
        n, sizes = comparison.numbers(entry, variant)["n"], comparison.sizes(entry, variant)
        # Room for the tallest bar of the data only: the random curve may leave the panel.
        axis.set(xlim=(0, 1), ylim=(0, max(1, axis.get_ylim()[1])))
        if sizes:
            t, like = np.linspace(0, 1, 1001), comparison.gaussian_mcs(entry, variant)
            law = random_directions.mcs_pdf(t, comparison.study.d_in, sizes) * BINS[1]
            axis.plot(t, n * law, color="black", lw=1)
            weights = np.full(len(like), n / max(len(like), 1))
            axis.hist(like, BINS, weights=weights, histtype="step", color=figures.PURPLE, lw=1)
        axis.axvline(comparison.settings.threshold, color="0.4", lw=0.8, ls="--")
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    threshold = f"threshold {comparison.settings.threshold:g}"
    lines = {"random directions": "black", GAUSSIAN: figures.PURPLE, threshold: "0.4"}
    figures.lines_below(
        grid, {k: {"color": c, "ls": "--" if k == threshold else "-"} for k, c in lines.items()}
    )
    return grid.figure
