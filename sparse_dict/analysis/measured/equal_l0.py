"""Kinds of dictionaries at the L0 that the plain kind has at its level.

Agreement, reconstruction and all else move with L0, so each measure is read off between the levels
that a kind was trained at, along the logarithm of L0, and nowhere beyond them.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from sparse_dict.analysis.claim import Sizes, estimates, samples
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures.intervals import Estimate

GROUP = ["family", "level"]
REACH = 1.05  # factor beyond the lowest and the highest L0 of a kind that counts as the same
MEASURES = {  # columns of pairs or of dictionaries, titles and formats
    "shared": ("same", "shared", ".1%"), "pw_mcc": ("cosine", "PW-MCC", ".3f"),
    "fvu": ("fvu", "FVU", ".3f"), "dead": ("dead", "dead", ".1%"),
    "neurons": ("effective_neurons", "effective neurons", ".1f"),
    "recovered": ("loss_recovered", "loss recovered", ".1%"),
}  # fmt: skip
OF_PAIRS = ("same", "cosine")  # without three seeds, features give their interval


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """A row for each kind, size and measure, at the L0 that the plain kind has at its level.

    `before` is PW-MCC of the initial values, `change` the difference from the plain kind, over the
    seeds that both have. Kinds without levels on both sides of that L0 have no rows.
    """
    if len(context.study.families) < 2:
        return {}
    study, plain = context.tables, context.tables.about.plain
    pairs = study.seed_pairs.copy()
    known = study.dictionaries.set_index("dictionary")
    level = known.loc[known["chosen"] & (known["family"] == plain), "level"]
    for column, _, _ in MEASURES.values():
        if column in known:  # of a pair, the mean of both
            ends = [pairs[end].map(known[column]) for end in ("dictionary", "second")]
            pairs[column] = (ends[0] + ends[1]) / 2
    rows = []
    for size, of in pairs.groupby("size"):
        usual = of[of["family"] == plain]
        l0 = usual.loc[usual["level"].isin(level), "l0"].mean()
        for family, own in of.groupby("family"):
            one, kind = own.iloc[0], partial(read_off, str(family), l0)
            both = own if family == plain else pd.concat([own, usual])
            less = partial(_less, kind, partial(read_off, plain, l0))
            before = context.at_step_0(one["dictionary"], one["second"])[0]
            row = {"kind": one["kind"], "dict_size": size, "l0": l0, "before": before}
            for name, (column, _, _) in MEASURES.items():
                if column in pairs and np.isfinite((value := _over(own, column, kind)).value):
                    found = value.columns("value") | _over(both, column, less).columns("change")
                    rows.append(row | {"measure": name, "over": value.over or "-"} | found)
    return {"equal_l0": pd.DataFrame(rows)} if len({row["kind"] for row in rows}) > 1 else {}


def _over(pairs: pd.DataFrame, column: str, number: Callable[[Sizes], float]) -> Estimate:
    """A number of groups (family, level) of pairs, with L0 and a measure."""
    of = samples(pairs, pairs[["l0", column]], GROUP)
    return estimates(of, number, column in OF_PAIRS)[0]


def read_off(family: str, l0: float, groups: Sizes) -> float:
    """What a kind has at an L0, of groups with L0 and a measure, (n, 2); nan beyond its levels."""
    means = [values.mean(0) for group, values in groups.items() if group[0] == family]
    points = sorted((np.log(x), y) for x, y in means if x > 0)
    if not points:
        return np.nan
    (x, y), at, reach = np.array(points).T, np.log(l0 or np.nan), np.log(REACH)
    return float(np.interp(at, x, y)) if x[0] - reach <= at <= x[-1] + reach else np.nan


def _less(one: Callable[[Sizes], float], other: Callable[[Sizes], float], groups: Sizes) -> float:
    return one(groups) - other(groups)
