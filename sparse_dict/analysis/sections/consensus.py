"""A dictionary of what recurs over seeds, and whether another half of the seeds gives the same."""

import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import SEVERAL_SEEDS
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.split_halves import measure
from sparse_dict.analysis.measures.recurring import POOLED, SINGLE, TOGETHER
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Table

COLOURS = {TOGETHER: figures.BLUE, SINGLE: figures.ORANGE, POOLED: figures.GREY}
PANELS = {
    "pw_mcc": "PW-MCC with the other half",
    "fvu": "FVU at the same k",
    "recovered": "loss recovered",
    "precision": "share that is true",
    "recall": "share of true ones found",
    "features": "features",
}


def show(context: Context) -> Blocks:
    """What the dictionary of all seeds holds, and the split-half test."""
    others = context.tables.others
    if "consensus" not in others:
        yield MISSING.format(f"needs {SEVERAL_SEEDS.what}")
        return
    table, of = others["consensus"], others["consensus_of_all"]
    yield Table("The consensus of all seeds", of)
    if table.empty:
        yield "The split-half test needs four seeds."
        return
    yield context.figure("consensus", draw(table))
    means = table.drop(columns="pair").groupby(["seeds", "of"], sort=False).mean()
    yield Table("Split halves", means.reset_index())


def draw(table: pd.DataFrame) -> Figure:
    """Agreement of halves, error, loss or recall, and number of features, by number of seeds."""
    style = {"hue": "of", "style": "of", "palette": COLOURS, "markers": True, "dashes": False}
    columns = -(-sum(column in table for column in PANELS) // 2)
    figure, grid = figures.grid(2, columns, 5.2)
    axes = figures.panels([*grid.flat], table, PANELS, x="seeds", **style)
    nulls = table[table["of"] == TOGETHER].groupby("seeds")[["random", "gaussian"]].mean()
    figures.chance(axes["pw_mcc"], nulls)
    for axis in axes.values():
        axis.set_xlabel("seeds S in each half")
    return figures.below(figure, axes["pw_mcc"], 3)


ANALYSIS = Analysis(
    "consensus",
    show,
    measure=measure,
    applies=lambda context: context.study.target is None,
    seconds=(5.5, 0.2),
)
