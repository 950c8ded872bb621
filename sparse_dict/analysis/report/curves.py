"""A measure against sparsity: dictionaries beside simpler bases."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.report import figures

MARKERS = "os^DvPX*"  # one per family


def curves(
    dictionaries: pd.DataFrame,
    baselines: pd.DataFrame | None,
    value: str,
    label: str,
    title: str,
    limits: tuple[float, float | None] = (0, 1.05),
) -> Figure:
    """`value` against L0: a marked line per dictionary size, a plain line per baseline.

    A line joins dictionaries that differ only in how sparse they were made; families have markers
    of their own, and bars where there are columns `value`_low and `value`_high. Needs the columns
    family, dict_size, level, seed, l0 and `value`; baseline, l0 and `value`.
    """
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 3.8))
    sizes = sorted(dictionaries["dict_size"].unique())
    shades = dict(zip(sizes, sns.color_palette("viridis", len(sizes)).as_hex(), strict=True))
    families = list(dict.fromkeys(dictionaries["family"]))
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(families)}
    for (family, size, _), line in dictionaries.groupby(["family", "dict_size", "seed"]):
        line = line.sort_values("level")
        marker = markers[str(family)]
        axis.plot(line["l0"], line[value], color=shades[size], marker=marker, ms=4, lw=0.8)
        if f"{value}_low" in line:
            ends = line[f"{value}_low"], line[f"{value}_high"]
            axis.vlines(line["l0"], *ends, color=shades[size], lw=0.8)
    for size in sizes:
        axis.plot([], [], color=shades[size], marker="o", ms=4, lw=0.8, label=f"dictionary, {size}")
    for family in families if len(families) > 1 else []:
        marker = markers[family]
        axis.plot([], [], color="0.4", ls="", marker=marker, ms=4, label=family or "(plain)")
    colours = (figures.GREY, "black", figures.ORANGE, figures.RED, figures.PURPLE)
    styles = ("-", ":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
    others = () if baselines is None else baselines.groupby("baseline", sort=False)
    for i, (name, line) in enumerate(others):
        axis.plot(line["l0"], line[value], color=colours[i], ls=styles[i], lw=1.3, label=name)
    axis.set_ylim(*limits)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    codes = "L0: features active on a row, mean"
    axis.set_xlabel("active codes in a row (dictionaries: L0, mean)" if others else codes)
    axis.set_ylabel(label)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title(title)
    return figure
