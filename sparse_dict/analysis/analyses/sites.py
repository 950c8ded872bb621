"""Dictionaries of several sites of one harvest: agreement at each, and of one site with the next.

All other sections are about one of the sites (`comparison.site`).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis import seeds
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.mcs import match_codes, max_cosine, normalised
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import Entry, Study, everywhere, seed_groups
from sparse_dict.config.sites import RESIDUAL
from sparse_dict.errors import UserError
from sparse_dict.storage import files

Floats = NDArray[np.float32]

TITLE = "From site to site"


def section(context: Context) -> Section:
    """Heat maps by site, a table of all sites, and agreement with the next one; `sites.csv`."""
    studies = everywhere(context.study)
    compared = {study.at: _comparison(context, study) for study in studies}
    result = Section(
        TITLE,
        [
            f"The harvest holds several sites, and the study dictionaries of {len(studies)}: "
            f"{', '.join(compared)}. All other sections are about {context.study.at} "
            "(comparison.site chooses another); here each site's dictionaries are compared with "
            "larger ones and other seeds of that site, at the level that the main figures' rule "
            "gives for it."
        ],
    )
    cells = _cells(compared)
    shown = context.comparison.shown
    if not cells.empty:
        names = [name for name in compared if (cells["family"] == name).any()]
        result.blocks.append(
            context.draw(
                "sites_mmcs", _drawn(cells, names, shown), "MMCS with larger dictionaries by site",
                "A panel a site; as in the heat map of one site, each cell is one dictionary.",
            )
        )  # fmt: skip
    table = pd.DataFrame([row for one in compared.values() for row in _rows(context, one)])
    result.blocks.append(Table("Every site at its chosen level, means over seeds", table))
    try:
        agreement = pd.DataFrame(following(context, studies, compared))
    except UserError as error:
        result.blocks.append(MISSING.format(error))
        return result
    if agreement.empty:
        return result
    files.write_text(context.folder / "sites.csv", agreement.to_csv(index=False))
    bar = context.config.comparison.threshold
    result.blocks += [
        "Do features of one site become features of the next? Dictionaries of one size are "
        "matched one to one by the correlation of their codes on the same evaluation rows, which "
        "needs no common space; those active on none of these rows do not count. Correlated: "
        "share of the matched features with a correlation above "
        f"{bar:g}. Chance: the same with the rows of one site in another order. Other seed: with "
        "another seed of the same site, which is about the most that there is to reach. Sites in "
        "the residual stream share its basis, so there decoder rows are compared as well (MMCS, "
        "beside that of random directions).",
        context.draw(
            "sites_agreement", picture(agreement), "One site's features in the next",
            "Mean correlation of codes after one-to-one matching, a line a dictionary size; "
            "dashed, with another seed of the first site; dotted, by chance.",
        ),
        Table("Features of one site in the next", agreement),
    ]  # fmt: skip
    return result


def _drawn(cells: pd.DataFrame, names: Sequence[str], shown: Variant) -> Figure:
    renamed = cells.rename(columns={"dict_size": "size", "family": "panel"})
    title = f"MMCS with larger dictionaries\n{shown}"
    ordered = renamed.sort_values("panel", key=lambda part: part.map(list(names).index))
    return figures.heatmaps(ordered, "mmcs", title, "MMCS", ".2f", 1.0)


def _comparison(context: Context, study: Study) -> Comparison:
    if study is context.study:
        return context.comparison
    return Comparison(study, context.config.comparison, lambda: context.sample_of(study))


def _cells(compared: dict[str, Comparison]) -> pd.DataFrame:
    """MMCS of each dictionary of each site's first family, which is called after the site."""
    parts = []
    for at, comparison in compared.items():
        cells = comparison.cells()
        if not cells.empty:
            first = cells["family"] == comparison.study.families[0]
            parts.append(cells[first].assign(family=at))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def shown(comparison: Comparison) -> tuple[Entry, ...]:
    """The dictionaries that stand for a site: its main chain, or the first seed of each size."""
    if comparison.main is not None:
        return comparison.main.entries
    study = comparison.study
    chosen = comparison.chosen(study.families[0])
    return min(chosen, key=lambda chain: chain.seed).entries


def _rows(context: Context, comparison: Comparison) -> list[dict[str, Any]]:
    """A row a size of one site."""
    study = comparison.study
    pairs = seeds.of_table(context.pairs, study)
    rows = []
    for entry in shown(comparison):
        alike = [
            e for e in study.entries
            if (e.family, e.level, e.size) == (entry.family, entry.level, entry.size)
        ]  # fmt: skip
        larger = bool(comparison.partners(entry, "next"))
        mmcs = [comparison.counted(e).mean() for e in alike] if larger else [np.nan]
        own = [p.shared.mean() for p in pairs if p.first in alike]
        rows.append(
            {
                "site": study.at,
                "dict_size": entry.size,
                "sparsity": entry.setting,
                **{k: float(np.mean([e.metrics[k] for e in alike])) for k in ("fvu", "l0")},
                "dead": float(np.mean([(~e.alive).mean() for e in alike])),
                "mmcs": float(np.mean(mmcs)),
                "random_mmcs": comparison.random_mean(entry) if larger else np.nan,
                "gaussian_mmcs": comparison.gaussian_mean(entry) if larger else np.nan,
                "shared_fraction": float(np.mean(own)) if own else np.nan,
            }
        )
    return rows


def following(
    context: Context, studies: Sequence[Study], compared: dict[str, Comparison]
) -> list[dict[str, Any]]:
    """A row for each two sites that follow each other and each size that both have."""
    single = [study for study in studies if study.site is not None and study.target is None]
    settings = context.config.comparison
    rows = []
    for one, other in pairwise(single):
        x, y = context.sample_of(one), context.sample_of(other)
        twins = {group[0]: group[1] for group in seed_groups(one)}
        theirs = {entry.size: entry for entry in shown(compared[other.at])}
        for entry in shown(compared[one.at]):
            partner = theirs.get(entry.size)
            if partner is None or entry.size > settings.match_limit:
                continue
            codes, others = _codes(entry, x), _codes(partner, y)
            correlation = _matched(codes, others)
            moved = np.roll(others, len(others) // 2, axis=0)
            twin = twins.get(entry)
            seed = np.nan if twin is None else _matched(codes, _codes(twin, x)).mean()
            rows.append(
                {
                    "site": one.at,
                    "next": other.at,
                    "dict_size": entry.size,
                    "correlation": float(correlation.mean()),
                    "correlated": float((correlation > settings.threshold).mean()),
                    "chance": float(_matched(codes, moved).mean()),
                    "other_seed": float(seed),
                    **_by_direction(entry, partner, settings.threshold),
                }
            )
    return rows


def _codes(entry: Entry, x: Floats) -> Floats:
    """The codes of features that are active on some of the rows, (rows, features)."""
    codes = entry.trained.dictionary.encode(x)
    return codes[:, (codes > 0).any(0)]


def _matched(codes: Floats, others: Floats) -> Floats:
    """The correlation of each feature with its partner, of the dictionary that has fewer."""
    return np.asarray(match_codes(*sorted((codes, others), key=lambda c: c.shape[1]))[1])


def _by_direction(entry: Entry, partner: Entry, bar: float) -> dict[str, float]:
    """MMCS of decoder rows, where both sites are in the residual stream."""
    names = [_name(e) for e in (entry, partner)]
    d = entry.decoder.shape[1]
    if not (RESIDUAL.issuperset(names) and d == partner.decoder.shape[1]):
        return {"mmcs": np.nan, "random_mmcs": np.nan, "above": np.nan}
    mcs = max_cosine(normalised(entry.decoder), normalised(partner.decoder))
    return {
        "mmcs": float(mcs.mean()),
        "random_mmcs": random_directions.mean_mcs(d, [partner.size]),
        "above": float((mcs > bar).mean()),
    }


def _name(entry: Entry) -> str:
    site = str(entry.metrics["config"]["sae"]["site"])
    return site.rpartition("/")[2]


def picture(table: pd.DataFrame) -> Figure:
    """Correlation of codes from site to site, a line a size."""
    pairs = list(dict.fromkeys(zip(table["site"], table["next"], strict=True)))
    sizes = sorted(table["dict_size"].unique())
    width = min(figures.WIDTH, 3.2 + 1.4 * len(pairs))
    figure, axis = plt.subplots(figsize=(width, 3.4))
    for size, colour in zip(sizes, figures.shades(len(sizes)), strict=True):
        part = table[table["dict_size"] == size]
        at = [pairs.index(pair) for pair in zip(part["site"], part["next"], strict=True)]
        axis.plot(at, part["correlation"], "o-", color=colour, ms=4, lw=1.2, label=str(size))
        axis.plot(at, part["other_seed"], "^--", color=colour, ms=4, lw=0.8)
        axis.plot(at, part["chance"], ":", marker=".", color=colour, lw=0.8)
    axis.set_xticks(range(len(pairs)), [f"{one}\nto {other}" for one, other in pairs])
    axis.set_xlim(-0.5, len(pairs) - 0.5)
    axis.set_ylim(-0.03, 1.03)
    axis.set_ylabel("mean correlation of codes")
    figure.legend(title="dictionary size", loc="outside lower center", ncols=8)
    figure.suptitle("Agreement of one site's features with the next")
    return figure


def _several(context: Context) -> bool:
    return bool(context.study.beside)


ANALYSIS = Analysis("sites", section, applies=_several)
