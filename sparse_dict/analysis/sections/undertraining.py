"""Was the training long enough? Agreement with the next size as it grew with the steps made."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import (
    FAILS,
    LARGER,
    OPEN,
    TRAIN,
    Claim,
    Lies,
    Need,
    Sizes,
    both,
    mean_of_means,
    verdict,
)
from sparse_dict.analysis.comparison import GAUSSIAN
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.snapshots import half_of, measure
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table

GOOD_PART = 0.1  # share of features above the threshold from which growth can have levelled off
LITTLE = 0.02  # growth of that share from half to full training below which it has
FEWEST = 20  # features above the threshold at half training that relative growth needs
MUCH = 0.1  # relative growth from half to full training above which it is not slow


def show(context: Context) -> Blocks:
    """Agreement with the next size against the steps made."""
    study, chain = context.tables, context.comparison.main
    points = study.others["snapshots"]
    assert chain is not None  # LARGER is there
    schedule = (chain.entries[0].metrics["config"].get("optimizer") or {}).get("schedule")
    if schedule not in (None, "constant"):
        yield (
            f"The learning rate was lowered at the end (optimizer.schedule={schedule}), which the "
            "last snapshot alone gains from: growth at the end may be overstated."
        )
    n = points["seed"].nunique()
    note = f"Mean of {n} seeds, bands from the least to the most." if n > 1 else ""
    figure = draw(points, study.threshold)
    figure.suptitle(f"Agreement as training goes on, {figures.titled(study)}")
    yield context.figure("undertraining", figure, note)
    yield Table("Half and full training", ends(points))


def draw(points: pd.DataFrame, threshold: float) -> Figure:
    """MMCS and the share above the threshold against steps, a line per size."""
    names = {"mmcs": "MMCS with the next size", "share_above": f"share above {threshold:g}"}
    long = points.melt(["steps", "size"], [*names], "of").replace({"of": names})
    look: dict[str, Any] = {"hue": "size", "palette": figures.shades(points["size"].nunique())}
    grid = figures.facets(
        sns.relplot, long, "dictionary size", x="steps", y="value", col="of", kind="line",
        marker="o", markersize=4, errorbar=("pi", 100), height=3.6, aspect=1,
        facet_kws={"sharey": False}, **look,
    )  # fmt: skip
    batch = points["seen"].iloc[0] / points["steps"].iloc[0]
    grid.set_titles("{col_name}").set_axis_labels(f"optimiser steps of {batch:.0f} rows", "")
    grid.set(xscale="log", ylim=(0, 1))
    nulls = {"random_mmcs": ("random directions", ":"), "gaussian_mmcs": (GAUSSIAN, "-.")}
    for null, (_, dashes) in nulls.items():
        sns.lineplot(
            points, x="steps", y=null, lw=0.8, ls=dashes, errorbar=None, legend=False,
            ax=grid.axes.flat[0], **look,
        )  # fmt: skip
    grid.axes.flat[0].set_ylabel("")
    figures.percent_axis(grid.axes.flat[1])
    figures.lines_below(grid, {name: {"color": "0.4", "ls": ls} for name, ls in nulls.values()})
    return grid.figure


def ends(points: pd.DataFrame) -> pd.DataFrame:
    """A row for each size at half and at full training; means over seeds."""
    of = ["mmcs", "share_above"]
    means = points.groupby(["size", "next_size", "seen"])[of].mean().reset_index()
    ends = means.groupby("size")["seen"].transform(lambda s: s.isin([half_of(s), s.max()]))
    return means[ends]


def _more(sizes: Sizes) -> list[float]:
    half, full, *_ = mean_of_means(sizes)
    return [full - half, half, full]


def _grown(more: Estimate, _half: Estimate, full: Estimate) -> str:
    return verdict(more.low > 0, more.high < LITTLE and full.value >= GOOD_PART)


def _growth(sizes: Sizes) -> list[float]:
    half, full, *mmcs = mean_of_means(sizes)
    return [full / half - 1 if half else np.nan, mmcs[1] / mmcs[0] - 1, full]


def _slowly(count: Estimate, mmcs: Estimate, full: Estimate) -> str:
    found = both(Lies(MUCH)(count), Lies(0, MUCH)(mmcs))
    return OPEN if found == FAILS and full.value < GOOD_PART else found


def _several(features: pd.DataFrame) -> pd.DataFrame:
    at_half = features["half_near"].astype(float).groupby(features["seed"]).transform("sum")
    return features[COLUMNS.split(", ")].astype(float).where(at_half >= FEWEST)


# The share above the threshold at half and at full training, and MMCS at these
COLUMNS = "half_near, near, half_mcs, next_mcs"
SNAPSHOTS = Need(
    "snapshots at half and at the end of the training", f"{TRAIN}training.snapshots=8",
    lambda study: "snapshots" in study.others,
)  # fmt: skip
NEEDS = (LARGER, SNAPSHOTS)
OfEnds: Callable[..., Claim] = partial(
    Claim, needs=NEEDS, living=False,
    bars={"good_part": GOOD_PART, "little": LITTLE, "much": MUCH, "fewest": FEWEST},
)  # fmt: skip
CLAIMS = (
    OfEnds("undertrained", COLUMNS, _grown, _more),
    OfEnds("training_raises_count", _several, _slowly, _growth),
)
ANALYSIS = Analysis("undertraining", show, CLAIMS, measure, needs=NEEDS, seconds=(1.3, 1))
