"""What larger dictionaries add: MMCS and counts of features by dictionary size.

Everything here compares with the next size and counts all features, even where
`comparison.against` or `comparison.features` say otherwise: the post's claims are about these.
"""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import LARGER, TRAIN, Claim, Lies, Need, Sizes, both
from sparse_dict.analysis.comparison import MATCHING, Variant
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.tables import Tables

STEEP = 0.02  # MMCS counts as rising if it grows by more than this per doubling of the size
MOST = 0.5  # larger shares of features count as most of them
FEWEST = 5  # features of each sort that a size needs to count in a slope of counts


def show(context: Context) -> Blocks:
    """The curves, and the numbers behind them."""
    study, table = context.tables, counts(context.tables)
    numbers = partial(context.comparison.numbers, variant=Variant("max", "next", "all"))
    of = [numbers(entry, gaussian=True) for entry in context.comparison.shown_of()[:-1]]
    nulls = pd.DataFrame(of, index=table["size"])[["random_mmcs", "gaussian_mmcs"]]
    yield context.figure("sizes", draw(study, table, nulls))
    yield Table("Numbers of features by size", table, fold=len(table) > 12)


def counts(study: Tables) -> pd.DataFrame:
    """One row a size of the lowest seed: MMCS with the next, and how many of each sort."""
    shown, above = study.shown, f"above {study.threshold:g}"
    living = shown["next_mcs_alive"].where(shown["alive"]) > study.threshold
    sorts = {
        above: shown["near"], f"{above}, ever active": living, "one to one": shown["own"],
        "one to one, ever active": shown["own_alive"], "without an analogue": shown["unrelated"],
        "of these never active": shown["unrelated"] & ~shown["alive"],
    }  # fmt: skip
    by_size = pd.DataFrame({"size": shown["size"], **sorts}).groupby("size").sum()
    by_size.insert(0, "MMCS", shown.groupby("size")["next_mcs"].mean())
    return by_size.reset_index()


def draw(study: Tables, table: pd.DataFrame, nulls: pd.DataFrame) -> Figure:
    """MMCS beside both nulls, and numbers of features of each sort, by dictionary size."""
    figure, ((left, right),) = figures.grid(1, 2, 3.3)
    names = {"MMCS": "MMCS with the next size"}
    figures.panels([left], table, names, color=figures.BLUE, marker="o")
    figures.chance(left, nulls)
    left.set_ylim(0, 1)
    blue, green = ([colour, f"{colour}66"] for colour in (figures.BLUE, figures.GREEN))
    sorts = table.set_index("size").drop(columns="MMCS")
    sorts.where(sorts > 0).plot(  # a logarithm has no zero
        ax=right, color=[*blue, *green, figures.ORANGE, figures.RED], ms=4, lw=1.2,
        style=["o-", "o-", "o--", "o--", "o-", "o-"], logy=True, title="features",
    )  # fmt: skip
    right.axhline(study.about.d_in, color="0.4", ls=":", lw=1.2)
    figures.size_axis(right, [*sorts.index])
    how = f"{MATCHING[study.about.comparison['matching']]}, next size, all features"
    figure.suptitle(f"What larger dictionaries add, {figures.titled(study)}\n{how}")
    return figures.below(figure, right, columns=3)


def slope(sizes: Sizes) -> float:
    """Change of the mean per doubling of the size, by least squares."""
    return float(np.polyfit(np.log2([*sizes]), [*map(np.mean, sizes.values())], 1)[0])


def _halves(sizes: Sizes) -> list[float]:
    """Slopes over the larger and the smaller half of the sizes, and where each half ends."""
    n, every = len(sizes), [*sizes]
    halves = every[n // 2 :], every[: (n + 1) // 2]  # a middle one is in both
    slopes = (slope({size: sizes[size] for size in half}) for half in halves)
    return [*slopes, *(half[end] for half in halves for end in (0, -1))]


def _powers(sizes: Sizes) -> list[float]:
    """Slopes of ln number on ln size: unrelated features less near ones, and both."""
    # Half a feature is added because a resample may hold none, which has no logarithm.
    ln = [{size: np.log2(v[:, k].sum() + 0.5) for size, v in sizes.items()} for k in (0, 1)]
    unrelated, near = map(slope, ln)
    return [unrelated - near, unrelated, near]


def _both_sorts(features: pd.DataFrame) -> pd.DataFrame:
    """Whether features are unrelated, and near; nan at sizes with too few of either."""
    both = features[["unrelated", "near"]].astype(float)
    found = both.groupby(features["size"]).transform("sum") / features["seed"].nunique()
    return both.where((found >= FEWEST).all(axis=1))


def _most(features: pd.DataFrame) -> "pd.Series[Any]":
    """Features with a partner of their own, by d_in, at the size that has most of them."""
    most = features.groupby("size")["own"].sum().idxmax()
    return (features["own"] / features["d_in"]).where(features["size"] == most)


WIDER = Need(
    "dictionaries wider than the activations, and larger ones",
    f"{TRAIN}sae.dict_size=256,512,1024",
    lambda study: bool((study.main["size"] > study.about.d_in).any()),
)
IN_4096 = "next_size == 4096"
CLAIMS = (
    Claim(
        "more_than_dimensions", _most, Lies(1), needs=(LARGER, WIDER),
        number=lambda sizes: sum(values.sum() for values in sizes.values()),
    ),
    Claim(
        "mmcs_rises_then_level", "next_mcs", number=_halves, sizes=3, bars={"steep": STEEP},
        rule=lambda level, up, *_: both(Lies(STEEP)(up), Lies(-STEEP, STEEP)(level)),
    ),
    Claim("mmcs_falls_with_size", "next_mcs", Lies(high=0), slope, sizes=2),
    Claim("nearly_identical_at_512", "near", Lies(MOST), at=(512,)),
    Claim("no_analogue_at_2048", "unrelated", Lies(MOST), at=(2048,), where=IN_4096),
    Claim(
        "no_analogue_dead_at_2048", "~alive", Lies(0.25), at=(2048,),
        where=f"unrelated and {IN_4096}", fewest=20, living=False,
    ),
    Claim(
        "more_similar_at_2048", "near", Lies(0), at=(512, 2048),
        number=lambda sizes: sizes[max(sizes)].sum() - sizes[min(sizes)].sum(),
    ),
    Claim("similar_grow_slower", _both_sorts, Lies(0), _powers, sizes=3, bars={"fewest": FEWEST}),
)  # fmt: skip
ANALYSIS = Analysis("sizes", show, CLAIMS, needs=(LARGER,))
