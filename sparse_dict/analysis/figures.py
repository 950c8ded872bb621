"""The figures: seaborn on a style that stays legible in print and to colour-blind readers.

Every function returns a matplotlib figure at most 7 inches wide with text of 8 points or more, so
that it can be printed at its own size. `save` writes PNG and SVG.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl

mpl.use("Agg")  # no display is needed, and none must be looked for

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from sparse_dict import files
from sparse_dict.analysis import random_directions, sparsity
from sparse_dict.analysis.agreement import (
    SeedPair,
    by_frequency,
    found_along,
)
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.intervals import wilson
from sparse_dict.analysis.ridge import Ridge
from sparse_dict.analysis.study import Chain, Entry

Floats = NDArray[np.floating[Any]]

WIDTH = 7.0
BLUE, ORANGE, GREEN, RED, PURPLE, _, _, GREY, _, _ = sns.color_palette("colorblind").as_hex()
BINS = 50  # on [0, 1]


@contextmanager
def style() -> Iterator[None]:
    """Seaborn's ticks theme with print sizes, for the figures made inside only."""
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
    with mpl.rc_context(theme):
        yield


def save(figure: Figure, folder: Path, key: str) -> bytes:
    """Write `key`.png (150 dpi) and `key`.svg atomically, close the figure, return the PNG."""
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with files.replacing(folder / f"{key}.{kind}") as temporary:
            figure.savefig(temporary, format=kind, dpi=150, metadata=metadata)
    plt.close(figure)
    return (folder / f"{key}.png").read_bytes()


def l1_label(value: float) -> str:
    """An L1 coefficient with three significant digits."""
    return f"{value:.3g}"


def _named(chain: Chain) -> str:
    """What a chain's dictionaries have in common, for titles."""
    return ", ".join(part for part in (chain.family, f"L1 {l1_label(chain.l1)}") if part)


def _shades(n: int, name: str = "viridis") -> list[str]:
    """`n` colours from dark to light of a perceptually uniform map, for ordered things."""
    return [to_hex(c) for c in mpl.colormaps[name](np.linspace(0.0, 0.85, max(n, 1)))]


def _grid(rows: int, columns: int, height: float, **kwargs: Any) -> tuple[Figure, NDArray[Any]]:
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height), squeeze=False, **kwargs)
    return figure, axes


# --- MMCS over size and L1 ------------------------------------------------------------------------


def _family_title(family: str, n_seeds: int) -> str:
    seeds = f"mean over {n_seeds} seeds" if n_seeds > 1 else ""
    return "; ".join(part for part in (family, seeds) if part)


def _heat(
    cells: pd.DataFrame, value: str, title: str, colour_label: str, fmt: str, high: float | None
) -> Figure:
    """Heat maps of one column of `Comparison.cells`, one panel a family (the four largest)."""
    families = list(dict.fromkeys(cells["family"]))[:4]
    tables = [
        cells[cells["family"] == f].pivot_table(index="dict_size", columns="l1", values=value)
        for f in families
    ]
    rows = sum(len(table) + 1.6 for table in tables)
    widest = max(len(table.columns) for table in tables)
    width = min(WIDTH, 2.6 + 0.75 * widest)
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(max(width, 4.6), 0.8 + 0.38 * rows), squeeze=False
    )
    top = high if high is not None else max(1.0, float(cells[value].max()))
    for axis, family, table in zip(axes[:, 0], families, tables, strict=True):
        sns.heatmap(
            table, ax=axis, annot=True, fmt=fmt, annot_kws={"size": 8}, cmap="viridis",
            vmin=0, vmax=top, linewidths=0.5, cbar_kws={"label": colour_label},
            xticklabels=[l1_label(l1) for l1 in table.columns],
        )  # fmt: skip
        axis.set_facecolor("0.9")
        axis.set_title(_family_title(family, cells[cells["family"] == family]["seed"].nunique()))
        axis.set_xlabel("L1 coefficient")
        axis.set_ylabel("dictionary size")
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="x", rotation=0 if widest <= 10 else 45)
    figure.suptitle(title)
    return figure


def heatmap(cells: pd.DataFrame, variant: Variant) -> Figure:
    """MMCS-with-larger by dictionary size and L1 (the post's figure 1)."""
    return _heat(cells, "mmcs", f"MMCS with larger dictionaries\n{variant}", "MMCS", ".2f", 1.0)


def high_counts(cells: pd.DataFrame, variant: Variant, threshold: float) -> Figure:
    """Number of features whose MCS exceeds the threshold, by dictionary size and L1."""
    title = f"Features with MCS above {threshold:g}\n{variant}"
    return _heat(cells, "n_above", title, "features", ".0f", None)


# --- histograms -----------------------------------------------------------------------------------


def _histogram(
    axis: Axes, comparison: Comparison, entry: Entry, variant: Variant, long_title: bool
) -> None:
    values, threshold = comparison.mcs(entry, variant), comparison.settings.threshold
    known = np.isfinite(values)
    edges = np.linspace(0, 1, BINS + 1)
    clipped = np.clip(values, 0, 1)
    axis.hist(
        [clipped[known & entry.alive], clipped[known & ~entry.alive]],
        bins=cast(Sequence[float], edges), stacked=True, color=[BLUE, ORANGE], linewidth=0,
        label=["active at least once", "never active"],
    )  # fmt: skip
    sizes = comparison.sizes(entry, variant)
    if sizes:
        t = np.linspace(0, 1, 1001)
        density = random_directions.mcs_pdf(t, comparison.study.d_in, sizes)
        axis.plot(t, density * known.sum() / BINS, color="black", lw=1, label="random directions")
    axis.axvline(threshold, color="0.4", lw=0.8, ls="--", label=f"threshold {threshold:g}")
    above = int((values[known] > threshold).sum())
    share = above / max(int(known.sum()), 1)
    partners = "/".join(str(p.size) for p in comparison.partners(entry, variant.against))
    if long_title:
        kind = "alive" if variant.features == "alive" else "features"
        title = f"{entry.size} in {partners}: {above} of {known.sum()} {kind} above {threshold:g}"
        title += f" ({share:.0%})"
    else:
        title = f"{above} ({share:.0%})"
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_xlim(0, 1)
    # Room for the tallest bar of the data only: the random curve may leave the panel.
    counts, _ = np.histogram(clipped[known], bins=edges)
    axis.set_ylim(0, max(1.0, 1.08 * counts.max()))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def histograms(comparison: Comparison, chain: Chain) -> Figure:
    """MCS of each size of a chain with the exact random curve (the post's figures 2 and 3).

    All features on the left and alive ones on the right; two sizes a row if every feature fired.
    """
    shown, entries = comparison.shown, chain.entries[:-1]
    if all(entry.alive.all() for entry in chain.entries):
        panels = [(entry, shown) for entry in entries]
    else:
        panels = [
            (entry, Variant(shown.matching, shown.against, features))
            for entry in entries
            for features in ("all", "alive")
        ]
    rows = (len(panels) + 1) // 2
    figure, axes = _grid(rows, 2, 0.9 + 1.55 * rows, sharex=True)
    for axis, (entry, variant) in zip(axes.flat, panels, strict=False):
        _histogram(axis, comparison, entry, variant, long_title=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("features")
    for axis in axes.flat[max(len(panels) - 2, 0) : len(panels)]:  # the lowest of each column
        axis.set_xlabel("MCS")
        axis.tick_params(labelbottom=True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(
        f"MCS with larger dictionaries, {_named(chain)}\n"
        f"{str(Variant(shown.matching, shown.against, 'all')).rpartition(',')[0]}"
    )
    return figure


def histogram_grid(comparison: Comparison, chains: Sequence[Chain]) -> Figure:
    """Small histograms, a row a size and a column an L1; for the appendix."""
    sizes = sorted({entry.size for chain in chains for entry in chain.entries[:-1]})
    figure, axes = _grid(len(sizes), len(chains), 0.9 + 1.2 * len(sizes), sharex=True)
    for column, chain in enumerate(chains):
        by_size = {entry.size: entry for entry in chain.entries[:-1]}
        for row, size in enumerate(sizes):
            axis = axes[row, column]
            if size not in by_size:
                axis.set_visible(False)
                continue
            _histogram(axis, comparison, by_size[size], comparison.shown, long_title=False)
            axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
            axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            if row == 0:
                axis.set_title(
                    f"L1 {l1_label(chain.l1)}\n{axis.get_title('left')}", loc="left", fontsize=8
                )
            if row == len(sizes) - 1:
                axis.set_xlabel("MCS")
            if column == 0:
                axis.set_ylabel(f"size {size}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.suptitle(f"MCS by dictionary size and L1\n{comparison.shown}")
    return figure


def random_mcs(simulated: Sequence[tuple[int, int, Floats]], d: int) -> Figure:
    """Simulated MCS of random dictionaries (n, m, values) against the exact density (fig. 3.5)."""
    figure, axes = _grid(1, 1, 3.0)
    axis = axes[0, 0]
    low = min(float(values.min()) for *_, values in simulated)
    high = max(float(values.max()) for *_, values in simulated)
    t = np.linspace(max(low - 0.03, -1), min(high + 0.03, 1), 800)
    for (n, m, values), colour in zip(simulated, _shades(len(simulated)), strict=True):
        axis.hist(values, bins=40, density=True, color=colour, alpha=0.25, linewidth=0)
        axis.plot(
            t, random_directions.max_pdf(t, d, m), color=colour, lw=1.4,
            label=f"{n} in {m}: {random_directions.max_mean(d, m):.3f} / {values.mean():.3f}",
        )  # fmt: skip
    axis.legend(title="sizes: exact / simulated mean", loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_xlabel("MCS of random directions")
    axis.set_ylabel("density")
    axis.set_title(f"Random directions in {d} dimensions: exact law (lines) and simulation (bars)")
    return figure


# --- agreement ------------------------------------------------------------------------------------


def _by_frequency(
    axis: Axes,
    groups: Sequence[tuple[str, Floats, NDArray[np.bool_]]],
    colours: str = "viridis",
) -> None:
    """Share found again against firing frequency, a line a group; "never" stands on the left."""
    binned = [(label, by_frequency(frequency, found)) for label, frequency, found in groups]
    rarest = min((b.low for _, bins in binned for b in bins if b.low > 0), default=0.1)
    never_at = rarest / 12
    any_never = any(b.low == 0 for _, bins in binned for b in bins)
    shades = _shades(len(binned), colours)
    for i, ((label, bins), colour) in enumerate(zip(binned, shades, strict=True)):
        nudge = 1.06 ** (i - (len(binned) - 1) / 2)  # so that error bars do not hide each other
        x = np.array([np.sqrt(b.low * b.high) if b.low else never_at for b in bins]) * nudge
        share = np.array([b.found / b.n for b in bins])
        low, high = np.array([wilson(b.found, b.n) for b in bins]).T
        bars = np.maximum([share - low, high - share], 0)
        axis.errorbar(
            x, share, yerr=bars, color=colour, lw=1, elinewidth=0.8, marker="o", ms=3, label=label
        )
    axis.set_xscale("log")
    axis.set_xlim(never_at / 2 if any_never else rarest / 1.5, 1.2)
    decades = range(round(np.log10(rarest)), 1)
    labels = [f"$10^{{{k}}}$" if k else "1" for k in decades]
    axis.set_xticks([10.0**k for k in decades], labels)
    if any_never:
        axis.axvline(never_at * 4, color="0.8", lw=0.8)
        axis.set_xticks([never_at, *(10.0**k for k in decades)], ["never", *labels])
    axis.minorticks_off()
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel("share of rows on which a feature is active")


def size_agreement(comparison: Comparison, chain: Chain) -> Figure:
    """Found again in larger dictionaries: by firing frequency, and along the chain of sizes."""
    threshold = comparison.settings.threshold
    figure, axes = _grid(1, 2, 3.2)
    groups = []
    for entry in chain.entries[:-1]:
        values = comparison.mcs(entry)
        known = np.isfinite(values)
        frequency = entry.frequency[known]
        groups.append((str(entry.size), frequency, values[known] > threshold))
    _by_frequency(axes[0, 0], groups)
    axes[0, 0].set_ylabel(f"features with MCS above {threshold:g}")
    axes[0, 0].set_title("Found again, by firing frequency")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="dictionary size", loc="outside lower center", ncols=8)

    axis = axes[0, 1]
    sizes = [entry.size for entry in chain.entries]
    for start, colour in zip(range(len(sizes) - 1), _shades(len(sizes) - 1), strict=True):
        run = found_along(comparison, chain, start)
        run = run[run >= 0]
        steps = range(len(sizes) - start)
        share = [float((run >= k).mean()) if len(run) else np.nan for k in steps]
        axis.plot(range(start, len(sizes)), share, color=colour, marker="o", ms=3, lw=1)
    axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axis.tick_params(axis="x", rotation=0 if len(sizes) <= 6 else 45)
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel("up to this dictionary size")
    axis.set_ylabel("found in every larger one")
    axis.set_title("Chains of sizes")
    figure.suptitle(f"Features found again in larger dictionaries, {_named(chain)}")
    return figure


def seed_agreement(
    pairs: Sequence[SeedPair], best: Sequence[SeedPair], random: dict[int, float]
) -> Figure:
    """PW-MCC and shared fraction by size, and shared fraction by firing frequency.

    The last is drawn for the pairs in `best`. `random` is the PW-MCC of random directions by
    dictionary size.
    """
    rows = pd.DataFrame(
        {
            "size": [pair.first.size for pair in pairs],
            "L1": [l1_label(pair.first.l1) for pair in pairs],
            "order": [pair.first.l1 for pair in pairs],
            "kind": [pair.first.family or "all" for pair in pairs],
            "PW-MCC": [pair.pw_mcc for pair in pairs],
            "shared fraction": [float(pair.shared.mean()) for pair in pairs],
        }
    ).sort_values(["kind", "order", "size"])
    levels = list(dict.fromkeys(rows.sort_values("order")["L1"]))
    several = rows["kind"].nunique() > 1
    figure, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.6))
    for axis, value in zip(axes[:2], ("PW-MCC", "shared fraction"), strict=True):
        sns.lineplot(
            rows, x="size", y=value, hue="L1", hue_order=levels, style="kind" if several else None,
            palette=_shades(len(levels)), markers=several, marker=None if several else "o",
            markersize=5, errorbar=("ci", 95) if len(pairs) < 500 else None, ax=axis,
        )  # fmt: skip
        axis.set_xscale("log", base=2)
        sizes = sorted(rows["size"].unique())
        axis.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
        axis.minorticks_off()
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("dictionary size")
        axis.set_ylabel("")
        axis.set_title(value)
    shown = sorted(set(random) & set(rows["size"]))
    axes[0].plot(shown, [random[s] for s in shown], color="0.5", ls=":", label="random directions")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[1].get_legend().remove()
    axes[0].get_legend().remove()
    columns = -(-len(labels) // 3)
    figure.legend(
        handles, labels, title="L1 (left and middle)", loc="outside lower left", ncols=columns
    )

    groups = []
    for size in sorted({pair.first.size for pair in best}):
        chosen = [pair for pair in best if pair.first.size == size]
        frequency = np.concatenate([pair.first.frequency for pair in chosen])
        groups.append((str(size), frequency, np.concatenate([pair.shared for pair in chosen])))
    _by_frequency(axes[2], groups, "plasma")
    axes[2].set_xlabel("share of rows active")
    axes[2].set_title("shared fraction by frequency")
    handles, labels = axes[2].get_legend_handles_labels()
    columns = -(-len(labels) // 3)
    figure.legend(handles, labels, title="size (right)", loc="outside lower right", ncols=columns)
    figure.suptitle("How much another seed would have learned")
    return figure


# --- the remaining --------------------------------------------------------------------------------


def ridge(ridges: Sequence[Ridge]) -> Figure:
    """Where MMCS peaks: L1 against dictionary size, with the fitted line (figs. 4 and 5)."""
    figure, axes = _grid(1, 1, 3.2)
    axis = axes[0, 0]
    for item, colour in zip(ridges, (BLUE, ORANGE, GREEN, RED, PURPLE), strict=False):
        sizes = np.array([p.dict_size for p in item.peaks], dtype=float)
        best = np.array([p.l1 for p in item.peaks])
        inside = np.array([p.interior for p in item.peaks])
        label = item.family or "best L1"
        if item.slope is not None and item.intercept is not None and item.interval is not None:
            label += f"\nslope {item.slope:.2f} [{item.interval[0]:.2f}, {item.interval[1]:.2f}]"
            axis.plot(sizes, np.exp(item.intercept) * sizes**item.slope, color=colour, lw=1)
        axis.plot(sizes[inside], best[inside], "o", color=colour, ms=5, label=label)
        axis.plot(sizes[~inside], best[~inside], "o", color=colour, ms=5, mfc="none")
    everything = sorted({p.dict_size for item in ridges for p in item.peaks})
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    grid = sorted({l1 for item in ridges for l1 in item.grid})
    axis.set_ylim(grid[0] / 1.3, grid[-1] * 1.3)
    ticks = grid[:: -(-len(grid) // 9)]
    axis.set_yticks(ticks, [l1_label(l1) for l1 in ticks])
    axis.set_xticks(everything, [str(size) for size in everything])
    axis.minorticks_off()
    axis.set_xlabel("dictionary size")
    axis.set_ylabel("L1 with the best MMCS")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title("Ridge of the heat map (open circles: at the edge of the grid, not fitted)")
    return figure


def ridge_heatmaps(cells: pd.DataFrame, ridges: Sequence[Ridge], shown: Variant) -> Figure:
    """MMCS by size and L1, a panel a ridge, with its peaks and its line (figs. 4 and 5)."""
    tables = [
        cells[cells["family"] == item.family].pivot_table(
            index="dict_size", columns="l1", values="mmcs"
        )
        for item in ridges
    ]
    widths = [len(table.columns) for table in tables]
    figure, axes = plt.subplots(
        1, len(ridges), figsize=(WIDTH, 1.7 + 0.42 * len(tables[0])), width_ratios=widths,
        squeeze=False,
    )  # fmt: skip
    for axis, item, table in zip(axes[0], ridges, tables, strict=True):
        sns.heatmap(
            table, ax=axis, annot=True, fmt=".2f", annot_kws={"size": 8}, cmap="viridis",
            vmin=0, vmax=1, linewidths=0.5, cbar=False,
            xticklabels=[l1_label(float(l1)) for l1 in table.columns],
        )  # fmt: skip
        # Cells are one wide with their centres at .5, so logarithms become positions by rank.
        ranks = np.arange(len(table.columns)) + 0.5
        grid = np.log(table.columns.to_numpy(float))
        rows = {size: row + 0.5 for row, size in enumerate(table.index)}
        for peak in item.peaks:
            axis.plot(
                np.interp(np.log(peak.l1), grid, ranks), rows[peak.dict_size] + 0.33, "o",
                color=RED, ms=5, mfc=RED if peak.interior else "none", clip_on=False,
            )  # fmt: skip
        title = item.family
        if item.slope is not None and item.intercept is not None and item.interval is not None:
            line = item.intercept + item.slope * np.log(table.index.to_numpy(float))
            places = np.interp(line, grid, ranks, left=np.nan, right=np.nan)
            axis.plot(places, [y + 0.33 for y in rows.values()], color=RED, lw=1.2)
            title += f"\nslope {item.slope:.2f} [{item.interval[0]:.2f}, {item.interval[1]:.2f}]"
        axis.set_title(title)
        axis.set_xlabel("L1 coefficient")
        axis.set_ylabel("dictionary size" if axis is axes[0, 0] else "")
        axis.tick_params(axis="y", rotation=0)
        axis.tick_params(axis="x", rotation=45)
    figure.suptitle(f"MMCS with larger dictionaries\n{shown}")
    return figure


def effective_neurons(
    groups: Sequence[tuple[int, Floats, Floats]], d: int, threshold: float
) -> Figure:
    """Effective neurons of features with high and low MCS, (size, high, low), and random ones."""
    figure, axes = _grid(1, 2, 3.2, width_ratios=[1, 1.2])
    mean, (sd, _) = sparsity.random_simpson(d), sparsity.random_spread(d)
    axis = axes[0, 0]
    for index, (colour, shift) in enumerate(((BLUE, -0.1), (ORANGE, 0.1)), start=1):
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
    for part, label, colour in ((high, f"MCS > {threshold:g}", BLUE), (low, "the others", ORANGE)):
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


def frontier(table: pd.DataFrame) -> Figure:
    """Unexplained variance against active features a row; one line a size, from L1 to L1."""
    figure, axes = _grid(1, 1, 3.6)
    axis = axes[0, 0]
    sizes = sorted(table["dict_size"].unique())
    families = list(dict.fromkeys(table["family"]))
    colours = dict(zip(sizes, _shades(len(sizes)), strict=True))
    markers = dict(zip(families, ["o", "s", "^", "D", "v", "P", "X", "*"], strict=False))
    for (family, size, _), row in table.groupby(["family", "dict_size", "seed"], sort=True):
        row = row.sort_values("l1")
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
        axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(0, None)
    axis.set_xlabel("L0: features active on a row, mean")
    axis.set_ylabel("FVU: share of variance unexplained")
    axis.legend(title="dictionary size", loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title("Sparsity against reconstruction; towards the lower left is better")
    return figure
