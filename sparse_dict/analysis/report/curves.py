"""A measure against sparsity: dictionaries beside simpler bases."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.report import figures

COLOURS = (figures.GREY, "black", figures.ORANGE, figures.RED, figures.PURPLE)  # of bases


def curves(
    dictionaries: pd.DataFrame,
    baselines: pd.DataFrame | None,
    value: str,
    label: str,
    limits: tuple[float, float | None] = (0, 1.05),
) -> Figure:
    """`value` against L0: a marked line per dictionary size, a plain line per baseline.

    A line joins dictionaries that differ only in how sparse they were made; families have markers
    of their own, and bars where there are columns `value`_low and `value`_high. Needs the columns
    family, size, level, seed, l0 and `value`; baseline, l0 and `value`.
    """
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 3.8))
    shown = dictionaries.sort_values(["size", "level"])
    shown = shown.assign(
        dictionary=shown["size"].map("dictionary, {:g}".format),
        family=shown["family"].replace("", "(plain)"),
    )
    names = shown["dictionary"].unique()
    colours = dict(zip(names, sns.color_palette("viridis", len(names)), strict=True))
    several = {"style": "family", "markers": True, "dashes": False}
    sns.lineplot(
        shown, x="l0", y=value, hue="dictionary", palette=colours, units="seed", estimator=None,
        sort=False, ms=4, mew=0, lw=0.8, ax=axis,
        **(several if shown["family"].nunique() > 1 else {"marker": "o"}),
    )  # fmt: skip
    if f"{value}_low" in shown:
        ends = shown[f"{value}_low"], shown[f"{value}_high"]
        axis.vlines(shown["l0"], *ends, color=shown["dictionary"].map(colours), lw=0.8)
    if baselines is not None:
        palette = COLOURS[: baselines["baseline"].nunique()]
        sns.lineplot(
            baselines, x="l0", y=value, hue="baseline", style="baseline", palette=palette,
            lw=1.3, ax=axis,
        )  # fmt: skip
    axis.set_ylim(*limits)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    codes = "L0: features active on a row, mean"
    both = "active codes in a row (dictionaries: L0, mean)"
    axis.set(xlabel=codes if baselines is None else both, ylabel=label)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
