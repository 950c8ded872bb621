"""How much of what one dictionary learned another seed learned too: part of `agreement`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Lies, Need, Sizes
from sparse_dict.analysis.context import Blocks, Context
from sparse_dict.analysis.measures.two_dictionaries import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.study import LABELS, number, setting
from sparse_dict.analysis.tables import Tables

FEWEST = 15  # features of a dictionary whose thirds by frequency are compared
SETTING = ["family", "level", "size"]


def show(context: Context) -> Blocks:
    """PW-MCC and the shared fraction of pairs of seeds."""
    study = context.tables
    pairs = study.seed_pairs
    limit = study.about.comparison["match_limit"]
    known = study.dictionaries[study.dictionaries["site"] == study.about.site]
    several = known.groupby(SETTING)["seed"].transform("nunique") > 1
    large = sorted({*known.loc[several & (known["size"] > limit), "size"]})
    if large:
        named = ", ".join(map(str, large))
        yield f"Above comparison.match_limit={limit}, so seeds were not compared: size {named}."
    if pairs.empty:
        if not large:
            yield (
                "The study has one seed for each setting, so agreement across seeds is not shown; "
                "train with -m seed=0,1,2 to see it."
            )
        return
    own = pairs[pairs["family"] == study.about.family]
    kind = f"Shown: {study.about.family}." if known["family"].nunique() > 1 else ""
    yield context.figure("agreement_seeds", draw(study, own if len(own) else pairs), kind)
    each = pairs.groupby(["dictionary", "second"], sort=False)
    ones, means = each.first(), each[["cosine", "same"]].mean()
    columns = {
        "family": ones["family"], "dict_size": ones["size"],
        "sparsity": [*map(setting, ones["axis"], ones["level"])],
        "seeds": ones["seed"].astype(str) + ", " + ones["other_seed"].astype(str),
        "l0": ones["l0"], "pw_mcc": means["cosine"], "shared_fraction": means["same"],
    }  # fmt: skip
    yield Table("Pairs of seeds", pd.DataFrame(columns), fold=pairs["dictionary"].nunique() > 12)


def draw(study: Tables, pairs: pd.DataFrame) -> Figure:
    """PW-MCC and shared fraction by size, and at the chosen level by firing frequency."""
    means = pairs.groupby(["dictionary", "second", *SETTING])[["cosine", "same"]].mean()
    rows = means.reset_index().sort_values(["level", "family", "size"])
    rows["level"] = rows["level"].map(number)
    figure, ((*left, right),) = figures.grid(1, 3, 3.6)
    look: dict[str, Any] = {"hue": "level", "palette": figures.shades(rows["level"].nunique())}
    several = rows["family"].nunique() > 1
    look |= {"style": "family", "markers": True} if several else {"marker": "o"}
    axes = figures.panels(left, rows, {"cosine": "PW-MCC", "same": "shared fraction"}, **look)
    for axis in left:
        axis.set_ylim(0, 1.03)
    figures.chance(axes["cosine"], {"random": random_pw_mcc(study.about.d_in, {*rows["size"]})})
    at_level = study.main_pairs if len(study.main_pairs) else pairs
    figures.by_frequency(right, at_level, "same", "plasma")
    right.set(xlabel="share of rows active", title="shared fraction by frequency")
    figures.below(figure, left[0], 3, f"{LABELS[pairs['axis'].iloc[0]]} (left and middle)", "left")
    return figures.below(figure, right, 2, "size (right)", "right")


def _thirds(f: pd.DataFrame) -> pd.DataFrame:
    """Whether features are shared, and whether they are of the upper third by frequency, or lower.

    Thirds of each pair; the middle one is nan.
    """
    of = f.groupby(["dictionary", "second"])["frequency"]
    rank, n = of.rank(method="first") - 1, of.transform("size")
    often, third = (rank >= n - n // 3).astype(float), n // 3
    outer = (n >= FEWEST) & ((rank < third) | (rank >= n - third))
    return pd.DataFrame({"same": f["same"].astype(float), "often": often.where(outer)})


def _by_third(sizes: Sizes) -> list[float]:
    """The upper third less the lower one, and both; nan where a resample has none of it."""
    parts = [[v[v[:, 1] == often, 0] for v in sizes.values()] for often in (1, 0)]
    upper, lower = (np.mean([p.sum() / (len(p) or np.nan) for p in of]) for of in parts)
    return [upper - lower, upper, lower]


PAIRS = Need(
    "several seeds of sizes up to comparison.match_limit", f"{TRAIN}seed=0,1,2",
    lambda study: not study.main_pairs.empty,
)  # fmt: skip
OnPairs: Callable[..., Claim] = partial(Claim, of="main_pairs", needs=(PAIRS,))
ENDS = "size == size.min() or size == size.max()"
CLAIMS = (
    OnPairs("shared_across_seeds", "same", Lies(0.5)),
    OnPairs(
        "shared_falls_with_size", "same", Lies(0), where=ENDS, sizes=2,
        number=lambda sizes: sizes[min(sizes)].mean() - sizes[max(sizes)].mean(),
    ),
    OnPairs("shared_rises_with_frequency", _thirds, Lies(0), _by_third, bars={"fewest": FEWEST}),
)  # fmt: skip
