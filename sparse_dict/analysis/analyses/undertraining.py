"""Was the training long enough? Agreement with the next size as it grew with the rows seen."""

from collections.abc import Sequence
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
from sparse_dict.analysis.comparison import MATCHING
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.trajectory import HALF

Floats = NDArray[np.floating[Any]]

TITLE = "Was the training long enough?"


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


def section(context: Context) -> Section:
    """Agreement with the next size against the activations seen."""
    comparison, chain, trajectory = context.comparison, context.comparison.main, context.trajectory
    if trajectory.missing is not None or chain is None:
        return Section(TITLE, [MISSING.format(trajectory.missing)])
    points, threshold = trajectory.points, comparison.settings.threshold
    text = (
        "Decoders were kept at the end of the training, at half of it, a quarter, and so on. Each "
        "is compared with that of the next larger dictionary after the same number of activations "
        f"({MATCHING[comparison.shown.matching]}, all features). If the curves still rise at their "
        "right end, longer training would find more features again."
    )
    n_seeds = points["seed"].nunique()
    picture = context.draw(
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
    "that at half, averaged over sizes at the chosen L1: holds if the 95 % interval lies above 0, "
    "else does not hold if it lies below 0.02.",
)


def claims(context: Context) -> list[Claim]:
    """Whether agreement still grows at the end of the training."""
    comparison, chain, trajectory = context.comparison, context.comparison.main, context.trajectory
    if trajectory.missing is not None or chain is None:
        return [UNDERTRAINED.undecided(trajectory.missing or NO_CHAIN)]
    estimate = interval(comparison, chain, lambda c: trajectory.halves[c.seed], growth)
    shown = [trajectory.halves[c.seed] for c in counted_chains(comparison, chain)]
    half, full = np.mean([part.mean(axis=0) for parts in shown for part in parts], axis=0)
    ours = f"{half:.0%} at half, {full:.0%} at full training"
    outcome = verdict(estimate, 0)
    if outcome != HOLDS:
        outcome = FAILS if estimate.high < 0.02 else OPEN
    return [UNDERTRAINED.decided(ours, estimate, outcome)]


ANALYSIS = Analysis("undertraining", section, (UNDERTRAINED,), claims)
