"""Kinds of dictionaries side by side: architectures, or ways of training them.

Each kind is taken at the L1, or whatever was swept, that the main figures would show of it, and
then at the L0 that the plain kind has there. Agreement, reconstruction and all else move with L0,
so each measure is read off between the levels that a kind was trained at, along the logarithm of
L0, and nowhere beyond them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sparse_dict.analysis.claim import Sizes, groups_of, mean_of_means, over_pairs
from sparse_dict.analysis.comparison import Variant
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.two_dictionaries import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Block, Table
from sparse_dict.analysis.sections.seeds import matched, samples
from sparse_dict.analysis.study import setting
from sparse_dict.analysis.tables import SEED, Tables

GROUP = ["family", "level"]
REACH = 1.05  # factor beyond the lowest and the highest L0 of a kind that counts as the same


@dataclass(frozen=True)
class Measure:
    """A number of two seeds of a kind; of columns of dictionaries the mean of both."""

    name: str
    title: str
    column: str
    form: str = ".3f"
    of_pairs: bool = False  # a column of pairs: without three seeds, features give its interval

    @property
    def share(self) -> bool:
        """Whether it is shown in per cent."""
        return self.form.endswith("%")


MEASURES = (
    Measure("shared", "shared", "same", ".1%", of_pairs=True),
    Measure("pw_mcc", "PW-MCC", "cosine", of_pairs=True),
    Measure("fvu", "FVU", "fvu"),
    Measure("dead", "dead", "dead", ".1%"),
    Measure("neurons", "effective neurons", "effective_neurons", ".1f"),
    Measure("recovered", "loss recovered", "loss_recovered", ".1%"),
)
PANELS = {  # columns and titles
    "same": "shared with another seed", "cosine": "PW-MCC with another seed",
    "mmcs": "MMCS with the next size", "fvu": "FVU", "l0": "L0", "dead": "dead",
}  # fmt: skip
SHARES = ("same", "dead")


def of_seeds(study: Tables) -> pd.DataFrame:
    """The pairs that differ in the seed alone, a row a feature of the first."""
    pairs = matched(study)
    return pairs[pairs["differ"] == SEED]


def at_level(context: Context) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Dictionaries of each family at its chosen level, with MMCS and its null; pairs of these."""
    study, comparison = context.tables, context.comparison
    known = study.dictionaries[study.dictionaries["site"] == study.about.site]
    level = known[known["chosen"]].groupby("family")["level"].first()
    pairs = of_seeds(study)
    known, pairs = (of[of["level"] == of["family"].map(level)] for of in (known, pairs))
    shown, entries = comparison.shown, {entry.name: entry for entry in context.study.entries}
    column = "next_mcs_alive" if shown.features == "alive" else "next_mcs"
    mmcs = study.features.groupby("dictionary")[column].mean()
    null = {
        name: comparison.gaussian_mean(entries[name], Variant("max", "next", shown.features))
        for name in known.loc[known["next_size"] > 0, "dictionary"]
    }
    names = known["dictionary"]
    return known.assign(mmcs=names.map(mmcs), gaussian=names.map(null)), pairs


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """A row for each kind, size and measure, at the L0 that the plain kind has at its level.

    `before` is PW-MCC of the initial values, `change` the difference from the plain kind, over the
    seeds that both have. Kinds without levels on both sides of that L0 have no rows.
    """
    if len(context.study.families) < 2:
        return {}
    study, plain, pairs = context.tables, context.tables.about.plain, of_seeds(context.tables)
    known = study.dictionaries.set_index("dictionary")
    entries = {entry.name: entry for entry in context.study.entries}
    level = known.loc[known["chosen"] & (known["family"] == plain), "level"]
    measures = [m for m in MEASURES if m.of_pairs or m.column in known]
    for column in [m.column for m in measures if not m.of_pairs]:
        pairs[column] = (pairs["first"].map(known[column]) + pairs["second"].map(known[column])) / 2
    rows = []
    for size, of in pairs.groupby("size"):
        usual = of[of["family"] == plain]
        l0 = usual.loc[usual["level"].isin(level), "l0"].mean()
        for family, own in of.groupby("family") if l0 > 0 else ():
            one, kind = own.iloc[0], partial(read_off, str(family), l0)
            if np.isnan(kind(groups_of(samples(own, ["l0", "l0"], GROUP)))):
                continue
            before = context.at_step_0(entries[one["first"]], entries[one["second"]])[0]
            both = own if family == plain else pd.concat([own, usual])
            for m in measures:
                found, change = (
                    over_pairs(samples(part, ["l0", m.column], GROUP), number, m.of_pairs)
                    for part, number in ((own, kind), (both, partial(_less, kind, plain, l0)))
                )
                rows.append(
                    {"kind": one["kind"], "dict_size": size, "l0": l0, "measure": m.name}
                    | {"before": before if m.name == "pw_mcc" else np.nan}
                    | {"value": found.value, "low": found.low, "high": found.high}
                    | {"over": found.over or "-", "change": change.value}
                    | {"change_low": change.low, "change_high": change.high}
                )
    return {"equal_l0": pd.DataFrame(rows)} if len({row["kind"] for row in rows}) > 1 else {}


def read_off(family: str, l0: float, groups: Sizes) -> float:
    """What a kind has at an L0, of groups (family, level) with L0 and a measure, (n, 2) each.

    Nan beyond its levels.
    """
    means = [values.mean(0) for group, values in groups.items() if group[0] == family]
    points = sorted((np.log(x), y) for x, y in means if x > 0)
    if not points:
        return np.nan
    (x, y), at, reach = np.array(points).T, np.log(l0), np.log(REACH)
    return float(np.interp(at, x, y)) if x[0] - reach <= at <= x[-1] + reach else np.nan


def _less(kind: Callable[[Sizes], float], plain: str, l0: float, groups: Sizes) -> float:
    return kind(groups) - read_off(plain, l0, groups)


def show(context: Context) -> Iterator[Block]:
    """Kinds at equal size and at equal L0; nothing if the study holds one kind only."""
    study, families = context.tables, context.study.families
    if len(families) < 2:
        return
    known, pairs = at_level(context)
    if (known["strategy"] == "freeze_perturb").any():
        yield (
            "strategy=freeze_perturb trains a companion of the same size beside each dictionary, "
            "so at the same number of activations it costs twice the work of plain training. A "
            "fair rival is plain training on twice the activations."
        )
    yield context.figure("families", panels(known, pairs, study.about.d_in))
    shares = []
    for kind, part in pairs.groupby("kind", sort=False):
        found = over_pairs(samples(part, "same", ["size"]), mean_of_means)
        interval = f"[{found.low:.0%}, {found.high:.0%}] over {found.over}"
        shares.append(f"{kind!s}: {found.value:.0%} {interval}")
    means = "Features that another seed learned too, mean over sizes with a 95 % interval: "
    none = MISSING.format("each kind has one seed, so seeds are not compared")
    yield f"{means}{'; '.join(shares)}." if shares else none
    yield Table("Kinds at equal size, means over seeds", at_equal_size(known, pairs))
    if "equal_l0" not in study.others:
        return
    frame = study.others["equal_l0"]
    plain = known.loc[known["family"] == study.about.plain, "kind"].iloc[0]
    text = f"Intervals of 95 % over {frame['over'].iloc[0]}."
    if missing := sorted({*known["kind"]} - {*frame["kind"]}):
        text += f" Without levels on both sides of that L0, or seeds: {', '.join(missing)}."
    others = frame[frame["kind"] != plain]
    yield context.figure("equal_l0", differences(others, plain), text)
    yield Table("At equal L0", cells(frame, ""))
    yield Table("Difference at equal L0", cells(others, "+"))


def at_equal_size(known: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The panels' numbers by size, kind and sparsity."""
    by, columns = ["size", "kind", "axis", "level"], [*PANELS]
    of_pairs = pairs.groupby(by)[columns[:2]].mean().reset_index()
    means = known.groupby(by)[columns[2:]].mean().reset_index().merge(of_pairs, how="left")
    means["sparsity"] = [setting(*pair) for pair in zip(means["axis"], means["level"], strict=True)]
    return means[["size", "kind", "sparsity", *columns]].rename(columns=PANELS)


def panels(known: pd.DataFrame, pairs: pd.DataFrame, d: int) -> Figure:
    """Agreement, reconstruction and sparsity by size, a line a kind; dotted: chance."""
    figure, axes = figures.grid(2, 3, 5.6)
    kinds, sizes = [*dict.fromkeys(known["kind"])], sorted({*known["size"]})
    each = pairs.groupby(["kind", "size", "first", "second"])[["same", "cosine"]].mean()
    each = each.astype(float).reset_index()
    hue = {"hue": "kind", "hue_order": kinds}
    hue["palette"] = sns.color_palette("colorblind", len(kinds)).as_hex()
    chance = {
        "same": dict.fromkeys(sizes, 0.0),  # no cosine reaches 0.7
        "cosine": random_pw_mcc(d, {*each["size"]}),
        "mmcs": {n: random_directions.mean_mcs(d, [m]) for n, m in pairwise(sizes)},
    }
    for axis, (column, title) in zip(axes.flat, PANELS.items(), strict=True):
        data = (each if column in each else known).dropna(subset=[column])
        if not data.empty:
            sns.lineplot(
                data, x="size", y=column, style="kind", style_order=kinds, markers=True,
                markersize=5, lw=1.2, errorbar=("pi", 100), ax=axis, **hue,
            )  # fmt: skip
        if values := chance.get(column):
            label = "random directions"
            axis.plot([*values], [*values.values()], color="0.4", ls=":", lw=1.2, label=label)
        if column == "mmcs" and not data.empty:
            like = {"x": "size", "y": "gaussian", "errorbar": None, "legend": False, "lw": 1.2}
            sns.lineplot(data, ls=":", ax=axis, **like, **hue)
        figures.size_axis(axis, sizes)
        axis.set(ylabel="", title=title, ylim=(0, 1.03 if column in chance else None))
        if column in SHARES:
            figures.percent_axis(axis)
    most = next((axis for axis in axes[0, ::-1] if len(axis.lines) > 1), axes[0, 0])
    figures.below(figure, most, max(1, min(6, 110 // (max(map(len, kinds)) + 6))))
    figure.suptitle("How much of what was learned would another seed have learned?")
    return figure


def differences(frame: pd.DataFrame, plain: str) -> Figure:
    """A panel a measure, a line a kind: the difference from the plain kind with its interval."""
    of = [m for m in MEASURES if m.name in {*frame["measure"]}]
    kinds, sizes = [*dict.fromkeys(frame["kind"])], sorted({*frame["dict_size"]})
    lines = -(-len(of) // 3)
    figure, axes = figures.grid(lines, 3, lines * (1.2 + 0.19 * len(kinds)), sharey=True)
    for axis, m in zip(axes.flat, of, strict=False):
        for place, (size, colour) in enumerate(zip(sizes, figures.shades(len(sizes)), strict=True)):
            part = frame[(frame["measure"] == m.name) & (frame["dict_size"] == size)]
            y = part["kind"].map(kinds.index) + 0.5 * ((place + 0.5) / len(sizes) - 0.5)
            ends = [part["change"] - part["change_low"], part["change_high"] - part["change"]]
            axis.errorbar(
                part["change"], y, xerr=np.nan_to_num(ends), fmt="o", ms=3, lw=1, color=colour,
                label=str(size),
            )  # fmt: skip
        axis.axvline(0, color="0.6", lw=0.8)
        axis.set_yticks(range(len(kinds)), kinds)
        axis.set_title(m.title)
        if m.share:
            axis.xaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes.flat[len(of) :]:
        axis.set_visible(False)
    axes[0, 0].invert_yaxis()
    figures.below(figure, axes[0, 0], len(sizes), "size")
    figure.suptitle(f"Difference from {plain} at equal L0")
    return figure


def cells(frame: pd.DataFrame, sign: str) -> pd.DataFrame:
    """A row for each kind and size, a column a measure: ``value [low, high]``, or the change."""
    columns = ["change", "change_low", "change_high"] if sign else ["value", "low", "high"]
    rows: dict[tuple[str, int], dict[str, object]] = {}
    measures = {m.name: m for m in MEASURES}
    for row in frame.to_dict("records"):
        own, m = (row["kind"], row["dict_size"]), measures[row["measure"]]
        first = {"kind": own[0], "dict_size": own[1], "L0": round(row["l0"], 2)}
        value, low, high = (format(row[name], sign + m.form) for name in columns)
        found = rows.setdefault(own, first)
        found[m.title] = value if np.isnan(row[columns[1]]) else f"{value} [{low}, {high}]"
        if not sign and m.name == "pw_mcc":
            found["PW-MCC before training"] = format(row["before"], m.form)
    return pd.DataFrame([*rows.values()])


ANALYSIS = Analysis("families", show, measure=measure, pairs=True)
