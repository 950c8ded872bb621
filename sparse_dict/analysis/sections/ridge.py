"""The best L1 by dictionary size, on the heat map of MMCS (the post's figures 4 and 5)."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.measures.peaks import fit
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Table
from sparse_dict.analysis.sections.heatmap import by_family
from sparse_dict.analysis.study import number
from sparse_dict.analysis.tables import Tables


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The best L1 of each size, and the line through them, for each family in order."""
    return dict(zip(("ridges", "ridge_peaks"), fit(cells(context)), strict=True))


def cells(context: Context) -> pd.DataFrame:
    """The main site's dictionaries that have a larger one; a useless one makes no peak."""
    known = by_family(context.tables, context.study.families)
    return known.assign(mmcs=known["mmcs"].where(known["fvu"] < 1, known["random_mmcs"]))


def show(context: Context) -> Blocks:
    """Where MMCS peaks in L1, by size."""
    ridges, peaks = (context.tables.others[name] for name in ("ridges", "ridge_peaks"))
    if ridges.empty:
        yield MISSING.format("needs three or more L1 values at each size")
        return
    known = cells(context)
    grid = known.loc[known["family"].isin(ridges["family"]) & (known["l1"] > 0), "l1"]
    yield context.figure("ridge", best_l1(ridges, peaks, sorted(grid.unique())))
    if ridges["divided"].nunique() > 1:
        both = ridges.drop_duplicates("divided").sort_values("divided")
        figure = ridge_heatmaps(known, both, peaks, str(context.comparison.shown))
        yield context.figure("ridge_heatmaps", figure)
    names = {"l1": "best L1", "mmcs": "MMCS there", "interior": "inside the grid"}
    table = peaks.assign(interior=peaks["interior"].map({True: "yes", False: "no"}))
    yield Table("Peaks", table.rename(columns=names), fold=len(table) > 12)


def named(row: Any, none: str) -> str:
    """A family, and the slope of its ridge, if it has one."""
    slope = f"slope\u00a0{row.slope:.2f}\u00a0[{row.low:.2f},\u00a0{row.high:.2f}]"
    return f"{row.family or none}{f'; {slope}' if np.isfinite(row.slope) else ''}"


def best_l1(ridges: pd.DataFrame, peaks: pd.DataFrame, grid: list[float]) -> Figure:
    """Where MMCS peaks: L1 against dictionary size, with the fitted line (figs. 4 and 5)."""
    figure, ((axis,),) = figures.grid(1, 1, max(3.2, 0.6 + 0.34 * len(ridges)))
    # The colour-blind palette has ten colours.
    palette = sns.color_palette("colorblind" if len(ridges) <= 10 else "husl", len(ridges)).as_hex()
    rows: Iterable[Any] = ridges.itertuples()
    for row, colour in zip(rows, palette, strict=True):
        of = peaks[peaks["family"] == row.family]
        axis.plot(of["size"], np.exp(row.intercept) * of["size"] ** row.slope, color=colour)
        filled = np.where(of["interior"], colour, "none")
        axis.scatter(of["size"], of["l1"], s=25, c=filled, edgecolors=colour, zorder=2)
        axis.plot([], [], "o", color=colour, ms=5, label=named(row, "best L1").replace("; ", "\n"))
    figures.size_axis(axis, sorted(peaks["size"].unique()))
    ticks = grid[:: -(-len(grid) // 9)]
    axis.set(
        yscale="log", ylim=(grid[0] / 1.3, grid[-1] * 1.3), ylabel="L1 with the best MMCS",
        title="open circles: at the edge of the grid, not fitted",
    )  # fmt: skip
    axis.set_yticks(ticks, [number(l1) for l1 in ticks])
    axis.minorticks_off()
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def ridge_heatmaps(
    known: pd.DataFrame, ridges: pd.DataFrame, peaks: pd.DataFrame, shown: str
) -> Figure:
    """MMCS by size and L1, a panel per ridge, with its peaks and its line (figs. 4 and 5)."""
    rows: list[Any] = [*ridges.itertuples()]
    parts = [known[known["family"] == row.family] for row in rows]
    panels = [p.assign(panel=named(row, "plain")) for p, row in zip(parts, rows, strict=True)]
    title = f"MMCS with larger dictionaries\n{shown}"
    figure = figures.heatmaps(pd.concat(panels), "mmcs", title, "", ".2f")
    for axis, row, part in zip(figure.axes, rows, parts, strict=False):
        of = peaks[peaks["family"] == row.family]
        sizes, levels = (np.unique(part[column]) for column in ("size", "level"))
        # Cells are one wide with their centres at .5, so logarithms become positions by rank.
        ends = {"xp": np.log(levels), "fp": np.arange(len(levels)) + 0.5}
        places = np.arange(len(sizes)) + 0.83
        at, red = np.interp(np.log(of["l1"]), **ends), figures.RED
        look = {"c": np.where(of["interior"], red, "none"), "edgecolors": red, "clip_on": False}
        axis.scatter(at, places[np.searchsorted(sizes, of["size"])], s=25, **look)
        line = row.intercept + row.slope * np.log(sizes)
        at = np.interp(line, **ends, left=np.nan, right=np.nan)
        axis.plot(at, places, color=red, lw=1.2)
    return figure


def _claim(key: str, divided: bool) -> Claim:
    """That the first ridge whose L1 term is divided by the size has the slope 1, or if not, 0."""
    rule = Lies(divided - 0.5, divided + 0.5)

    def fitted(study: Tables) -> pd.DataFrame:
        ridges = study.others["ridges"]
        return ridges[(ridges["divided"] == divided) & ridges["slope"].notna()]

    def judge(study: Tables) -> Found:
        row = fitted(study).iloc[0]
        named = f" ({row['family']})" if len(study.others["ridges"]) > 1 else ""
        found = Estimate(row["slope"], row["low"], row["high"], "sizes (jackknife)")
        return Found(f"slope {row['slope']:.2f}{named}", rule(found), found)

    scaling, sizes = "dict_size" if divided else "none", "sae.dict_size=64,128,256,512"
    need = Need(
        f"an L1 {'' if divided else 'not '}divided by the dictionary's size, and three sizes whose "
        "best L1 is not at an end of the grid",
        f"{TRAIN}sae.l1_scaling={scaling} {sizes} sae.l1=0.32,0.64,1.28,2.56",
        lambda study: not fitted(study).empty,
    )
    return Claim(key, judge=judge, needs=(need,), of_all=True, bars=vars(rule))


CLAIMS = (_claim("ridge_vertical", divided=False), _claim("ridge_diagonal", divided=True))
ANALYSIS = Analysis("ridge", show, CLAIMS, measure)
