"""What agreement is due to: dictionaries of other initial values, of other rows, and of both."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need, Sizes, over_pairs
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures.two_dictionaries import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.sections.seeds import matched, samples
from sparse_dict.analysis.study import setting
from sparse_dict.analysis.tables import BOTH, ROWS, SEED, Tables

NAMES = {SEED: "initial values", ROWS: "data", BOTH: "both"}
COLOURS = dict(zip(NAMES.values(), (figures.BLUE, figures.ORANGE, figures.GREEN), strict=True))


def mean(sizes: Sizes) -> float:
    """The mean over the pairs of each size, averaged over sizes; groups begin with their size."""
    parts = defaultdict(list)
    for group, values in sizes.items():
        parts[group[0]].append(values)
    return float(np.mean([np.concatenate(values).mean() for values in parts.values()]))


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """PW-MCC and shared fraction by what differs, kind and size: at the end, and at step 0."""
    pairs = matched(context.tables)
    if not pairs["differ"].isin([ROWS, BOTH]).any():
        return {}
    entries = {entry.name: entry for entry in context.study.entries}
    rows = []
    for differ, name in NAMES.items():
        own = pairs[pairs["differ"] == differ]
        for (size, level, alike), group in own.groupby(["size", "level", "alike"]):
            one = group.iloc[0]
            row: dict[str, Any] = {"differs": name, "family": one["family"], "alike": alike}
            row |= {"size": size, "level": level, "axis": one["axis"]}
            row["pairs"] = len(group[["first", "second"]].drop_duplicates())
            before = context.at_step_0(entries[one["first"]], entries[one["second"]])
            for key, value, start in zip(
                ("pw_mcc", "shared_fraction"), ("cosine", "same"), before, strict=True
            ):
                found = over_pairs(samples(group, value, ["size"]), mean)
                row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
                row[f"{key}_at_step_0"] = start
            rows.append(row)
    return {"rows": pd.DataFrame(rows)}


def show(context: Context) -> Iterator[Block]:
    """Agreement of other initial values, other rows and both, beside chance and step 0."""
    study = context.tables
    if "rows" not in study.others:
        return
    table = study.others["rows"]
    at_level = table[table["level"].isin(study.level["level"])]
    first = (at_level if len(at_level) else table).iloc[0]
    yield context.figure("rows", draw(study, table[table["alike"] == first["alike"]]))
    dropped = ["alike", "axis", *(["family"] if table["alike"].nunique() == 1 else [])]
    yield Table("Agreement by what differs", table.drop(columns=dropped), fold=len(table) > 12)


def draw(study: Tables, table: pd.DataFrame) -> Figure:
    """PW-MCC and shared fraction by size."""
    figure, axes = figures.grid(1, 2, 3.4)
    sizes = sorted({*table["size"]})
    random = random_pw_mcc(study.about.d_in, {*sizes})
    for axis, name, title in zip(
        axes[0], ("pw_mcc", "shared_fraction"), ("PW-MCC", "shared fraction"), strict=True
    ):
        for place, (kind, colour) in enumerate(COLOURS.items()):
            rows = table[table["differs"] == kind]
            if rows.empty:
                continue
            x = rows["size"] * 1.06 ** (place - 1)
            errors = [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
            style = {"color": colour, "ms": 5, "lw": 1}
            axis.errorbar(x, rows[name], errors, fmt="o-", label=kind, capsize=2, **style)
            axis.plot(x, rows[f"{name}_at_step_0"], "o", mfc="none", **style)
        figures.size_axis(axis, sizes)
        axis.set(ylim=(-0.03, 1.05), title=title)
    left = axes[0, 0]
    left.plot(sizes, [random[size] for size in sizes], color="0.5", ls=":", label="random")
    figures.below(figure, left, 4, "differs")
    one = table.iloc[0]
    at = setting(one["axis"], one["level"])
    figure.suptitle(f"What two dictionaries share, by what differs between them ({at})")
    return figure


def _both(study: Tables) -> Found:
    """The share of features that dictionaries of other seeds and other rows have in common."""
    pairs = matched(study)
    own = samples(pairs[pairs["differ"] == BOTH], "same", ["size", "family", "level"])
    found = over_pairs(own, mean)
    every = float(np.mean([sample.values.mean() for sample in own]))
    told = f"{found.value:.0%} (mean of {len(own)} pairs {every:.0%})"
    return Found(told, Lies(0.5)(found), found)


HALVES = Need(
    "other seeds on other rows", f"{TRAIN}seed=0,1,2 training.rows=half_a,half_b",
    lambda study: bool((matched(study)["differ"] == BOTH).any()),
)  # fmt: skip
CLAIMS = (
    Claim(
        "shared_across_data",
        "Other initial values and other text would have given most of the same features",
        "-", "hoped for where agreement is to mean that a feature is real",
        "Shared fraction (see agreement between seeds) of dictionaries with other seeds and other "
        "rows (the other half, or another bootstrap), over all pairs and then sizes: holds if the "
        "95 % interval lies above 0.5. Over seeds (jackknife) where there are three or more, else "
        "over features (bootstrap).",
        judge=_both, needs=(HALVES,), says=None, of_all=True,
    ),
)  # fmt: skip
ANALYSIS = Analysis("rows", show, CLAIMS, measure, pairs=True)
