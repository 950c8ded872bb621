"""Dictionaries of other studies, and of the other sites of a harvest, against those of this one."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.other_activations import SEEDS, Row, measure
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Table
from sparse_dict.analysis.study import everywhere, setting

COLOURS = {"identity": figures.GREY, "permutation": figures.ORANGE, "rotation": figures.BLUE}


def show(context: Context) -> Blocks:
    """Every site and the next; then other studies."""
    others = context.tables.others
    if context.study.beside:
        every, order = context.tables.dictionaries, [one.at for one in everywhere(context.study)]
        shown = every["site"].map({at: one.family for at, one in context.comparisons.items()})
        every = every[every["family"] == shown]
        every = every.sort_values("site", key=lambda at: at.map(order.index), kind="stable")
        larger = every[every["next_size"] > 0].assign(panel=every["site"])
        yield (
            f"All other sections are about {context.study.at}, one of {every['site'].nunique()} "
            "sites that the study has dictionaries of (comparison.site chooses another)."
        )
        if len(larger):
            title = f"MMCS with larger dictionaries\n{context.comparison.shown}"
            figure = figures.heatmaps(larger, "mmcs", title, "MMCS", ".2f")
            yield context.figure("sites_mmcs", figure)
        columns = ["fvu", "l0", "dead", "mmcs", "random_mmcs", "gaussian_mmcs", "shared"]
        at = every[every["chosen"]]
        at = at.assign(sparsity=[*map(setting, at["axis"], at["level"])])
        means = at.groupby(["site", "size", "sparsity"], sort=False)[columns].mean()
        yield Table("Every site at its chosen level, means over seeds", means.reset_index())
        if "sites" in others:
            yield context.figure("sites_agreement", draw_sites(others["sites"]))
            yield Table("Features of one site in the next", others["sites"])
    if "studies_maps" in others:
        maps = others["studies_maps"].dropna(axis="columns", how="all")
        if "missing" in maps:
            yield from map(MISSING.format, maps.pop("missing").dropna())
        if "studies" in others:
            maps, table = maps.dropna(subset="explained"), others["studies"]
            yield context.figure("studies", draw_studies(maps, table))
            yield Table("Maps between activations", maps)
            yield Table("Agreement after each map", table, fold=len(table) > 24)


def draw_sites(table: pd.DataFrame) -> Figure:
    """Correlation of codes from site to site, with another seed, and by chance; a line a size."""
    codes = table[table["map"] == "codes"]
    nexts = codes[codes["next"] != SEEDS]
    where = dict(zip(nexts["site"], nexts["site"] + "\nto " + nexts["next"], strict=True))
    chance = nexts.assign(correlation=nexts["chance"])
    parts = {"the next site": nexts, SEEDS: codes[codes["next"] == SEEDS], "chance": chance}
    every = [part.assign(against=name) for name, part in parts.items()]
    rows = pd.concat(every, ignore_index=True).replace({"site": where})
    figure, axis = plt.subplots(figsize=(min(figures.WIDTH, 3.2 + 1.4 * len(where)), 3.4))
    sns.lineplot(
        rows, x="site", y="correlation", hue="size", style="against", markers=True,
        palette=figures.shades(rows["size"].nunique()), ax=axis,
    )  # fmt: skip
    axis.set(ylim=(-0.03, 1.03), xlabel="", ylabel="mean correlation of codes")
    return figures.below(figure, axis, 4)


def draw_studies(maps: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """What each map explains, MMCS after it, and the correlation of codes."""
    figure, ((left, *others),) = figures.grid(1, 3, 3.6)
    hue: Row = {"hue": "map", "palette": COLOURS | {"codes": figures.GREEN}}
    sns.barplot(maps, x="study", y="explained", ax=left, legend=False, **hue)
    left.axhline(0, color="black", lw=0.8)
    left.set_ylim(max(-1.0, min(0.0, float(maps["explained"].min()))), 1.02)
    left.set(ylabel="variance explained", xlabel="", title="Activations")
    left.tick_params(axis="x", rotation=30 if maps["study"].nunique() > 1 else 0)
    titles = {"mmcs": "MMCS", "correlation": "Correlation of codes"}
    axes = figures.panels(others, table, titles, style="study", markers=True, **hue)
    of_others = table[table["study"] != SEEDS].groupby("size")
    figures.chance(axes["mmcs"], of_others[["random_mmcs", "gaussian_mmcs"]].mean())
    return figures.below(figure, axes["mmcs"], 5)


ANALYSIS = Analysis(
    "elsewhere", show, measure=measure, pairs=True,
    applies=lambda context: bool(context.others or context.study.beside),
)  # fmt: skip
