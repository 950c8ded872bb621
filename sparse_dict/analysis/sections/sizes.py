"""What larger dictionaries add: MMCS and counts of features by dictionary size.

Everything here compares with the next size and counts all features, even where
`comparison.against` or `comparison.features` say otherwise: the post's claims are about these.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import (
    LARGER,
    TRAIN,
    Claim,
    Found,
    Lies,
    Need,
    Sizes,
    both,
    estimate,
    of_sizes,
    some_sizes,
)
from sparse_dict.analysis.comparison import MATCHING, Variant
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.tables import RARE, Tables

STEEP = 0.02  # MMCS counts as rising if it grows by more than this per doubling of the size
MOST = 0.5  # larger shares of features count as most of them
FEWEST = 5  # features of each sort that a size needs to count in a slope of counts


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


def show(context: Context) -> Iterator[Block]:
    """The curves, and the numbers behind them."""
    study = context.tables
    table = counts(study)
    nexts, chain = Variant("max", "next", "all"), context.comparison.main
    assert chain is not None  # LARGER is there
    gaussian = [context.comparison.gaussian_mean(entry, nexts) for entry in chain.entries[:-1]]
    yield context.figure("sizes", draw(study, table, gaussian))
    yield Table("Numbers of features by size", table, fold=len(table) > 12)


def draw(study: Tables, table: pd.DataFrame, gaussian: Sequence[float]) -> Figure:
    """MMCS beside both nulls, and numbers of features of each sort, by dictionary size."""
    figure, ((left, right),) = figures.grid(1, 2, 3.3)
    sizes, d = table["size"].tolist(), study.about.d_in
    left.plot(sizes, table["MMCS"], color=figures.BLUE, marker="o", ms=4, lw=1.2)
    nexts = study.shown.groupby("size")["next_size"].first()
    random = [random_directions.max_mean(d, int(n)) for n in nexts]
    left.plot(sizes, random, color="0.4", ls=":", lw=1.2)
    left.plot(sizes, gaussian, color=figures.PURPLE, ls=":", lw=1.2)
    left.set(ylim=(0, 1), ylabel="MMCS with the next size")
    colours = (*[figures.BLUE] * 2, *[figures.GREEN] * 2, figures.ORANGE, figures.RED)
    for sort, colour in zip(table.columns[2:], colours, strict=True):
        known = table[sort].where(table[sort] > 0)  # a logarithm has no zero
        right.plot(
            sizes, known, label=sort, color=colour, marker="o", ms=4, lw=1.2,
            ls="--" if "one to one" in sort else "-", alpha=0.4 if "ever" in sort else 1,
        )  # fmt: skip
    right.axhline(d, color="0.4", ls=":", lw=1.2)
    right.set(yscale="log", ylabel="features")
    for axis in (left, right):
        figures.size_axis(axis, sizes, 0 if len(sizes) <= 5 else 45)
    figures.below(figure, right, columns=3)
    matching = MATCHING[study.about.comparison["matching"]]
    title = f"What larger dictionaries add, {figures.titled(study)}"
    figure.suptitle(f"{title}\n{matching}, next size, all features")
    return figure


def slope(sizes: Sizes, of: Callable[[Any], float] = np.mean) -> float:
    """Change of the mean per doubling of the size, by least squares; or of another number."""
    return float(np.polyfit(np.log2([*sizes]), [of(v) for v in sizes.values()], 1)[0])


def half(sizes: Sizes, larger: bool) -> Sizes:
    """The smaller or the larger half of the sizes; a middle one is in both."""
    n = len(sizes)
    kept = [*sizes][n // 2 :] if larger else [*sizes][: (n + 1) // 2]
    return {size: sizes[size] for size in kept}


def growth(sizes: Sizes, column: int) -> float:
    """Slope of ln number on ln size, of a column of truth values."""
    # Half a feature is added because a resample may hold none, which has no logarithm.
    return slope(sizes, lambda values: float(np.log2(values[:, column].sum() + 0.5)))


def _powers(_found: Estimate, seeds: Sequence[Sizes]) -> str:
    unrelated, near = (np.mean([growth(sizes, column) for sizes in seeds]) for column in (0, 1))
    return f"as size to the power {near:.2f}, against {unrelated:.2f}"


def _both_sorts(features: pd.DataFrame) -> pd.DataFrame:
    """Whether features are unrelated, and near; nan at sizes with too few of either."""
    both = features[["unrelated", "near"]].astype(float)
    found = both.groupby(features["size"]).transform("sum") / features["seed"].nunique()
    return both.where((found >= FEWEST).all(axis=1))


def _most(features: pd.DataFrame) -> "pd.Series[Any]":
    """Features with a partner of their own, by d_in, at the size that has most of them."""
    most = features.groupby("size")["own"].sum().idxmax()
    return (features["own"] / features["d_in"]).where(features["size"] == most)


def _rises_then_level(study: Tables) -> Found:
    estimates, spans = [], []
    for larger in (False, True):
        number = partial(lambda larger, sizes: slope(half(sizes, larger)), larger)
        found, seeds = estimate(replace(PLATEAU, number=number), study)
        if found is None:
            return Found(PLATEAU.too_few)
        estimates.append(found)
        first, *_, last = half(seeds[0], larger)
        known = f" [{found.low:+.3f}, {found.high:+.3f}]" if np.isfinite(found.low) else ""
        spans.append(f"{found.value:+.3f}{known} a doubling from {first} to {last}")
    rises, level = Lies(STEEP)(estimates[0]), Lies(-STEEP, STEEP)(estimates[1])
    return Found(", ".join(spans), both(rises, level), estimates[1])


def _at(*sizes: int) -> Need:
    """Dictionaries of these sizes that have a larger one."""
    grid = ",".join(map(str, (*sizes, 2 * sizes[-1])))
    return Need(
        f"size {' and '.join(map(str, sizes))} and a larger one", f"{TRAIN}sae.dict_size={grid}",
        lambda study: {*sizes} <= {*study.main["size"]},
    )  # fmt: skip


WIDER = Need(
    "dictionaries wider than the activations, and larger ones",
    f"{TRAIN}sae.dict_size=256,512,1024",
    lambda study: bool((study.main["size"] > study.about.d_in).any()),
)
PLATEAU = Claim(
    "mmcs_rises_then_level",
    lambda f: f["next_mcs"],
    needs=(LARGER, some_sizes(4)),
    sizes=3,
    judge=_rises_then_level,
    bars={"steep": STEEP},
)
CLAIMS = (
    Claim(
        "more_than_dimensions",
        _most,
        Lies(1),
        lambda sizes: float(sum(v.sum() for v in sizes.values())),
        "{:.2f} times",
        needs=(LARGER, WIDER),
    ),
    PLATEAU,
    Claim(
        "mmcs_falls_with_size",
        lambda f: f["next_mcs"],
        Lies(high=0),
        slope,
        "{:+.3f} a doubling",
        needs=(LARGER, some_sizes(3)),
        sizes=2,
    ),
    Claim(
        "nearly_identical_at_512",
        lambda f: f["near"].where(f["size"] == 512),
        Lies(MOST),
        needs=(_at(512),),
    ),
    Claim(
        "no_analogue_at_2048",
        lambda f: f["unrelated"].where(f["size"] == 2048),
        Lies(MOST),
        needs=(of_sizes(2048, 4096),),
        bars={"rare": RARE},
    ),
    Claim(
        "no_analogue_dead_at_2048",
        lambda f: (~f["alive"]).where(f["unrelated"] & (f["size"] == 2048)),
        Lies(0.25),
        needs=(of_sizes(2048, 4096),),
        fewest=20,
        living=False,
        too_few="fewer than 20 features without an analogue",
    ),
    Claim(
        "more_similar_at_2048",
        lambda f: f["near"].where(f["size"].isin([512, 2048])),
        Lies(0),
        lambda sizes: float(sizes[2048].sum() - sizes[512].sum()),
        "{:+.0f} features",
        needs=(_at(512, 2048),),
        sizes=2,
    ),
    Claim(
        "similar_grow_slower",
        _both_sorts,
        Lies(0),
        lambda sizes: growth(sizes, 0) - growth(sizes, 1),
        _powers,
        needs=(LARGER, some_sizes(4)),
        sizes=3,
        too_few=f"fewer than three sizes with {FEWEST} features of each sort",
        bars={"fewest": FEWEST, "rare": RARE},
    ),
)
ANALYSIS = Analysis("sizes", show, CLAIMS, needs=(LARGER,))
