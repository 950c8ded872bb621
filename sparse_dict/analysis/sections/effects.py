"""What a feature does to the language model's loss, against how often other trainings find it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measured import feature_effects as single
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.source import open_source
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import EffectsConfig

MOST = 0.5  # of the whole effect: above it is most


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The effects of single features, and how far those that do not recur span the same."""
    study, settings = context.tables, context.settings(EffectsConfig)
    entries = {entry.name: entry for entry in context.study.entries}
    partners = single.partners_of(study)
    if partners.empty:
        return {}
    entry, first = (entries[partners[key].iloc[0]] for key in ("dictionary", "other"))
    names = {"dictionary": entry.name}
    spans = [
        names | {"other": name} | single.overlap(entry, entries[str(name)], own)
        for name, own in partners.groupby("other", sort=False)
    ]
    source = open_source(context.config, context.study, settings.n_tokens)
    kept = Path(context.config.analysis_dir) / single.KEPT
    found = single.measure(entry, first, source, settings, context.config.seed, kept)
    found.insert(0, "dictionary", entry.name)
    known = study.features[["dictionary", "feature", "frequency", "recurs"]]
    return {
        "features": found[["dictionary", "feature", "ablated", "substituted"]],
        "effects": found.merge(known.rename(columns={"recurs": "recurrence"})),
        "spans": pd.DataFrame(spans),
    }


def show(context: Context) -> Iterator[Block]:
    """The effect of single features against their recurrence."""
    table, spans = (context.tables.others[key] for key in ("effects", "spans"))
    note = f"{len(table)} features of {table['dictionary'].iloc[0]}, against {len(spans)} others."
    yield context.figure("effects", draw(table), note)
    yield Table("Effect by recurrence", single.by_recurrence(table))
    yield Table("Rank correlation of recurrence and effect", single.correlations(table))


def draw(table: pd.DataFrame) -> Figure:
    """Effect by recurrence within thirds of frequency, and with the match put in."""
    figure, ((left, right),) = figures.grid(1, 2, 3.6)
    third = single.thirds(table["frequency"])
    quarter = np.minimum((table["recurrence"] * 4).astype(int), 3)
    shown = table.assign(
        third=third, ablated=1000 * table["ablated"], substituted=1000 * table["substituted"],
        recurrence=table.groupby([third, quarter], observed=True)["recurrence"].transform("mean"),
    )  # fmt: skip
    colours = dict(zip(single.THIRDS, figures.shades(3), strict=True))
    sns.lineplot(
        shown, x="recurrence", y="ablated", hue="third", palette=colours, ax=left, marker="o",
        err_style="bars", err_kws={"capsize": 2}, seed=0, lw=1,
    )  # fmt: skip
    left.set(
        title="without the feature", xlim=(-0.05, 1.05),
        xlabel="share of other dictionaries that share it",
        ylabel="change of the loss (millinats a token)",
    )  # fmt: skip
    look: dict[str, Any] = {"hue": "third", "palette": colours, "s": 15, "lw": 0}
    sns.scatterplot(shown, x="ablated", y="substituted", ax=right, **look)
    right.axline((0, 0), slope=1, color="0.5", lw=0.8, ls=":")
    low, high = (end(right.get_xlim() + right.get_ylim()) for end in (min, max))
    right.set(
        title="with its match in its place", xlim=(low, high), ylim=(low, high),
        xlabel="change without it (millinats a token)", ylabel="change with its match instead",
    )  # fmt: skip
    for axis in (left, right):
        axis.axhline(0, color="0.5", lw=0.8, zorder=0)
    figures.below(figure, right, 3, "firing frequency")
    return figure


def _signal(study: Tables) -> Found:
    table = study.others["effects"]
    if len(table) < single.FEWEST or table["ablated"].sum() <= 0:
        return Found("together the features have no effect on the loss")
    recur = single.RECURS
    found = single.over_features(table, lambda t: t[t[:, 0] >= recur, 1].sum() / t[:, 1].sum())
    by = (table["recurrence"] >= recur).mean()
    return Found(f"{found.value:.0%}, by {by:.0%} of the features", Lies(MOST)(found), found)


def _same_subspaces(study: Tables) -> Found:
    spans = study.others["spans"]
    if spans["n"].min() < single.FEWEST:
        return Found(f"fewer than {single.FEWEST} features do not recur")
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
    Claim(
        "recurring_carry_the_loss",
        judge=_signal,
        needs=(PARTNERS,),
        living=False,
        bars={"recurs": single.RECURS, "most": MOST},
    ),
    Claim("others_span_the_same", judge=_same_subspaces, needs=(PARTNERS,), living=False),
)
ANALYSIS = Analysis(
    "effects", show, CLAIMS, measure, pairs=True, needs=(PARTNERS,), seconds=(9, 1.5)
)
