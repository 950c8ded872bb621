"""Dictionaries of other studies, and of the other sites of a harvest, against those of this one.

Other studies are other layers, checkpoints or language models. All are compared on the same tokens:
after maps between the activations, and by codes, which need none.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.activations.side_by_side import paired
from sparse_dict.analysis import harvested
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measures import Floats, alignment
from sparse_dict.analysis.measures.two_dictionaries import of_codes, of_directions
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Table
from sparse_dict.analysis.study import Entry, Study, everywhere, seed_groups, setting
from sparse_dict.config.sites import RESIDUAL
from sparse_dict.errors import UserError

ROWS = 32_768  # tokens that maps are fitted and codes of two studies compared on
SEEDS = "another seed, same model"  # what the agreement of models is measured against
COLOURS = {"identity": figures.GREY, "permutation": figures.ORANGE, "rotation": figures.BLUE}
Row = dict[str, Any]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Agreement with each other study after maps of activations, and of each site with the next."""
    main, own = context.comparison.main, context.comparison.shown_of()
    found: dict[str, list[Row]] = {"studies_maps": [], "studies": [], "sites": []}
    for other in context.others:
        folder = other.folder.resolve()
        name = {"study": folder.parent.name if folder.name == "sae" else folder.name}
        try:
            read = harvested.activations_of(other, context.config)
            x, y = paired(context.activations, read, ROWS)
        except UserError as error:
            found["studies_maps"].append(name | {"missing": str(error)})
            continue
        fitted, of = alignment.fit(x, y), name | {"tokens": len(x)}
        known = {key: matrix for key, (matrix, _) in fitted.items()}
        told = [of | {"map": key, "explained": share} for key, (_, share) in fitted.items()]
        found["studies_maps"] += told
        alike = [c for c in other.chains if main and (c.axis, c.level) == (main.axis, main.level)]
        shown = alike[0].entries if alike else None
        theirs = shown or Comparison(other, context.config.comparison).shown_of()
        found["studies"] += _compared(context, name, own, theirs, (x, y), known)
    if found["studies"]:
        x = context.evaluation_rows()
        found["studies"] += _another_seed(context, {"study": SEEDS}, context.study, own, x)
    every = everywhere(context.study) if context.study.beside else []
    single = [study for study in every if study.site is not None and study.target is None]
    for one, two in pairwise(single):
        x, y = context.sample_of(one), context.sample_of(two)
        own, theirs = (context.comparisons[study.at].shown_of() for study in (one, two))
        residual = RESIDUAL.issuperset(str(s.site).rpartition("/")[2] for s in (one, two))
        maps = {"identity": np.eye(one.d_in)} if residual and one.d_in == two.d_in else {}
        of = {"site": one.at, "next": two.at}
        found["sites"] += _compared(context, of, own, theirs, (x, y), maps)
        found["sites"] += _another_seed(context, of | {"next": SEEDS}, one, own, x)
    return {name: pd.DataFrame(rows) for name, rows in found.items() if rows}


def _another_seed(
    context: Context, of: Row, study: Study, own: Sequence[Entry], x: Floats
) -> Iterator[Row]:
    """The dictionaries against those of another seed that are alike but for that."""
    maps = {"identity": np.eye(study.d_in)}
    for first, second, *_ in seed_groups(study):
        if first in own:
            yield from _compared(context, of, [first], [second], (x, x), maps)


def _compared(
    context: Context, of: Row, own: Sequence[Entry], theirs: Sequence[Entry],
    rows: tuple[Floats, Floats], maps: Mapping[str, Floats],
) -> Iterator[Row]:  # fmt: skip
    """Each dictionary against the other that is nearest in size: after each map, and by codes.

    Rows begin with `of`; `maps` are (d, e); `rows` (n, d) and (n, e) are of the same tokens.
    """
    bar, limit = context.config.comparison.threshold, context.config.comparison.match_limit
    small, there = ([entry for entry in of if entry.size <= limit] for of in (own, theirs))
    for first in small if there else ():
        second = min(there, key=lambda e: abs(e.size - first.size))
        of = of | {"size": first.size, "other": second.size}
        for name, matrix in maps.items():
            mine = first.encoder @ matrix, first.decoder @ matrix
            other = second.encoder, second.decoder
            found = of_directions(mine, other, (first.alive, second.alive), bar)
            yield of | {"map": name} | found
        one, two = (e.trained.dictionary for e in (first, second))
        yield of | {"map": "codes"} | of_codes(one.encode(rows[0]), two.encode(rows[1]), bar)


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
