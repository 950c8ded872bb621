"""Was the training long enough? Agreement with the next size as it grew with the steps made.

Training keeps decoders on a log schedule (`training.snapshots`); those of a dictionary and of the
next larger one after the same number of rows are compared as finished dictionaries are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claim import (
    FAILS,
    HOLDS,
    LARGER,
    OPEN,
    TRAIN,
    Claim,
    Found,
    Lies,
    Need,
    Sizes,
    both,
    estimate,
)
from sparse_dict.analysis.comparison import GAUSSIAN
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import gaussian_rows, random_directions
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.measures.mcs import match, max_cosine, normalised
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.study import Entry
from sparse_dict.analysis.tables import Tables
from sparse_dict.errors import UserError
from sparse_dict.sae import folder as folders

HALF = (0.4, 0.6)  # of the training: batches do not divide it exactly
GOOD_PART = 0.1  # share of features above the threshold from which growth can have levelled off
FEWEST = 20  # features above the threshold at half training that relative growth needs
MUCH = 0.1  # relative growth from half to full training above which it is not slow


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """MCS of each snapshot of the main dictionaries, all seeds; that at half training by feature.

    All features count, since snapshots do not hold which ones fire. Nothing where a dictionary has
    no snapshot at half of its training.

    Raises:
        UserError: a snapshot is damaged, or of another dictionary.
    """
    comparison, chain, d = context.comparison, context.comparison.main, context.study.d_in
    rows: list[dict[str, Any]] = []
    halves = []
    for alike in comparison.same_but_seed(chain) if chain else ():
        for entry, larger in pairwise(alike.entries):
            own, others = _snapshots(entry), _snapshots(larger)
            common = sorted(own.keys() & others.keys())
            if (half := half_of(common)) is None:
                return {}
            for seen in common:
                if comparison.shown.matching == "max":
                    mcs = max_cosine(own[seen], others[seen], comparison.settings.block_rows)
                else:  # one to one; snapshots have no encoder, so no codes
                    mcs = match(own[seen], others[seen])[1]
                above = mcs > comparison.settings.threshold
                laws = (gaussian_rows.Law.of(one[seen]) for one in (own, others))
                like = gaussian_rows.mcs(next(laws), [*laws], comparison.settings.block_rows)
                rows.append(
                    {
                        "dictionary": entry.name, "size": entry.size, "next_size": larger.size,
                        "seed": alike.seed, "seen": seen, "steps": seen / _batch_size(entry),
                        "mmcs": float(mcs.mean()),
                        "random_mmcs": random_directions.mean_mcs(d, [larger.size]),
                        "gaussian_mmcs": float(like.mean()),
                        "n_above": int(above.sum()), "share_above": float(above.mean()),
                    }
                )  # fmt: skip
                if seen == half:
                    columns = {"dictionary": entry.name, "feature": np.arange(entry.size)}
                    halves.append(pd.DataFrame(columns | {"half_mcs": mcs, "half_near": above}))
    return {"features": pd.concat(halves), "snapshots": pd.DataFrame(rows)} if rows else {}


def _batch_size(entry: Entry) -> int:
    size = (entry.metrics["config"].get("training") or {}).get("batch_size")
    if not isinstance(size, int) or size < 1:
        raise UserError(f"{entry.name}: metrics.json holds no training.batch_size")
    return size


def _snapshots(entry: Entry) -> dict[int, NDArray[np.float32]]:
    kept = folders.read_snapshots(entry.trained)
    return {seen: normalised(decoder) for seen, decoder in kept.items()}


def half_of(seen: Iterable[int]) -> int | None:
    """Which of the numbers of rows is about half of the last one; None if there is none."""
    rows = list(seen)
    low, high = (share * max(rows, default=0) for share in HALF)
    return next((n for n in rows if low <= n <= high), None)


def show(context: Context) -> Iterator[Block]:
    """Agreement with the next size against the steps made."""
    study = context.tables
    points, chain = study.others["snapshots"], context.comparison.main
    assert chain is not None  # LARGER is there
    schedule = (chain.entries[0].metrics["config"].get("optimizer") or {}).get("schedule")
    if schedule not in (None, "constant"):
        yield (
            f"The learning rate was lowered at the end (optimizer.schedule={schedule}), which the "
            "last snapshot alone gains from: growth at the end may be overstated."
        )
    title = f"Agreement as training goes on, {figures.titled(study)}"
    n = points["seed"].nunique()
    note = f"Mean of {n} seeds, bands from the least to the most." if n > 1 else ""
    yield context.figure("undertraining", draw(points, study.threshold, title), note)
    yield Table("Half and full training", ends(points))


def draw(points: pd.DataFrame, threshold: float, title: str) -> Figure:
    """MMCS and the share above the threshold against steps, a line per size."""
    figure, (axes,) = figures.grid(1, 2, 3.6)
    sizes = sorted(points["size"].unique())
    palette = dict(zip(sizes, figures.shades(len(sizes)), strict=True))
    batch = float(points["seen"].iloc[0] / points["steps"].iloc[0])
    names = {"mmcs": "MMCS with the next size", "share_above": f"MCS above {threshold:g}"}
    for axis, (value, label) in zip(axes, names.items(), strict=True):
        sns.lineplot(
            points, x="steps", y=value, hue="size", palette=palette, marker="o", markersize=4,
            lw=1.2, errorbar=("pi", 100), legend=axis is axes[0], ax=axis,
        )  # fmt: skip
        axis.set(xscale="log", xlabel=f"optimiser steps of {batch:.0f} rows", ylabel=label)
        axis.set_ylim(0, 1)
        rows = axis.secondary_xaxis("top", functions=(lambda s: s * batch, lambda r: r / batch))
        rows.set_xlabel("rows (activations) seen")
    nulls = {"random_mmcs": ("random directions", ":"), "gaussian_mmcs": (GAUSSIAN, "-.")}
    for null, (label, dashes) in nulls.items():
        sns.lineplot(
            points, x="steps", y=null, hue="size", palette=palette, lw=0.8, ls=dashes,
            errorbar=None, legend=False, ax=axes[0],
        )  # fmt: skip
        axes[0].plot([], [], color="0.4", lw=0.8, ls=dashes, label=label)
    axes[0].set_ylabel(names["mmcs"])
    figures.percent_axis(axes[1])
    figures.below(figure, axes[0], 5, "dictionary size")
    figure.suptitle(title)
    return figure


def ends(points: pd.DataFrame) -> pd.DataFrame:
    """One row per size: half and full training beside each other; means over seeds."""
    rows = []
    for (size, following), group in points.groupby(["size", "next_size"]):
        means = group.groupby("seen")[["mmcs", "share_above"]].mean()
        times = {"half": half_of(means.index), "full": means.index.max()}
        row = {"size": size, "next": following, **times}
        for column, label in (("mmcs", "MMCS"), ("share_above", "share above")):
            row |= {f"{label}, {part}": means.at[seen, column] for part, seen in times.items()}
        rows.append(row)
    return pd.DataFrame(rows)


# --- claims ---------------------------------------------------------------------------------------


def _values(features: pd.DataFrame) -> pd.DataFrame:
    return features[["half_near", "near", "half_mcs", "next_mcs"]].astype(float)


def _ends(sizes: Sizes, first: int = 0) -> Any:
    """At half and at full training: the share above the threshold, or (2) MMCS."""
    return np.mean([values.mean(0) for values in sizes.values()], axis=0)[first : first + 2]


def _more(sizes: Sizes) -> float:
    return float(np.diff(_ends(sizes))[0])


def _growth(sizes: Sizes, first: int = 0) -> float:
    half, full = _ends(sizes, first)
    return float(full / half - 1) if half > 0 else np.nan


def _estimate(number: Callable[[Sizes], float], study: Tables) -> tuple[Estimate, Sequence[Sizes]]:
    found, seeds = estimate(replace(UNDERTRAINED, number=number), study)
    assert found is not None  # NEEDS are there
    return found, seeds


def _shares(seeds: Sequence[Sizes]) -> tuple[str, float]:
    """The shares in words, and that at full training.

    Raises:
        UserError: nothing was found that could grow.
    """
    half, full = np.mean([_ends(sizes) for sizes in seeds], axis=0)
    told = f"{half:.0%} at half, {full:.0%} at full training"
    if not half and not full:
        raise UserError(f"cannot be decided: {told}, so nothing was found that could grow")
    return told, full


def _level(full: float) -> str:
    return FAILS if full >= GOOD_PART else OPEN


def _grows(study: Tables) -> Found:
    found, seeds = _estimate(_more, study)
    told, full = _shares(seeds)
    verdict = HOLDS if found.low > 0 else _level(full) if found.high < 0.02 else OPEN
    return Found(told, verdict, found)


def _slowly(study: Tables) -> Found:
    mmcs, seeds = _estimate(partial(_growth, first=2), study)
    _, full = _shares(seeds)
    at_half = int(min(sum(v[:, 0].sum() for v in sizes.values()) for sizes in seeds))
    if at_half < FEWEST:
        return Found(f"{at_half} features above the threshold at half training; needs {FEWEST}")
    count, _ = _estimate(_growth, study)
    verdict = both(Lies(MUCH)(count), Lies(0, MUCH)(mmcs))
    here = (
        f"features found again {count.value:+.1%}, MMCS {mmcs.value:+.1%} "
        f"[{mmcs.low:+.1%}, {mmcs.high:+.1%}]"
    )
    return Found(here, _level(full) if verdict == FAILS else verdict, count)


SNAPSHOTS = Need(
    "snapshots at half and at the end of the training", f"{TRAIN}training.snapshots=8",
    lambda study: "snapshots" in study.others,
)  # fmt: skip
NEEDS = (LARGER, SNAPSHOTS)
UNDERTRAINED = Claim(
    "undertrained", _values, judge=_grows, needs=NEEDS, living=False, bars={"good_part": GOOD_PART}
)
CLAIMS = (
    UNDERTRAINED,
    Claim(
        "training_raises_count",
        _values,
        judge=_slowly,
        needs=NEEDS,
        living=False,
        bars={"good_part": GOOD_PART, "much": MUCH, "fewest": FEWEST},
    ),
)
ANALYSIS = Analysis("undertraining", show, CLAIMS, measure, needs=NEEDS, seconds=(1.3, 1))
