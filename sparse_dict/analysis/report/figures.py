"""What all figures share: a style that stays legible in print and to colour-blind readers.

A figure is at most 7 inches wide with text of 8 points or more, so that it can be printed at its
own size. `save` writes PNG and SVG.
"""

import logging
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from sparse_dict.analysis.study import LABELS, NAMES, number
from sparse_dict.analysis.tables import Tables
from sparse_dict.storage import files

WIDTH = 7.0
BLUE, ORANGE, GREEN, RED, PURPLE, _, _, GREY, _, _ = sns.color_palette("colorblind").as_hex()
CHANCE = {"random": ("random directions", "0.4"), "gaussian": ("Gaussian rows", PURPLE)}


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's ticks theme with print sizes, only for figures that are made inside the context."""
    theme = {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "legend.fontsize": 8,
        "legend.title_fontsize": 8,
        "figure.titlesize": 10,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "sparse-dict",  # the same figure gives the same file
        "figure.constrained_layout.use": True,
    }
    plt.switch_backend("Agg")  # no display is needed, and none must be looked for
    logging.getLogger("matplotlib.category").setLevel(logging.WARNING)  # of sizes as names
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever a matplotlibrc says
        mpl.rcParams.update(theme)
        yield


def save(figure: Figure, folder: Path, key: str) -> Path:
    """Write `key`.png (150 dpi), which is returned, and `key`.svg atomically; close the figure."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with files.replacing(folder / f"{key}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
        figure.set_layout_engine("none")  # all stays where it is: laying out takes half the time
    plt.close(figure)
    return folder / f"{key}.png"


def titled(study: Tables) -> str:
    """What the dictionaries of the main figures have in common, for titles."""
    return ", ".join(part for part in (study.about.family, study.setting) if part)


def below(
    figure: Figure, axis: Axes, columns: int, title: str | None = None, side: str = "center"
) -> Figure:
    """The figure, with the legend of one axis under the whole."""
    place: Any = f"outside lower {side}"
    handles, labels = axis.get_legend_handles_labels()
    for other in figure.axes:
        if legend := other.get_legend():
            legend.remove()
    figure.legend(handles, labels, title=title, loc=place, ncols=columns)
    return figure


def shades(n: int, name: str = "viridis") -> list[str]:
    """`n` colours from dark to light of a perceptually uniform map, for ordered things."""
    return [to_hex(c) for c in mpl.colormaps[name](np.linspace(0.0, 0.85, max(n, 1)))]


def size_axis(axis: Axes, sizes: Sequence[int], rotation: int = 0) -> None:
    """Dictionary sizes on a logarithmic x axis, each with its number."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(sizes, [str(size) for size in sizes], rotation=rotation)
    axis.minorticks_off()
    axis.set_xlabel("dictionary size")


def panels(
    axes: Sequence[Axes], rows: pd.DataFrame, titles: Mapping[str, str], x: str = "size", **how: Any
) -> dict[str, Axes]:
    """A panel for each column of `titles` that is known: means, bands from the least to the most.

    By dictionary size, or another `x` that doubles. Axes that are left over are hidden.
    """
    known = {c: title for c, title in titles.items() if c in rows and rows[c].notna().any()}
    for axis in axes:
        axis.set_visible(False)
    used = dict(zip(known, axes, strict=False))
    for column, axis in used.items():
        sns.lineplot(rows, x=x, y=column, errorbar=("pi", 100), markersize=5, ax=axis, **how)
        places = sorted(rows[x].unique())
        size_axis(axis, places, 45 if len(places) > 4 and places[-1] > 99 else 0)
        axis.axhline(0, lw=0)  # so that zero is in sight
        axis.set(title=known[column], ylabel="", visible=True)
    return used


def ends(rows: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows with values, with lower and with upper ends of intervals, below one another.

    Their median and its range are the value with its interval.
    """
    parts = [{c: rows[f"{c}_{end}"] for c in columns} for end in ("low", "high")]
    return pd.concat([rows, *(rows.assign(**part) for part in parts)], ignore_index=True)


def chance(axis: Axes, means: pd.DataFrame | Mapping[str, Mapping[int, float]]) -> None:
    """What chance gives, by size: dotted lines of columns that begin with random or gaussian."""
    for name, values in means.items():
        label, colour = CHANCE[str(name).partition("_")[0]]
        points = pd.Series(values)
        axis.plot(points.index, points, color=colour, ls=":", lw=1.2, label=label)


def facets(
    plot: Callable[..., sns.FacetGrid], rows: pd.DataFrame, legend: str, **how: Any
) -> sns.FacetGrid:
    """One of seaborn's grids, laid out as other figures are, with its legend below."""
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        grid = plot(rows, **how)
    grid.figure.set_layout_engine("constrained")
    grid.figure.set_figwidth(min(WIDTH, grid.figure.get_figwidth()))  # seaborn adds the legend's
    sns.move_legend(grid, "outside lower center", ncols=8, title=legend)
    return grid


def lines_below(grid: sns.FacetGrid, lines: Mapping[str, Mapping[str, Any]]) -> None:
    """Name in a grid's legend the lines that were drawn besides, each with how it looks."""
    old = grid.legend
    handles = [*old.legend_handles, *(Line2D([], [], **how) for how in lines.values())]
    names = [*(text.get_text() for text in old.texts), *lines]
    title = old.get_title().get_text() or None
    old.remove()
    grid.figure.legend(handles, names, loc="outside lower center", ncols=3, title=title)


def percent_axis(axis: Axes) -> None:
    """Shares on the y axis, in per cent."""
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _wilson(found: "pd.Series[Any]") -> "pd.Series[Any]":
    """A share from truth values, and its 95 % interval (Wilson)."""
    from scipy.stats import binomtest

    low, high = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return pd.Series({"share": found.mean(), "share_low": low, "share_high": high})


def by_frequency(axis: Axes, rows: pd.DataFrame, found: str, colours: str = "viridis") -> None:
    """Share found again by decade of the firing frequency, a line a size; the dead on the left.

    `rows` are features; `found` is a column of truth values. Bars: 95 % (Wilson).
    """
    with np.errstate(divide="ignore"):  # what is active on every row joins the topmost decade
        decade = np.minimum(np.floor(np.log10(rows["frequency"])), -1)
    lowest = int(decade.where(decade > -np.inf).min()) if (decade > -np.inf).any() else -1
    known = pd.DataFrame({"size": rows["size"], "found": rows[found].astype(float)})
    known["at"] = 10 ** (decade.clip(lower=lowest - 1.5) + 0.5)  # the dead beyond the rarest
    shares = known.groupby(["size", "at"])["found"].apply(_wilson).unstack().reset_index()
    sns.lineplot(
        ends(shares, "share"), x="at", y="share", hue="size", estimator="median",
        palette=shades(known["size"].nunique(), colours), errorbar=("pi", 100), err_style="bars",
        err_kws={"lw": 0.8}, marker="o", ms=4, lw=1, ax=axis,
    )  # fmt: skip
    ticks = {10.0**k: f"$10^{{{k}}}$" if k else "1" for k in range(lowest, 1)}
    if (decade == -np.inf).any():
        axis.axvline(10 ** (lowest - 0.4), color="0.8", lw=0.8)
        ticks[10.0 ** (lowest - 1)] = "dead"
    axis.set(xscale="log", ylim=(-0.03, 1.03), ylabel="")
    axis.set_xticks([*ticks], ticks.values())
    axis.minorticks_off()
    percent_axis(axis)
    axis.set_xlabel("share of rows on which a feature is active")


MOST_COLUMNS = 3  # heat maps side by side


def heatmaps(
    cells: pd.DataFrame, value: str, title: str, label: str, fmt: str | Mapping[str, str]
) -> Figure:
    """Heat maps of a column by size and level, a panel for each `panel` of the cells, in order.

    Up to three stand side by side, as many as leave their numbers legible; means over seeds. All
    have the same colours, of which a bar says what they are (`label`); without it each has its own.
    Formats may be by panel. MMCS that random directions would have stands with the size.
    """
    panels = {str(name): part for name, part in cells.groupby("panel", sort=False)}
    tables = [p.pivot_table(index="size", columns="level", values=value) for p in panels.values()]
    widest = max(len(table.columns) for table in tables)
    columns = max(1, min(len(tables), MOST_COLUMNS, int((WIDTH - 0.8) / (1.0 + 0.42 * widest))))
    rows = -(-len(tables) // columns)
    width = WIDTH if columns > 1 else max(4.6, min(WIDTH, 2.6 + 0.75 * widest))
    titles = []
    for name, part in panels.items():
        seeds = part["seed"].nunique()
        named = "; ".join(filter(None, (name, f"mean over {seeds} seeds" if seeds > 1 else "")))
        titles.append(textwrap.fill(named, int(14 * width / columns) - 10))
    lines = 1 + max(text.count("\n") for text in titles)
    row = 0.38 * (max(len(table) for table in tables) + 1.1) + 0.17 * lines
    figure, axes = plt.subplots(rows, columns, figsize=(width, 0.8 + row * rows), squeeze=False)
    ends: dict[str, Any] = {}
    if label:
        ends = {
            "vmin": min(t.min().min() for t in tables),
            "vmax": max(t.max().max() for t in tables),
        }
    for axis in axes.flat[len(tables) :]:
        axis.set_visible(False)
    used = axes.flat[: len(tables)]
    for axis, text, (name, part), table in zip(used, titles, panels.items(), tables, strict=True):
        sns.heatmap(
            table, ax=axis, annot=True, fmt=fmt if isinstance(fmt, str) else fmt[name],
            annot_kws={"size": 8}, cmap="viridis", linewidths=0.5, cbar=False, **ends,
            xticklabels=[number(float(str(level))) for level in table.columns],
        )  # fmt: skip
        axis.set_facecolor("0.9")
        names = NAMES if columns == 1 else LABELS  # the longer ones need room
        axis.set(title=text, xlabel=names[part["axis"].iloc[0]])
        size = "dictionary size"
        if value == "mmcs" and "random_mmcs" in part:
            random, size = part.groupby("size")["random_mmcs"].mean(), "size (random)"
            axis.set_yticklabels([f"{size} ({random[size]:.2f})" for size in table.index])
        axis.set_ylabel(size if axis in axes[:, 0] else "")
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="x", rotation=0 if widest <= 10 and columns == 1 else 45)
    if label:
        figure.colorbar(used[0].collections[0], ax=axes, label=label)
    figure.suptitle(title)
    return figure


def grid(rows: int, columns: int, height: float, **kwargs: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure of the full width with `rows` x `columns` axes."""
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **kwargs)
    return figure, axes
