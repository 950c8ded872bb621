"""Dictionaries of one study against those of others: layers, checkpoints, other language models."""

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis import harvested
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import alignment
from sparse_dict.analysis.measures.alignment import Alignment
from sparse_dict.analysis.measures.mcs import Floats, match_codes
from sparse_dict.analysis.measures.two_dictionaries import agree
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.same_tokens import paired
from sparse_dict.analysis.study import Entry, Study, seed_groups
from sparse_dict.errors import UserError
from sparse_dict.storage import files

ROWS = 32_768  # tokens that alignments are fitted and codes compared on
SEEDS = "another seed, same model"  # what the agreement of models is measured against


def section(context: Context) -> Section:
    """Each other study's alignment, and the agreement after it; `studies.csv`."""
    title, settings = "Against other studies", context.config.comparison
    limit, bar = settings.match_limit, settings.threshold
    text = (
        "Activations of two models, layers or checkpoints on the same tokens are mapped onto each "
        "other in three ways: as they are (identity), by renaming neurons (permutation), and by a "
        "rotation, which explains what a linear map without stretching can. Explained: share of "
        "the variance of the other's activations, on tokens that the map was not fitted on. The "
        "dictionaries are compared after each map; codes need none, and are matched one to one by "
        f"their correlation on the same {ROWS:,} tokens at most."
    )
    result = Section(title, [text])
    alignments, agreements, compared = [], [], []
    for other in context.others:
        try:
            x, y = paired(
                context.activations, harvested.activations_of(other, context.config), ROWS
            )
        except UserError as error:
            result.blocks.append(MISSING.format(error))
            continue
        maps = alignment.fit(x, y)
        name = label(other)
        alignments += [
            {"study": name, "map": m.name, "explained": m.explained, "tokens": len(x)} for m in maps
        ]
        for first, second in partners(context, other, limit):
            agreements += [row(name, first, second, found, bar) for found in maps]
            agreements.append(coded(name, first, second, (x, y), bar))
            compared.append(first)
    if not agreements:
        return result
    agreements += beside(context, compared)
    table = pd.DataFrame(agreements)
    files.write_text(context.folder / "studies.csv", table.to_csv(index=False))
    result.blocks += [
        context.draw(
            "studies", picture(pd.DataFrame(alignments), table),
            "What another study's dictionaries have in common",
            "Left: how much of the other's activations each map explains. Middle: MMCS with the "
            "other's dictionary nearest in size, after each map, beside another seed of the same "
            "model (dashed) and the exact expectation for random directions (dotted). Right: mean "
            "correlation of codes matched one to one on the same tokens, which needs no map.",
        ),
        Table("Maps between activations", pd.DataFrame(alignments)),
        Table("Agreement after each map", table, fold=len(table) > 24),
    ]  # fmt: skip
    return result


def label(study: Study) -> str:
    """A study's name: that of the folder around its dictionaries."""
    folder = study.folder.resolve()
    return folder.parent.name if folder.name == "sae" else folder.name


def shown(study: Study, context: Context) -> tuple[Entry, ...]:
    """The dictionaries that stand for a study: its main chain, or all where none has a larger one.

    Another study is shown by a chain as sparse as the first study's main chain, if it has one.
    """
    first = context.comparison.main
    alike = [c for c in study.chains if first and (c.axis, c.level) == (first.axis, first.level)]
    main = Comparison(study, context.config.comparison).main
    chosen = first if study is context.study else next(iter(alike), main)
    return chosen.entries if chosen else study.entries


def partners(context: Context, other: Study, limit: int) -> list[tuple[Entry, Entry]]:
    """Each dictionary of the main chain with the other study's nearest in size."""
    theirs = [entry for entry in shown(other, context) if entry.size <= limit]
    if not theirs:
        return []
    return [
        (entry, min(theirs, key=lambda e: abs(e.size - entry.size)))
        for entry in shown(context.study, context)
        if entry.size <= limit
    ]


def row(name: str, first: Entry, second: Entry, found: Alignment, bar: float) -> dict[str, object]:
    """Agreement of two dictionaries, the first one's directions mapped into the other's space."""
    mapped = tuple(rows @ found.matrix for rows in (first.encoder, first.decoder))
    return described(name, found.name, first, second, mapped, (second.encoder, second.decoder), bar)


def described(
    name: str, how: str, first: Entry, second: Entry,
    one: tuple[Floats, ...], other: tuple[Floats, ...], bar: float,
) -> dict[str, object]:  # fmt: skip
    """A row of the table: agreement of encoder and decoder rows in one space."""
    swapped = first.size > second.size
    (a, b), (c, d) = (other, one) if swapped else (one, other)
    found = agree((a, b), (c, d), bar)
    way = found.larger if swapped else found.smaller  # of the first one's features
    return {
        "study": name,
        "map": how,
        "size": first.size,
        "other": second.size,
        "mmcs": way.mmcs,
        "random_mmcs": way.random_mmcs,
        "above": way.above / way.features,
        "random_above": way.random_above / way.features,
        "pw_mcc": found.pw_mcc,
        "random_pw_mcc": found.random_pw_mcc,
        "shared_fraction": found.shared_fraction,
    }


def coded(
    name: str, first: Entry, second: Entry, rows: tuple[Floats, Floats], bar: float
) -> dict[str, object]:
    """A row of the table: correlations of codes of the same tokens, matched one to one."""
    codes = [e.trained.dictionary.encode(x) for e, x in zip((first, second), rows, strict=True)]
    _, correlation = match_codes(*sorted(codes, key=lambda c: c.shape[1]))
    return {
        "study": name,
        "map": "codes",
        "size": first.size,
        "other": second.size,
        "correlation": float(correlation.mean()),
        "correlated": float((correlation > bar).mean()),
    }


def beside(context: Context, entries: Sequence[Entry]) -> list[dict[str, object]]:
    """The same numbers for two seeds of the first study, where it has them."""
    groups = {group[0]: group[1] for group in seed_groups(context.study)}
    bar = context.config.comparison.threshold
    found: list[dict[str, object]] = []
    for entry in dict.fromkeys(entries):
        twin = groups.get(entry)
        if twin is None:
            continue
        x = context.evaluation_rows()
        one, other = ((e.encoder, e.decoder) for e in (entry, twin))
        found.append(described(SEEDS, "identity", entry, twin, one, other, bar))
        found.append(coded(SEEDS, entry, twin, (x, x), bar))
    return found


def picture(alignments: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """What each map explains, MMCS after it, and the correlation of codes."""
    figure, (axes,) = figures.grid(1, 3, 3.6)
    names = ["identity", "permutation", "rotation"]
    colours = dict(zip(names, (figures.GREY, figures.ORANGE, figures.BLUE), strict=True))
    sns.barplot(
        alignments, x="study", y="explained", hue="map", hue_order=names, palette=colours,
        ax=axes[0], legend=False,
    )  # fmt: skip
    axes[0].axhline(0, color="black", lw=0.8)
    axes[0].set_ylim(max(-1.0, min(0.0, float(alignments["explained"].min()))), 1.02)
    axes[0].set_ylabel("variance explained")
    axes[0].set_xlabel("")
    axes[0].set_title("Activations")
    axes[0].tick_params(axis="x", rotation=30 if alignments["study"].nunique() > 1 else 0)
    others = table[table["study"] != SEEDS]
    twins = table[table["study"] == SEEDS]
    mapped = others[others["map"] != "codes"]
    styles = dict(x="size", markers=True, dashes=False)
    sns.lineplot(
        mapped, y="mmcs", hue="map", hue_order=names, palette=colours, style="study", ax=axes[1],
        **styles,
    )  # fmt: skip
    sns.lineplot(
        others[others["map"] == "codes"], y="correlation", style="study", color=figures.GREEN,
        ax=axes[2], **styles,
    )  # fmt: skip
    for axis, value in ((axes[1], "mmcs"), (axes[2], "correlation")):
        known = twins.dropna(subset=[value]) if value in twins else twins
        if len(known):
            axis.plot(known["size"], known[value], color="black", ls="--", lw=1, label=SEEDS)
        figures.size_axis(axis, sorted(table["size"].unique()), rotation=45)
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("")
    chance = mapped.groupby("size")["random_mmcs"].mean()
    axes[1].plot(chance.index, chance, color="black", ls=":", lw=1, label="random directions")
    axes[1].set_title("MMCS")
    axes[2].set_title("Correlation of codes")
    handles, labels = axes[1].get_legend_handles_labels()
    for axis in axes[1:]:
        if axis.get_legend():
            axis.get_legend().remove()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _several(context: Context) -> bool:
    return bool(context.others)


ANALYSIS = Analysis("studies", section, applies=_several)
