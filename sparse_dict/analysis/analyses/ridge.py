"""The best L1 by dictionary size, on the heat map of MMCS (the post's figures 4 and 5)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claims import FAILS, HOLDS, OPEN, Claim, Statement
from sparse_dict.analysis.comparison import Variant
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.measures.ridge import Ridge
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Section, Table
from sparse_dict.analysis.study import number

VERTICAL = Statement(
    "ridge_vertical",
    "With an undivided L1 term, the best L1 does not depend on the dictionary's size",
    "5",
    "vertical (slope 0)",
    "Slope of ln best L1 against ln size, l1_scaling=none or d_in: holds if the 95 % interval lies "
    "within -0.5 to 0.5, does not hold if outside. Of several kinds, the main one, else the first "
    "in the study's order that has a slope; it is named.",
    of_all=True,
)


DIAGONAL = Statement(
    "ridge_diagonal",
    "With the L1 term divided by the dictionary's size, the best L1 grows in proportion to it",
    "4",
    "diagonal (slope 1)",
    "The same slope for l1_scaling=dict_size: holds if the 95 % interval lies within 0.5 to 1.5, "
    "does not hold if outside.",
    of_all=True,
)


def section(context: Context) -> Section:
    """Where MMCS peaks in L1, by size."""
    section = Section("The best L1 by dictionary size")
    ridges = context.ridges
    if not ridges:
        section.blocks.append(
            "A ridge needs three or more L1 values at each size; this study has fewer."
        )
        return section
    section.blocks.append(
        "For each size the L1 with the best MMCS, refined by a parabola in log L1. If the L1 term "
        "is divided by the dictionary's size, the best L1 grows with it (slope 1, a diagonal in "
        "the heat map); undivided, it should stay (slope 0, a vertical)."
    )
    section.blocks.append(
        context.draw(
            "ridge", best_l1(ridges), "Best L1 against dictionary size",
            "Lines: least squares in the logarithms through the filled points, with the slope's "
            "95 % interval (jackknife over sizes) where three or more sizes allow it.",
        )
    )  # fmt: skip
    scalings = {item.divided: item for item in reversed(ridges)}
    if len(scalings) > 1:
        both = [scalings[key] for key in sorted(scalings)]
        section.blocks.append(
            context.draw(
                "ridge_heatmaps", ridge_heatmaps(context.cells, both, context.comparison.shown),
                "Both ridges on their heat maps",
                "The same L1 for all sizes makes a vertical line, one that grows with the size a "
                "diagonal. Dots: the best L1 of a size (open: at the edge of the grid, not "
                "fitted); lines: the fits of the figure above.",
            )
        )  # fmt: skip
    rows = [
        {
            "family": item.family,
            "size": p.dict_size,
            "best L1": p.l1,
            "MMCS there": p.mmcs,
            "inside the grid": "yes" if p.interior else "no",
        }
        for item in ridges
        for p in item.peaks
    ]
    section.blocks.append(Table("Peaks", pd.DataFrame(rows), fold=len(rows) > 12))
    return section


def best_l1(ridges: Sequence[Ridge]) -> Figure:
    """Where MMCS peaks: L1 against dictionary size, with the fitted line (figs. 4 and 5)."""
    figure, axes = figures.grid(1, 1, max(3.2, 0.6 + 0.34 * len(ridges)))
    axis = axes[0, 0]
    # The colour-blind palette has ten colours.
    palette = sns.color_palette("colorblind" if len(ridges) <= 10 else "husl", len(ridges)).as_hex()
    for item, colour in zip(ridges, palette, strict=True):
        sizes = np.array([p.dict_size for p in item.peaks], dtype=float)
        best = np.array([p.l1 for p in item.peaks])
        inside = np.array([p.interior for p in item.peaks])
        label = item.family or "best L1"
        if item.slope is not None and item.intercept is not None and item.interval is not None:
            label += f"\nslope {item.slope:.2f} [{item.interval[0]:.2f}, {item.interval[1]:.2f}]"
            axis.plot(sizes, np.exp(item.intercept) * sizes**item.slope, color=colour, lw=1)
        axis.plot(sizes[inside], best[inside], "o", color=colour, ms=5, label=label)
        axis.plot(sizes[~inside], best[~inside], "o", color=colour, ms=5, mfc="none")
    figures.size_axis(axis, sorted({p.dict_size for item in ridges for p in item.peaks}))
    axis.set_yscale("log")
    grid = sorted({l1 for item in ridges for l1 in item.grid})
    axis.set_ylim(grid[0] / 1.3, grid[-1] * 1.3)
    ticks = grid[:: -(-len(grid) // 9)]
    axis.set_yticks(ticks, [number(l1) for l1 in ticks])
    axis.minorticks_off()
    axis.set_ylabel("L1 with the best MMCS")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title("Ridge of the heat map (open circles: at the edge of the grid, not fitted)")
    return figure


def ridge_heatmaps(cells: pd.DataFrame, ridges: Sequence[Ridge], shown: Variant) -> Figure:
    """MMCS by size and L1, a panel per ridge, with its peaks and its line (figs. 4 and 5)."""
    tables = [
        cells[cells["family"] == item.family].pivot_table(
            index="dict_size", columns="l1", values="mmcs"
        )
        for item in ridges
    ]
    widths = [len(table.columns) for table in tables]
    figure, axes = plt.subplots(
        1, len(ridges), figsize=(figures.WIDTH, 1.7 + 0.42 * len(tables[0])), width_ratios=widths,
        squeeze=False,
    )  # fmt: skip
    for axis, item, table in zip(axes[0], ridges, tables, strict=True):
        figures.heat(axis, table, ".2f")
        # Cells are one wide with their centres at .5, so logarithms become positions by rank.
        ranks = np.arange(len(table.columns)) + 0.5
        grid = np.log(table.columns.to_numpy(float))
        rows = {size: row + 0.5 for row, size in enumerate(table.index)}
        for peak in item.peaks:
            axis.plot(
                np.interp(np.log(peak.l1), grid, ranks), rows[peak.dict_size] + 0.33, "o",
                color=figures.RED, ms=5, mfc=figures.RED if peak.interior else "none",
                clip_on=False,
            )  # fmt: skip
        title = item.family
        if item.slope is not None and item.intercept is not None and item.interval is not None:
            line = item.intercept + item.slope * np.log(table.index.to_numpy(float))
            places = np.interp(line, grid, ranks, left=np.nan, right=np.nan)
            axis.plot(places, [y + 0.33 for y in rows.values()], color=figures.RED, lw=1.2)
            title += f"\nslope {item.slope:.2f} [{item.interval[0]:.2f}, {item.interval[1]:.2f}]"
        axis.set_title(title)
        axis.set_xlabel("L1 coefficient")
        axis.set_ylabel("dictionary size" if axis is axes[0, 0] else "")
        axis.tick_params(axis="x", rotation=45)
    figure.suptitle(f"MMCS with larger dictionaries\n{shown}")
    return figure


def claims(context: Context) -> list[Claim]:
    """Whether the ridge is vertical, or diagonal."""
    ridges = context.ridges
    return [_slope(VERTICAL, ridges, False), _slope(DIAGONAL, ridges, True)]


def _slope(text: Statement, ridges: Sequence[Ridge], divided: bool) -> Claim:
    target = 1 if divided else 0
    for item in ridges:
        if item.divided != divided or item.slope is None or item.interval is None:
            continue
        estimate = Estimate(item.slope, *item.interval, "sizes (jackknife)")
        inside = estimate.low > target - 0.5 and estimate.high < target + 0.5
        outside = estimate.low > target + 0.5 or estimate.high < target - 0.5
        outcome = HOLDS if inside else FAILS if outside else OPEN
        named = f" ({item.family})" if len(ridges) > 1 else ""
        return text.decided(f"slope {item.slope:.2f}{named}", estimate, outcome)
    return text.undecided(
        f"needs an L1 {'' if divided else 'not '}divided by the dictionary's size, and three sizes "
        "whose best L1 is not at an end of the grid"
    )


ANALYSIS = Analysis("ridge", section, (VERTICAL, DIAGONAL), claims)
