"""What agreement is due to: dictionaries of other initial values, of other rows, and of both."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures.across_seeds import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Section, Table
from sparse_dict.analysis.seeds import (
    BOTH,
    DATA,
    INITIAL,
    SeedPair,
    estimate,
    shared,
    shared_fraction,
)
from sparse_dict.analysis.study import Entry, kin

COLOURS = {INITIAL: figures.BLUE, DATA: figures.ORANGE, BOTH: figures.GREEN}

OTHER_DATA = Statement(
    "shared_across_data",
    "Other initial values and other text would have given most of the same features",
    "-",
    "hoped for where agreement is to mean that a feature is real",
    "Shared fraction (see agreement between seeds) of dictionaries with other seeds and other rows "
    "(the other half, or another bootstrap), over all pairs and then sizes: holds if the 95 % "
    "interval lies above 0.5. Over seeds (jackknife) where there are three or more, else over "
    "features (bootstrap).",
    says=None,
)


def section(context: Context) -> Section | None:
    """Agreement of other initial values, other rows and both, beside chance and step 0."""
    pairs = context.row_pairs
    if not pairs[DATA] and not pairs[BOTH]:
        return None
    table = agreement(context, pairs)
    random = random_pw_mcc(context.study.d_in, set(table["size"]))
    main, firsts = context.comparison.main, [pair.first for kind in pairs.values() for pair in kind]
    shown = next((e for e in firsts if main and e.level == main.level), firsts[0])
    section = Section("What agreement is due to: initial values, or data")
    section.blocks.append(
        context.draw(
            "rows", by_size(table, random, shown),
            "Agreement by what differs between two dictionaries",
            "Dictionaries matched one-to-one that differ in the seed of their initial values, in "
            "the rows that they were trained on (the two halves of a random split into blocks, or "
            "two bootstraps), or in both; all else is equal. Bars: 95 %, over seeds where there "
            "are three, else over features. Open: the same before training. Dotted: random "
            "directions. Agreement that is there at step 0 says nothing of the data.",
        )
    )  # fmt: skip
    one_kind = table["kin"].nunique() == 1
    shown_table = table.drop(columns=["kin", "family"] if one_kind else "kin")
    section.blocks.append(Table("Agreement by what differs", shown_table, fold=len(table) > 12))
    return section


def agreement(context: Context, pairs: dict[str, list[SeedPair]]) -> pd.DataFrame:
    """PW-MCC and shared fraction by what differs, kind and size: at the end, and at step 0."""
    rows = []
    for kind, all_of_kind in pairs.items():
        groups: dict[tuple[int, float, str], list[SeedPair]] = defaultdict(list)
        for pair in all_of_kind:
            groups[pair.first.size, pair.first.level, kin(pair.first)].append(pair)
        for (size, level, alike), group in sorted(groups.items()):
            row: dict[str, Any] = {"differs": kind, "family": group[0].first.family, "kin": alike}
            row |= {"size": size, "level": level, "pairs": len(group)}
            before = context.at_step_0(group[0])
            for name, statistic, start in (
                ("pw_mcc", _pw_mcc, before[0]), ("shared_fraction", shared_fraction, before[1])
            ):  # fmt: skip
                found = estimate(group, statistic)
                row[name] = found.value
                row[f"{name}_low"], row[f"{name}_high"] = found.low, found.high
                row[f"{name}_at_step_0"] = start
            rows.append(row)
    return pd.DataFrame(rows)


def _pw_mcc(pairs: Sequence[SeedPair]) -> float:
    return sum(pair.pw_mcc for pair in pairs) / len(pairs)


def by_size(table: pd.DataFrame, random: dict[int, float], shown: Entry) -> Figure:
    """PW-MCC and shared fraction by size, of dictionaries like `shown`."""
    table = table[table["kin"] == kin(shown)]
    figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.4))
    sizes = sorted(set(table["size"]))
    for axis, name, title in zip(
        axes, ("pw_mcc", "shared_fraction"), ("PW-MCC", "shared fraction"), strict=True
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
        axis.set_ylim(-0.03, 1.05)
        axis.set_title(title)
    axes[0].plot(sizes, [random[size] for size in sizes], color="0.5", ls=":", label="random")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="differs", loc="outside lower center", ncols=4)
    figure.suptitle(f"What two dictionaries share, by what differs between them ({shown.setting})")
    return figure


def claims(context: Context) -> list[Claim]:
    """Whether other seeds on other rows find most of the same features."""
    pairs = context.row_pairs[BOTH]
    if not pairs:
        return [OTHER_DATA.undecided("needs -m seed=0,1 training.rows=half_a,half_b")]
    found = estimate(pairs, shared_fraction)
    mean = sum(map(shared, pairs)) / len(pairs)
    ours = f"{found.value:.0%} (mean of {len(pairs)} pairs {mean:.0%})"
    return [OTHER_DATA.decided(ours, found, verdict(found, 0.5))]


ANALYSIS = Analysis("rows", section, (OTHER_DATA,), claims)
