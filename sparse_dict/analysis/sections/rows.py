"""What agreement is due to: dictionaries of other initial values, of other rows, and of both."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Lies, Need, estimates, mean_of_means, samples
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measures.two_dictionaries import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.study import setting
from sparse_dict.analysis.tables import BOTH, ROWS, SEED, Tables

NAMES = {SEED: "initial values", ROWS: "data", BOTH: "both"}
COLOURS = dict(zip(NAMES.values(), (figures.BLUE, figures.ORANGE, figures.GREEN), strict=True))
MEASURES = {"pw_mcc": "cosine", "shared_fraction": "same"}  # columns of pairs
TITLES = {"pw_mcc": "PW-MCC", "shared_fraction": "shared fraction"}


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """PW-MCC and shared fraction by what differs, kind and size: at the end, and at step 0."""
    pairs = context.tables.matched
    if not pairs["differ"].isin([ROWS, BOTH]).any():
        return {}
    rows = []
    for (differ, size, level, alike), group in pairs.groupby(["differ", "size", "level", "alike"]):
        one = group.iloc[0]
        row = {
            "differs": NAMES[str(differ)], "family": one["family"], "alike": alike, "size": size,
            "level": level, "axis": one["axis"],
            "pairs": len(group[["dictionary", "second"]].drop_duplicates()),
        }  # fmt: skip
        before = context.at_step_0(one["dictionary"], one["second"])
        for (key, value), start in zip(MEASURES.items(), before, strict=True):
            found = estimates(samples(group, group[value], "size"), mean_of_means)[0]
            row |= found.columns(key) | {f"{key}_at_step_0": start}
        rows.append(row)
    return {"rows": pd.DataFrame(rows)}


def show(context: Context) -> Blocks:
    """Agreement of other initial values, other rows and both, beside chance and step 0."""
    study = context.tables
    if "rows" not in study.others:
        return
    table = study.others["rows"]
    at_level = table[table["level"].isin(study.level["level"])]
    first = (at_level if len(at_level) else table).iloc[0]
    figure = draw(study, table[table["alike"] == first["alike"]])
    yield context.figure("rows", figure, f"Here at {setting(first['axis'], first['level'])}.")
    dropped = ["alike", "axis", *(["family"] if table["alike"].nunique() == 1 else [])]
    yield Table("Agreement by what differs", table.drop(columns=dropped), fold=len(table) > 12)


def draw(study: Tables, table: pd.DataFrame) -> Figure:
    """PW-MCC and shared fraction by size."""
    figure, (axes,) = figures.grid(1, 2, 3.4)
    look: dict[str, Any] = {"hue": "differs", "palette": COLOURS}
    rows = figures.ends(table, *TITLES)
    bars = {"estimator": "median", "err_style": "bars", "marker": "o"}
    for name, axis in figures.panels(axes, rows, TITLES, **look, **bars).items():
        start = f"{name}_at_step_0"
        sns.scatterplot(table, x="size", y=start, marker="x", legend=False, ax=axis, **look)
        axis.set(ylim=(-0.03, 1.05), ylabel="")
    figures.chance(axes[0], {"random": random_pw_mcc(study.about.d_in, {*table["size"]})})
    return figures.below(figure, axes[0], 4)


def _of_both(study: Tables) -> pd.DataFrame:
    """Pairs of dictionaries of other seeds and other rows."""
    return study.matched[study.matched["differ"] == BOTH]


HALVES = Need(
    "other seeds on other rows", f"{TRAIN}seed=0,1,2 training.rows=half_a,half_b",
    lambda study: not _of_both(study).empty,
)  # fmt: skip
CLAIMS = (
    Claim("shared_across_data", "same", Lies(0.5), of=_of_both, needs=(HALVES,), of_all=True),
)
ANALYSIS = Analysis("rows", show, CLAIMS, measure, pairs=True)
