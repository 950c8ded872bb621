"""What a feature does to the language model's loss, against how often other trainings find it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis import feature_effects
from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import subspaces
from sparse_dict.analysis.measures.correlation import spearman
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.source import open_source
from sparse_dict.analysis.study import Entry
from sparse_dict.analysis.tables import SEED, Tables
from sparse_dict.config import EffectsConfig

RECURS = 0.5  # a feature recurs if at least this share of the other dictionaries share it
THIRDS = ("rare", "middle", "frequent")  # by firing frequency
FEWEST = 20  # features that a claim needs


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The effects of single features, and how far those that do not recur span the same."""
    study, settings = context.tables, context.settings(EffectsConfig)
    entries = {entry.name: entry for entry in context.study.entries}
    partners = partners_of(study)
    if partners.empty:
        return {}
    entry, first = (entries[partners[key].iloc[0]] for key in ("dictionary", "other"))
    spans = [
        {"dictionary": entry.name, "other": name, **overlap(entry, entries[str(name)], own)}
        for name, own in partners.groupby("other", sort=False)
    ]
    source = open_source(context.config, context.study, settings.n_tokens)
    kept = Path(context.config.analysis_dir) / feature_effects.KEPT
    found = feature_effects.measure(entry, first, source, settings, context.config.seed, kept)
    found.insert(0, "dictionary", entry.name)
    known = study.features[["dictionary", "feature", "frequency", "recurs"]]
    return {
        "features": found[["dictionary", "feature", "ablated", "substituted"]],
        "effects": found.merge(known.rename(columns={"recurs": "recurrence"})),
        "spans": pd.DataFrame(spans),
    }


def partners_of(study: Tables) -> pd.DataFrame:
    """The pairs of the dictionary that is measured, as columns dictionary, other, differ, ...

    It is the largest that has any at the chosen level, of the lowest seed; those that differ in
    the seed alone come first.
    """
    lowest = study.level[study.level["seed"] == study.level["seed"].min()]
    if study.pairs.empty:
        return study.pairs
    names = ["dictionary", "other", "feature", "partner"]
    ends = [["first", "second", "feature", "partner"], ["second", "first", "partner", "feature"]]
    both = [study.pairs.rename(columns=dict(zip(end, names, strict=True))) for end in ends]
    own = pd.concat(both).merge(lowest[["dictionary", "size"]])
    own = own[own["size"] == own["size"].max()]
    return own.sort_values("differ", key=lambda differ: differ != SEED, kind="stable")


def overlap(one: Entry, other: Entry, pairs: pd.DataFrame) -> dict[str, float]:
    """How much of each other's span the frequent features hold that the two do not share."""
    shared, theirs = (np.zeros(entry.size, bool) for entry in (one, other))
    same = pairs[pairs["same"]]
    shared[same["feature"]] = theirs[same["partner"]] = True
    d = one.decoder.shape[1]
    rows = unstable(one, shared, d // 4), unstable(other, theirs, d // 4)
    mean, variance = subspaces.random_overlap(len(rows[0]), len(rows[1]), d)
    overlap = subspaces.overlap(*rows) if min(map(len, rows)) else np.nan
    return {"n": min(map(len, rows)), "overlap": overlap, "random": mean, "variance": variance}


def unstable(entry: Entry, shared: NDArray[np.bool_], most: int) -> NDArray[np.float32]:
    """The decoder rows of the features that are active and not shared, the most frequent ones."""
    kept = np.flatnonzero(~shared & entry.alive)
    return entry.decoder[kept[np.argsort(-entry.frequency[kept])][:most]]


def show(context: Context) -> Iterator[Block]:
    """The effect of single features against their recurrence."""
    table, spans = (context.tables.others[key] for key in ("effects", "spans"))
    note = f"{len(table)} features of {table['dictionary'].iloc[0]}, against {len(spans)} others."
    yield context.figure("effects", draw(table), note)
    yield Table("Effect by recurrence", by_recurrence(table))
    yield Table("Rank correlation of recurrence and effect", correlations(table))


def thirds(frequency: "pd.Series[Any]") -> "pd.Series[Any]":
    """The third by firing frequency to which each feature belongs."""
    return pd.qcut(frequency.rank(method="first"), 3, labels=list(THIRDS))


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's coefficient of recurrence and effect, in all and within thirds of frequency."""
    parts = {"all": table, **dict([*table.groupby(thirds(table["frequency"]), observed=True)])}
    rows = []
    for name, part in parts.items():
        if len(part) >= FEWEST and part["recurrence"].nunique() > 1:
            found = _over_features(part, spearman)
            rows.append((name, len(part), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["features", "n", "spearman", "low", "high"])


def _over_features(table: pd.DataFrame, number: Callable[[NDArray[Any]], float]) -> Estimate:
    """`number` of (features, 2), recurrence and effect, with an interval over features."""
    return bootstrap([table[["recurrence", "ablated"]].to_numpy()], lambda drawn: number(drawn[0]))


def by_recurrence(table: pd.DataFrame) -> pd.DataFrame:
    """Number and effect of the features that recur, and of the others."""
    recur, rows = table["recurrence"] >= RECURS, []
    for name, part in (("recur", table[recur]), ("do not", table[~recur])):
        effect, left = part["ablated"].sum(), part["substituted"].sum()
        share = effect / table["ablated"].sum()
        rows.append((name, len(part), len(part) / len(table), share, left / (effect or np.nan)))
    columns = ["n", "share of features", "share of effect", "left with the match"]
    return pd.DataFrame(rows, columns=["features", *columns])


def draw(table: pd.DataFrame) -> Figure:
    """Effect by recurrence within thirds of frequency, and with the match put in."""
    figure, ((left, right),) = figures.grid(1, 2, 3.6)
    third = thirds(table["frequency"])
    quarter = np.minimum((table["recurrence"] * 4).astype(int), 3)
    shown = table.assign(
        third=third, ablated=1000 * table["ablated"], substituted=1000 * table["substituted"],
        recurrence=table.groupby([third, quarter], observed=True)["recurrence"].transform("mean"),
    )  # fmt: skip
    colours = dict(zip(THIRDS, figures.shades(3), strict=True))
    sns.lineplot(
        shown, x="recurrence", y="ablated", hue="third", palette=colours, ax=left, marker="o",
        err_style="bars", err_kws={"capsize": 2}, seed=0, lw=1,
    )  # fmt: skip
    left.set(
        title="without the feature", xlim=(-0.05, 1.05),
        xlabel="share of other dictionaries that share it",
        ylabel="change of the loss (millinats a token)",
    )  # fmt: skip
    sns.scatterplot(
        shown, x="ablated", y="substituted", hue="third", palette=colours, ax=right, s=15, lw=0
    )
    right.axline((0, 0), slope=1, color="0.5", lw=0.8, ls=":")
    low, high = (end(right.get_xlim() + right.get_ylim()) for end in (min, max))
    right.set(
        title="with its match in its place", xlim=(low, high), ylim=(low, high),
        xlabel="change without it (millinats a token)", ylabel="change with its match instead",
    )  # fmt: skip
    for axis in (left, right):
        axis.axhline(0, color="0.5", lw=0.8, zorder=0)
    figures.below(figure, right, 3, "firing frequency")
    figure.suptitle("What single features do to the language model's loss")
    return figure


def _signal(study: Tables) -> Found:
    table = study.others["effects"]
    if len(table) < FEWEST or table["ablated"].sum() <= 0:
        return Found("together the features have no effect on the loss")
    found = _over_features(table, lambda t: float(t[t[:, 0] >= RECURS, 1].sum() / t[:, 1].sum()))
    by = (table["recurrence"] >= RECURS).mean()
    return Found(f"{found.value:.0%}, by {by:.0%} of the features", Lies(0.5)(found), found)


def _same_subspaces(study: Tables) -> Found:
    spans = study.others["spans"]
    if spans["n"].min() < FEWEST:
        return Found(f"fewer than {FEWEST} features do not recur")
    value, random = spans["overlap"].mean(), spans["random"].mean()
    reach = 1.96 * np.sqrt(spans["variance"].sum()) / len(spans)
    more = float(value - random)
    found = Estimate(more, float(more - reach), float(more + reach), "random subspaces")
    return Found(f"{value:.2f}, random directions {random:.2f}", Lies(0)(found), found)


PARTNERS = Need(
    "dictionaries that differ in seed or rows alone", f"{TRAIN}seed=0,1,2",
    lambda study: "effects" in study.others,
)  # fmt: skip
CLAIMS = (
    Claim("recurring_carry_the_loss", judge=_signal, needs=(PARTNERS,), living=False),
    Claim("others_span_the_same", judge=_same_subspaces, needs=(PARTNERS,), living=False),
)
ANALYSIS = Analysis(
    "effects", show, CLAIMS, measure, pairs=True, needs=(PARTNERS,), seconds=(26, 1.7)
)
