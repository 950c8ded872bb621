"""Was the training long enough? Agreement with the next size as it grew with the rows seen.

Training keeps decoders on a log schedule (`training.snapshots`); those of a dictionary and of the
next larger one after the same number of rows are compared as finished dictionaries are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claims import (
    FAILS,
    HOLDS,
    NO_CHAIN,
    OPEN,
    Claim,
    Statement,
    counted_chains,
    interval,
    verdict,
)
from sparse_dict.analysis.comparison import MATCHING, Comparison
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.mcs import match, max_cosine, normalised
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report import page as report
from sparse_dict.analysis.report.page import Draw, Section, Table
from sparse_dict.analysis.study import Chain, Entry
from sparse_dict.errors import UserError
from sparse_dict.sae import folder as folders

Floats = NDArray[np.floating[Any]]
HALF = (0.4, 0.6)  # of the training: batches do not divide it exactly

TITLE = "Was the training long enough?"


@dataclass(frozen=True)
class Trajectory:
    """Agreement of the main chain, and of those that differ from it in the seed, while trained."""

    # dict_size, next_size, seed, seen, mmcs, random_mmcs, n_above, share_above
    points: pd.DataFrame = field(default_factory=pd.DataFrame)
    # by seed and size (n, 2): whether a feature was found again at half and at full training
    halves: dict[int, list[Floats]] = field(default_factory=dict)
    missing: str | None = None  # why there is nothing to show


def follow(comparison: Comparison) -> Trajectory:
    """Compare the snapshots of the main chain; `missing` says what stands in the way, if anything.

    All features count, since snapshots do not hold which ones fire.
    """
    chain = comparison.main
    if chain is None:
        return Trajectory(missing=NO_CHAIN)
    rows: list[dict[str, Any]] = []
    halves = {}
    try:
        for alike in comparison.same_but_seed(chain):
            halves[alike.seed] = _follow_chain(comparison, alike, rows)
    except UserError as error:
        return Trajectory(missing=str(error))
    return Trajectory(pd.DataFrame(rows), halves)


def _follow_chain(comparison: Comparison, chain: Chain, rows: list[dict[str, Any]]) -> list[Floats]:
    """Append the points of a chain to `rows`; whether features were found at half and at full."""
    kept = [_snapshots(entry) for entry in chain.entries]
    threshold, d = comparison.settings.threshold, comparison.study.d_in
    halves = []
    for (entry, own), (larger, others) in pairwise(zip(chain.entries, kept, strict=True)):
        found = {}
        for seen in sorted(own.keys() & others.keys()):
            values = _mcs(comparison, own[seen], others[seen])
            found[seen] = values > threshold
            rows.append(
                {
                    "dict_size": entry.size,
                    "next_size": larger.size,
                    "seed": chain.seed,
                    "seen": seen,
                    "mmcs": float(values.mean()),
                    "random_mmcs": random_directions.mean_mcs(d, [larger.size]),
                    "n_above": int(found[seen].sum()),
                    "share_above": float(found[seen].mean()),
                }
            )
        half = _half(entry, list(found))
        halves.append(np.stack([found[half], found[max(found)]], axis=1).astype(float))
    return halves


def _snapshots(entry: Entry) -> dict[int, NDArray[np.float32]]:
    kept = folders.read_snapshots(entry.trained.folder)
    for seen, decoder in kept.items():
        if decoder.shape != entry.decoder.shape:
            raise UserError(f"{entry.name}: the snapshot after {seen} rows has another shape")
    return {seen: normalised(decoder) for seen, decoder in kept.items()}


def _half(entry: Entry, seen: Sequence[int]) -> int:
    """The snapshot at half of the training.

    Raises:
        UserError: there is none.
    """
    low, high = (share * max(seen, default=0) for share in HALF)
    near = [rows for rows in seen if low <= rows <= high]
    if not near:
        raise UserError(
            f"{entry.name} and the next size have no snapshots at half and at the end of the "
            "training (train with training.snapshots of at least 2)"
        )
    return near[0]


def _mcs(
    comparison: Comparison, rows: NDArray[np.float32], others: NDArray[np.float32]
) -> NDArray[np.float32]:
    if comparison.shown.matching == "hungarian":
        return match(rows, others)[1]
    return max_cosine(rows, others, comparison.settings.block_rows)


def growth(halves: Sequence[Floats]) -> float:
    """Share found again at full training less that at half, mean over sizes."""
    return float(np.mean([(part[:, 1] - part[:, 0]).mean() for part in halves]))


def curves(points: pd.DataFrame, threshold: float, title: str) -> Figure:
    """MMCS and features above the threshold against activations seen, a line a size."""
    figure, axes = figures.plt.subplots(1, 2, figsize=(figures.WIDTH, 3.3))
    sizes = sorted(points["dict_size"].unique())
    palette = dict(zip(sizes, figures.shades(len(sizes)), strict=True))
    names = {"mmcs": "MMCS with the next size", "n_above": f"features with MCS above {threshold:g}"}
    for axis, (value, label) in zip(axes, names.items(), strict=True):
        sns.lineplot(
            points, x="seen", y=value, hue="dict_size", palette=palette, marker="o", markersize=4,
            lw=1.2, errorbar=("pi", 100), legend=axis is axes[0], ax=axis,
        )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel("activations seen")
        axis.set_ylabel(label)
    for size, level in points.groupby("dict_size")["random_mmcs"].first().items():
        axes[0].axhline(level, color=palette[size], lw=0.8, ls=":")
    axes[0].set_ylim(0, 1)
    axes[1].set_ylim(0, None)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    handles.append(figures.mpl.lines.Line2D([], [], color="0.4", lw=0.8, ls=":"))
    figure.legend(
        handles, [*labels, "random directions"], title="dictionary size",
        loc="outside lower center", ncols=8,
    )  # fmt: skip
    figure.suptitle(title)
    return figure


def section(comparison: Comparison, trajectory: Trajectory, draw: Draw) -> Section:
    """Agreement with the next size against the activations seen."""
    chain = comparison.main
    if trajectory.missing is not None or chain is None:
        return Section(TITLE, [report.UNTOLD.format(trajectory.missing)])
    points, threshold = trajectory.points, comparison.settings.threshold
    text = (
        "Decoders were kept at the end of the training, at half of it, a quarter, and so on. Each "
        "is compared with that of the next larger dictionary after the same number of activations "
        f"({MATCHING[comparison.shown.matching]}, all features). If the curves still rise at their "
        "right end, longer training would find more features again."
    )
    n_seeds = points["seed"].nunique()
    picture = draw(
        "undertraining",
        curves(points, threshold, f"Agreement as training goes on, {figures.named(chain)}"),
        "Agreement against activations seen",
        "Left: MMCS with the next size; dotted, what random directions reach. Right: the number "
        f"of features with MCS above {threshold:g}."
        + (f" Mean of {n_seeds} seeds, bands from the least to the most." if n_seeds > 1 else ""),
    )  # fmt: skip
    return Section(TITLE, [text, picture, Table("Half and full training", _ends(points))])


def _ends(points: pd.DataFrame) -> pd.DataFrame:
    """One row a size: half and full training beside each other; means over seeds."""
    rows = []
    for size, group in points.groupby("dict_size"):
        means = group.groupby("seen")[["mmcs", "n_above", "share_above"]].mean()
        last = int(means.index.max())
        half = next(seen for seen in means.index if HALF[0] * last <= seen <= HALF[1] * last)
        rows.append(
            {
                "size": size,
                "next": int(group["next_size"].iloc[0]),
                "half": int(half),
                "full": last,
                **{
                    f"{label}, {part}": float(means[column].loc[seen])
                    for column, label in (("mmcs", "MMCS"), ("share_above", "share above"))
                    for part, seen in (("half", half), ("full", last))
                },
            }
        )
    return pd.DataFrame(rows)


UNDERTRAINED = Statement(
    "undertrained",
    "Features found again still increase with training at the end: under-trained",
    "-",
    "suspected",
    "Share of features with MCS above the threshold against the next size, at full training less "
    "that at half, averaged over sizes at the best L1: holds if the 95 % interval lies above 0, "
    "else does not hold if it lies below 0.02.",
)


CLAIMS = (UNDERTRAINED,)


def claims(comparison: Comparison, trajectory: Trajectory) -> list[Claim]:
    """Whether agreement still grows at the end of the training."""
    return [_undertrained(comparison, trajectory)]


def _undertrained(comparison: Comparison, trajectory: Trajectory) -> Claim:
    chain = comparison.main
    if trajectory.missing is not None or chain is None:
        return UNDERTRAINED.untold(trajectory.missing or NO_CHAIN)
    estimate = interval(comparison, chain, lambda c: trajectory.halves[c.seed], growth)
    shown = [trajectory.halves[c.seed] for c in counted_chains(comparison, chain)]
    half, full = np.mean([part.mean(axis=0) for parts in shown for part in parts], axis=0)
    ours = f"{half:.0%} at half, {full:.0%} at full training"
    told = verdict(estimate, 0)
    if told != HOLDS:
        told = FAILS if estimate.high < 0.02 else OPEN
    return UNDERTRAINED.told(ours, estimate, told)
