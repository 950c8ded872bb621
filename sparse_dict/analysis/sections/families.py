"""Kinds of dictionaries side by side: architectures, or ways of training them.

Each kind is taken at the L1, or whatever was swept, that the main figures would show of it, and
then at the L0 that the plain kind has there.
"""

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import estimates, mean_of_means, samples
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.equal_l0 import MEASURES, OF_PAIRS, measure
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.measures.two_dictionaries import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Table
from sparse_dict.analysis.study import setting
from sparse_dict.analysis.tables import Tables

PANELS = {  # columns and titles
    "same": "shared with another seed", "cosine": "PW-MCC with another seed",
    "mmcs": "MMCS with larger sizes", "fvu": "FVU", "l0": "L0", "dead": "dead",
}  # fmt: skip


def show(context: Context) -> Blocks:
    """Kinds at equal size and at equal L0; nothing if the study holds one kind only."""
    study = context.tables
    if len(context.study.families) < 2:
        return
    known, pairs = at_level(study)
    yield context.figure("families", panels(known, pairs, study.about.d_in))
    shares = []
    for kind, part in pairs.groupby("kind", sort=False):
        found = estimates(samples(part, part["same"], "size"), mean_of_means)[0]
        shares.append(f"{kind!s}: {found:.0%} over {found.over}")
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
    yield Table("At equal L0", cells(frame, "value"))
    yield Table("Difference at equal L0", cells(others, "change", "+"))


def at_level(study: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The main site's dictionaries at the level chosen for their family, and pairs of these."""
    of, pairs = study.dictionaries, study.seed_pairs
    known = of[(of["site"] == study.about.site) & of["chosen"]]
    return known, pairs[pairs["dictionary"].isin(known["dictionary"])]


def at_equal_size(known: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """The panels' numbers by size, kind and sparsity."""
    by, columns = ["size", "kind", "axis", "level"], [*PANELS]
    of_pairs = pairs.groupby(by)[columns[:2]].mean().reset_index()
    means = known.groupby(by)[columns[2:]].mean().reset_index().merge(of_pairs, how="left")
    means["sparsity"] = [*map(setting, means["axis"], means["level"])]
    return means[["size", "kind", "sparsity", *columns]].rename(columns=PANELS)


def panels(known: pd.DataFrame, pairs: pd.DataFrame, d: int) -> Figure:
    """Agreement, reconstruction and sparsity by size, a line a kind; dotted: chance."""
    kinds = known["kind"].unique()
    each = pairs.groupby(["kind", "size", "dictionary", "second"])[["same", "cosine"]].mean()
    rows = pd.concat([known, each.astype(float).reset_index()], ignore_index=True)
    hue = {"hue": "kind", "palette": sns.color_palette("colorblind", len(kinds))}
    figure, grid = figures.grid(2, 3, 5.6)
    axes = figures.panels([*grid.flat], rows, PANELS, style="kind", markers=True, **hue)
    if "cosine" in axes:
        figures.chance(axes["cosine"], {"random": random_pw_mcc(d, {*pairs["size"]})})
    if "mmcs" in axes:
        figures.chance(axes["mmcs"], known.groupby("size")[["random_mmcs"]].mean())
        like = {"x": "size", "y": "gaussian_mmcs", "errorbar": None, "legend": False}
        sns.lineplot(known, ls=":", ax=axes["mmcs"], **like, **hue)
        axes["mmcs"].set_ylabel("")
    for column in axes.keys() & {*OF_PAIRS, "mmcs"}:
        axes[column].set_ylim(0, 1.03)
    most = axes.get("mmcs", axes.get("cosine", axes["fvu"]))
    return figures.below(figure, most, max(1, min(6, 110 // (max(map(len, kinds)) + 6))))


def differences(frame: pd.DataFrame, plain: str) -> Figure:
    """A panel a measure, a line a kind: the difference from the plain kind with its interval."""
    n, height = frame["dict_size"].nunique(), 1.2 + 0.19 * frame["kind"].nunique()
    titled = frame.assign(title=[MEASURES[name][1] for name in frame["measure"]])
    grid = figures.facets(
        sns.catplot, figures.ends(titled, "change"), "size",
        kind="point", x="change", y="kind", hue="dict_size", col="title", col_wrap=3,
        sharex=False, palette=figures.shades(n), dodge=0.3 * (n > 1),
        estimator="median", errorbar=("pi", 100), linestyle="none", markersize=3,
        err_kws={"linewidth": 1}, height=height,
        aspect=figures.WIDTH / 3 / height,
    )  # fmt: skip
    grid.set_titles("{col_name}").set_axis_labels("", "")
    for axis in grid.axes.flat:
        axis.axvline(0, color="0.6", lw=0.8)
    grid.figure.suptitle(f"Difference from {plain} at equal L0")
    return grid.figure


def cells(frame: pd.DataFrame, column: str, sign: str = "") -> pd.DataFrame:
    """A row for each kind and size, a column a measure: ``value [low, high]``, or the change."""
    ends = (frame[column + end] for end in ("", "_low", "_high"))
    told = [
        format(Estimate(value, low, high, ""), sign + MEASURES[name][2])
        for name, value, low, high in zip(frame["measure"], *ends, strict=True)
    ]
    frame = frame.assign(told=told, title=[MEASURES[name][1] for name in frame["measure"]])
    by = ["dict_size", "kind", "l0"]
    table = frame.pivot_table("told", by, "title", "first", sort=False).reset_index()
    if not sign:
        before = frame.groupby(by, sort=False)["before"].first()
        table.insert(3, "PW-MCC before training", before.to_numpy())
    return table.rename(columns={"l0": "L0"})


ANALYSIS = Analysis("families", show, measure=measure, pairs=True)
