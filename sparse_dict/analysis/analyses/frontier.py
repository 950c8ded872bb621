"""Reconstruction against sparsity: FVU and L0 of every dictionary."""

import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.overview import overview
from sparse_dict.analysis.report.page import Draw, Section
from sparse_dict.analysis.study import Study


def section(study: Study, draw: Draw) -> Section:
    """Reconstruction against sparsity."""
    section = Section("Reconstruction against sparsity")
    section.blocks.append(
        draw(
            "frontier", frontier(overview(study)), "FVU against L0",
            "Each point is a dictionary; a line joins those that differ only in how sparse "
            "they were made. FVU is the "
            "squared error over the variance of the activations, L0 the mean number of active "
            "features, both on the evaluation rows.",
        )
    )  # fmt: skip
    return section


def frontier(table: pd.DataFrame) -> Figure:
    """Unexplained variance against active features a row; a line joins levels of sparsity."""
    figure, axes = figures.grid(1, 1, 3.6)
    axis = axes[0, 0]
    sizes = sorted(table["dict_size"].unique())
    families = list(dict.fromkeys(table["family"]))
    colours = dict(zip(sizes, figures.shades(len(sizes)), strict=True))
    markers = dict(zip(families, ["o", "s", "^", "D", "v", "P", "X", "*"], strict=False))
    for (family, size, _), row in table.groupby(["family", "dict_size", "seed"], sort=True):
        row = row.sort_values("level")
        axis.plot(
            row["l0"],
            row["fvu"],
            color=colours[size],
            lw=0.8,
            marker=markers.get(family, "o"),
            ms=4,
        )
    for size in sizes:
        axis.plot([], [], color=colours[size], lw=2, label=str(size))
    for family in families if len(families) > 1 else []:
        axis.plot([], [], color="0.4", ls="", marker=markers.get(family, "o"), ms=4, label=family)
    if (table["l0"] > 0).all() and table["l0"].max() > 5 * table["l0"].min():
        axis.set_xscale("log")
        figures.plain_ticks(axis.xaxis)
    axis.set_ylim(0, None)
    axis.set_xlabel("L0: features active on a row, mean")
    axis.set_ylabel("FVU: share of variance unexplained")
    axis.legend(title="dictionary size", loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title("Sparsity against reconstruction; towards the lower left is better")
    return figure
