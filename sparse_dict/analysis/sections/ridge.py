"""The best L1 by dictionary size, on the heat map of MMCS (the post's figures 4 and 5)."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import ridge
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Block, Table
from sparse_dict.analysis.sections.heatmap import by_family
from sparse_dict.analysis.study import number
from sparse_dict.analysis.tables import Tables


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The best L1 of each size, and the line through them, for each family in order."""
    ridges, peaks = ridge.fit(cells(context))
    return {"ridges": ridges, "ridge_peaks": peaks}


def cells(context: Context) -> pd.DataFrame:
    """The dictionaries of the main site that have a larger one.

    One that explains nothing counts as random directions, so that it makes no peak.
    """
    known = by_family(context.tables, context.study.families)
    return known.assign(mmcs=known["mmcs"].where(known["fvu"] < 1, known["random_mmcs"]))


def show(context: Context) -> Iterator[Block]:
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


def _named(row: Any, none: str = "") -> str:
    """A family, and the slope of its ridge, if it has one, in a line of its own."""
    known = np.isfinite(row.slope)
    slope = f"\nslope {row.slope:.2f} [{row.low:.2f}, {row.high:.2f}]" if known else ""
    return f"{row.family or none}{slope}"


def best_l1(ridges: pd.DataFrame, peaks: pd.DataFrame, grid: list[float]) -> Figure:
    """Where MMCS peaks: L1 against dictionary size, with the fitted line (figs. 4 and 5)."""
    figure, axes = figures.grid(1, 1, max(3.2, 0.6 + 0.34 * len(ridges)))
    axis: Axes = axes[0, 0]
    # The colour-blind palette has ten colours.
    palette = sns.color_palette("colorblind" if len(ridges) <= 10 else "husl", len(ridges)).as_hex()
    rows: Iterable[Any] = ridges.itertuples()
    for row, colour in zip(rows, palette, strict=True):
        of = peaks[peaks["family"] == row.family]
        if np.isfinite(row.slope):
            axis.plot(of["size"], np.exp(row.intercept) * of["size"] ** row.slope, color=colour)
        for inside, part in of.groupby("interior"):
            axis.plot(part["size"], part["l1"], "o", color=colour, ms=5,
                      mfc=colour if inside else "none")  # fmt: skip
        axis.plot([], [], "o", color=colour, ms=5, label=_named(row, "best L1"))
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
    tables = [
        known[known["family"] == family].pivot_table(index="size", columns="l1", values="mmcs")
        for family in ridges["family"]
    ]
    widths = [len(table.columns) for table in tables]
    figure, axes = figures.grid(1, len(tables), 1.7 + 0.42 * len(tables[0]), width_ratios=widths)
    rows: Iterable[Any] = ridges.itertuples()
    for axis, row, table in zip(axes[0], rows, tables, strict=True):
        figures.heat(axis, table, ".2f")
        # Cells are one wide with their centres at .5, so logarithms become positions by rank.
        ranks, places = np.arange(len(table.columns)) + 0.5, np.arange(len(table)) + 0.83
        grid, look = np.log(table.columns.to_numpy(float)), {"color": figures.RED, "ms": 5}
        for inside, of in peaks[peaks["family"] == row.family].groupby("interior"):
            at = (
                np.interp(np.log(of["l1"]), grid, ranks),
                places[table.index.get_indexer(of["size"])],
            )
            axis.plot(*at, "o", mfc=figures.RED if inside else "none", clip_on=False, **look)
        line = row.intercept + row.slope * np.log(table.index.to_numpy(float))
        xs = np.interp(line, grid, ranks, left=np.nan, right=np.nan)
        axis.plot(xs, places, color=figures.RED, lw=1.2)
        axis.set(title=_named(row), xlabel="L1 coefficient")
        axis.set_ylabel("dictionary size" if axis is axes[0, 0] else "")
        axis.tick_params(axis="x", rotation=45)
    figure.suptitle(f"MMCS with larger dictionaries\n{shown}")
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
