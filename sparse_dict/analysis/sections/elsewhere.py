"""Dictionaries of other studies, and of the other sites of a harvest, against those of this one.

Other studies are other layers, checkpoints or language models. All are compared on the same tokens:
after maps between the activations, and by codes, which need none.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis import harvested
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import alignment, gaussian_rows
from sparse_dict.analysis.measures.alignment import Alignment
from sparse_dict.analysis.measures.mcs import Floats, match_codes, max_cosine, normalised
from sparse_dict.analysis.measures.two_dictionaries import agree
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Block, Table
from sparse_dict.analysis.same_tokens import paired
from sparse_dict.analysis.study import Entry, Study, everywhere, seed_groups, setting
from sparse_dict.config.sites import RESIDUAL
from sparse_dict.errors import UserError

ROWS = 32_768  # tokens that maps are fitted and codes of two studies compared on
SEEDS = "another seed, same model"  # what the agreement of models is measured against
COLOURS = {"identity": figures.GREY, "permutation": figures.ORANGE, "rotation": figures.BLUE}


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Agreement with each other study, and of each site with the next one.

    Raises:
        UserError: the activations of a site are not there.
    """
    maps, studies = _studies(context)
    found = {"studies_maps": maps, "studies": studies, "sites": _sites(context)}
    return {name: pd.DataFrame(rows) for name, rows in found.items() if rows}


def _studies(context: Context) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How far maps lead from this study's activations to each other's, and agreement after them."""
    bar, main = context.config.comparison.threshold, context.comparison.main
    own = context.comparison.shown_of()
    maps: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for other in context.others:
        name = label(other)
        try:
            read = harvested.activations_of(other, context.config)
            x, y = paired(context.activations, read, ROWS)
        except UserError as error:
            maps.append({"study": name, "missing": str(error)})
            continue
        fitted = alignment.fit(x, y)
        of = {"study": name, "tokens": len(x)}
        maps += [of | {"map": m.name, "explained": m.explained} for m in fitted]
        alike = [c for c in other.chains if main and (c.axis, c.level) == (main.axis, main.level)]
        compared = Comparison(other, context.config.comparison)
        theirs = alike[0].entries if alike else compared.shown_of()
        for first, second in _nearest(context, own, theirs):
            pair = {"study": name, "size": first.size, "other": second.size}
            rows += [pair | {"map": m.name} | mapped(first, second, m, bar) for m in fitted]
            rows.append(pair | {"map": "codes"} | coded((first, second), (x, y), bar))
    for first, second in _twins(context.study).items():
        if rows and first in own:
            x = context.evaluation_rows()
            pair = {"study": SEEDS, "size": first.size, "other": second.size}
            rows.append(pair | {"map": "identity"} | mapped(first, second, None, bar))
            rows.append(pair | {"map": "codes"} | coded((first, second), (x, x), bar))
    return maps, rows


def _sites(context: Context) -> list[dict[str, Any]]:
    """Agreement of the dictionaries of each site with those of the next, beside another seed."""
    every = everywhere(context.study) if context.study.beside else []
    single = [study for study in every if study.site is not None and study.target is None]
    bar, rows = context.config.comparison.threshold, []
    for one, other in pairwise(single):
        x, y = context.sample_of(one), context.sample_of(other)
        twins, own, theirs = (
            _twins(one), *(context.comparisons[study.at].shown_of() for study in (one, other))
        )  # fmt: skip
        residual = RESIDUAL.issuperset(str(s.site).rpartition("/")[2] for s in (one, other))
        for first, second in _nearest(context, own, theirs):
            row: dict[str, Any] = {"site": one.at, "next": other.at, "dict_size": first.size}
            row |= {"other": second.size, **coded((first, second), (x, y), bar)}
            if twin := twins.get(first):
                row["other_seed"] = coded((first, twin), (x, x), bar)["correlation"]
            if residual and one.d_in == other.d_in:  # which share a basis
                row |= mapped(first, second, None, bar)
            rows.append(row)
    return rows


def label(study: Study) -> str:
    """A study's name: that of the folder around its dictionaries."""
    folder = study.folder.resolve()
    return folder.parent.name if folder.name == "sae" else folder.name


def _twins(study: Study) -> dict[Entry, Entry]:
    """The dictionary of another seed that is alike, of each of the lowest seed that has one."""
    return {group[0]: group[1] for group in seed_groups(study)}


def _nearest(
    context: Context, own: Sequence[Entry], theirs: Sequence[Entry]
) -> list[tuple[Entry, Entry]]:
    """Each dictionary with that of the others which is nearest in size."""
    limit = context.config.comparison.match_limit
    there = [entry for entry in theirs if entry.size <= limit]
    return [
        (entry, min(there, key=lambda e: abs(e.size - entry.size)))
        for entry in own
        if there and entry.size <= limit
    ]


def mapped(first: Entry, second: Entry, how: Alignment | None, bar: float) -> dict[str, float]:
    """Agreement of two dictionaries, the first one's directions mapped into the other's space."""
    read, written = (
        rows if how is None else rows @ how.matrix for rows in (first.encoder, first.decoder)
    )
    one, other = (read, written), (second.encoder, second.decoder)
    small, large = sorted((one, other), key=lambda rows: len(rows[1]))
    found = agree(small, large, bar)
    way = found.larger if first.size > second.size else found.smaller
    rows, others = normalised(written), normalised(second.decoder)
    living = max_cosine(rows[first.alive], others[second.alive]) > bar
    laws = [gaussian_rows.Law.of(part) for part in (rows, others)]
    return {
        "mmcs": way.mmcs,
        "random_mmcs": way.random_mmcs,
        "gaussian_mmcs": float(gaussian_rows.mcs(laws[0], laws[1:], 2048).mean()),
        "above": way.above / way.features,
        "above_alive": float(living.sum() / max(len(living), 1)),
        "random_above": way.random_above / way.features,
        "pw_mcc": found.pw_mcc,
        "random_pw_mcc": found.random_pw_mcc,
        "shared_fraction": found.shared_fraction,
    }


def coded(
    entries: tuple[Entry, Entry], rows: tuple[Floats, Floats], bar: float
) -> dict[str, float]:
    """Correlations of codes on rows of the same tokens, matched one to one.

    Of features that are active on some of the rows; the dictionary that has fewer counts. Chance:
    the same with the second one's rows in another order.
    """
    every = [e.trained.dictionary.encode(x) for e, x in zip(entries, rows, strict=True)]
    one, other = [codes[:, (codes > 0).any(0)] for codes in every]

    def matched(*both: Floats) -> Floats:
        return match_codes(*sorted(both, key=lambda codes: codes.shape[1]))[1]

    correlation = matched(one, other)
    return {
        "active": len(correlation),
        "correlation": float(correlation.mean()),
        "correlated": float((correlation > bar).mean()),
        "chance": float(matched(one, np.roll(other, len(other) // 2, axis=0)).mean()),
    }


# --- what is shown --------------------------------------------------------------------------------


def show(context: Context) -> Iterator[Block]:
    """Every site and the next; then other studies."""
    others = context.tables.others
    if context.study.beside:
        every = of_sites(context)
        larger = every[every["next_size"] > 0].assign(panel=every["site"])
        yield (
            f"All other sections are about {context.study.at}, one of {every['site'].nunique()} "
            "sites that the study has dictionaries of (comparison.site chooses another)."
        )
        if len(larger):
            title = f"MMCS with larger dictionaries\n{context.comparison.shown}"
            figure = figures.heatmaps(larger, "mmcs", title, "MMCS", ".2f")
            yield context.figure("sites_mmcs", figure)
        yield Table("Every site at its chosen level, means over seeds", by_site(every))
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


def of_sites(context: Context) -> pd.DataFrame:
    """The dictionaries of each site's main family, in the order of the sites."""
    every = context.tables.dictionaries
    parts = [
        every[(every["site"] == one.at) & (every["family"] == context.comparisons[one.at].family)]
        for one in everywhere(context.study)
    ]
    return pd.concat(parts, ignore_index=True)


def by_site(every: pd.DataFrame) -> pd.DataFrame:
    """A row a size of each site, at the level that is chosen for it."""
    groups = every[every["chosen"]].groupby(["site", "size"], sort=False)
    columns = ["fvu", "l0", "dead", "mmcs", "random_mmcs", "gaussian_mmcs", "shared"]
    table = groups[columns].mean().reset_index()
    sparsity = [setting(*of) for of in groups[["axis", "level"]].first().itertuples(index=False)]
    table.insert(2, "sparsity", sparsity)
    return table


def draw_sites(table: pd.DataFrame) -> Figure:
    """Correlation of codes from site to site, a line a size."""
    pairs = list(dict.fromkeys(zip(table["site"], table["next"], strict=True)))
    sizes = sorted(table["dict_size"].unique())
    width = min(figures.WIDTH, 3.2 + 1.4 * len(pairs))
    figure, axis = plt.subplots(figsize=(width, 3.4))
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        part = table[table["dict_size"] == size]
        at = [pairs.index(pair) for pair in zip(part["site"], part["next"], strict=True)]
        axis.plot(at, part["correlation"], "o-", color=colour, ms=4, lw=1.2, label=str(size))
        if "other_seed" in part:
            axis.plot(at, part["other_seed"], "^--", color=colour, ms=4, lw=0.8)
        axis.plot(at, part["chance"], ":", marker=".", color=colour, lw=0.8)
    axis.set_xticks(range(len(pairs)), [f"{one}\nto {other}" for one, other in pairs])
    axis.set(xlim=(-0.5, len(pairs) - 0.5), ylim=(-0.03, 1.03))
    axis.set_ylabel("mean correlation of codes")
    figures.below(figure, axis, 8, "dictionary size")
    figure.suptitle("Agreement of one site's features with the next")
    return figure


def draw_studies(maps: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """What each map explains, MMCS after it, and the correlation of codes."""
    figure, ((left, middle, right),) = figures.grid(1, 3, 3.6)
    style: dict[str, Any] = {"hue": "map", "hue_order": [*COLOURS], "palette": COLOURS}
    sns.barplot(maps, x="study", y="explained", ax=left, legend=False, **style)
    left.axhline(0, color="black", lw=0.8)
    left.set_ylim(max(-1.0, min(0.0, float(maps["explained"].min()))), 1.02)
    left.set(ylabel="variance explained", xlabel="", title="Activations")
    left.tick_params(axis="x", rotation=30 if maps["study"].nunique() > 1 else 0)
    codes, others = table["map"] == "codes", table["study"] != SEEDS
    lines: dict[str, Any] = {"x": "size", "style": "study", "markers": True, "dashes": False}
    sns.lineplot(table[others & ~codes], y="mmcs", ax=middle, **style, **lines)
    sns.lineplot(table[others & codes], y="correlation", color=figures.GREEN, ax=right, **lines)
    for axis, value, rows in ((middle, "mmcs", ~codes), (right, "correlation", codes)):
        twins = table[rows & ~others]
        if len(twins):
            axis.plot(twins["size"], twins[value], color="black", ls="--", lw=1, label=SEEDS)
        figures.size_axis(axis, sorted(table["size"].unique()), rotation=45)
        axis.set(ylim=(-0.03, 1.03), ylabel="")
    chance = table[others & ~codes].groupby("size")[["random_mmcs", "gaussian_mmcs"]].mean()
    for (_, values), label, colour in zip(
        chance.items(), ("random directions", "Gaussian rows"), ("black", figures.PURPLE),
        strict=True,
    ):  # fmt: skip
        middle.plot(chance.index, values, color=colour, ls=":", lw=1, label=label)
    middle.set_title("MMCS")
    right.set_title("Correlation of codes")
    figures.below(figure, middle, 5)
    return figure


def _several(context: Context) -> bool:
    return bool(context.others or context.study.beside)


ANALYSIS = Analysis("elsewhere", show, (), measure, pairs=True, applies=_several)
