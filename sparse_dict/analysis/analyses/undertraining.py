"""Was the training long enough? Agreement with the next size as it grew with the steps made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.analyses.histograms import GOOD_PART, HIGH_SHARE
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
from sparse_dict.analysis.measures import saturation
from sparse_dict.analysis.measures.saturation import Saturation
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import Chain
from sparse_dict.analysis.trajectory import Trajectory, half_of

Floats = NDArray[np.floating[Any]]

TITLE = "Was the training long enough?"
BEYOND = 8  # the figure draws the fitted curves up to this many times the steps made
FEWEST = 20  # features above the threshold at half training that relative growth needs
MUCH = 0.1  # relative growth from half to full training above which it is not slow
LEVEL = (
    f"Where less than {GOOD_PART:.0%} are above it at full training, there is nothing that could "
    "have levelled off: then it does not “not hold” but is undecided."
)

UNDERTRAINED = Statement(
    "undertrained",
    "Features found again still increase with training at the end: under-trained",
    "-",
    "suspected",
    "Share of features with MCS above the threshold against the next size, at full training less "
    "that at half, averaged over sizes at the chosen L1: holds if the 95 % interval lies above 0, "
    f"else does not hold if it lies below 0.02. {LEVEL}",
    says=None,
)

SLOW_MMCS = Statement(
    "training_raises_count",
    "More training raises MMCS slowly and the number of features found again clearly",
    "text",
    "MMCS slowly, the number clearly",
    "Relative growth from half to full training of the share of features with MCS above the "
    "threshold, and of MMCS, both averaged over sizes at the chosen L1: holds if the former's 95 % "
    f"interval lies above {MUCH} and the latter's within 0 and {MUCH}, does not hold if the "
    "former's lies below or the latter's outside. The interval shown is the former's. Needs "
    f"{FEWEST} features above the threshold at half training. {LEVEL}",
)


def section(context: Context) -> Section:
    """Agreement with the next size against the steps made, and where it leads."""
    comparison, chain, trajectory = context.comparison, context.comparison.main, context.trajectory
    if trajectory.missing is not None or chain is None:
        return Section(TITLE, [MISSING.format(trajectory.missing)])
    points, threshold = trajectory.points, comparison.settings.threshold
    shares, steps = grown(trajectory, threshold), int(points["steps"].max())
    text = (
        "Decoders were kept at the end of the training, at half of it, a quarter, and so on. Each "
        "is compared with that of the next larger dictionary after the same number of steps "
        f"({MATCHING[comparison.shown.matching]}, all features). If the curves still rise at their "
        "right end, longer training would find more features again. How many is extrapolated by a "
        "saturating curve, share(s) = plateau / (1 + (half / s)^power) of the steps s. That is a "
        "guide and not a measurement: the plateau's interval reflects which features or seeds were "
        "sampled, but not that the true curve may have another shape."
    )
    n_seeds = points["seed"].nunique()
    picture = context.draw(
        "undertraining",
        curves(trajectory, shares, f"Agreement as training goes on, {figures.named(chain)}"),
        "Agreement against optimiser steps",
        "Left: MMCS with the next size; dotted, what random directions reach. Right: the share "
        f"of features with MCS above {threshold:g}; dashed, the fitted curves, with bars for the "
        "plateau's 95 % interval where it is narrow."
        + (f" Mean of {n_seeds} seeds, bands from the least to the most." if n_seeds > 1 else ""),
    )  # fmt: skip
    return Section(
        TITLE,
        [
            text,
            *_schedule(chain),
            picture,
            Table("Half and full training", _ends(points)),
            Table("Where the shares would level off", plateaus(shares, steps)),
            Table("Would more training change a verdict?", prospects(shares)),
        ],
    )


def _schedule(chain: Chain) -> list[str]:
    """A warning where the last snapshot differs from the others in more than its steps."""
    optimizer = chain.entries[0].metrics["config"].get("optimizer") or {}
    schedule = optimizer.get("schedule", "constant")
    if schedule == "constant":
        return []
    return [
        f"The learning rate was lowered at the end (optimizer.schedule={schedule}). The last "
        "snapshot alone gains from that: had the training ended at an earlier one, that one would "
        "have reached more. So growth at the end, and the plateaus, may be overstated."
    ]


@dataclass(frozen=True)
class Grown:
    """The share of features found again, of one size or averaged over sizes; a mean over seeds."""

    size: int | None  # None: the mean over sizes
    now: float
    fit: Saturation | None


def grown(trajectory: Trajectory, threshold: float) -> list[Grown]:
    """`Grown` for each size, and last for the mean over sizes."""
    seeds = list(trajectory.followed.values())
    seen = sorted(set.intersection(*(set(one.mcs) for sizes in seeds for one in sizes)))
    steps = [rows // trajectory.batch_size for rows in seen]
    found = [  # for each seed and size (n, len(steps))
        [np.stack([one.mcs[n] > threshold for n in seen], axis=1) for one in sizes]
        for sizes in seeds
    ]
    groups: list[tuple[int | None, list[list[NDArray[np.bool_]]]]] = [
        (one.size, [[sizes[i]] for sizes in found]) for i, one in enumerate(seeds[0])
    ]
    return [
        Grown(size, float(np.mean([saturation.shares(sizes)[-1] for sizes in parts])), fit)
        for size, parts in [*groups, (None, found)]
        for fit in [saturation.fit(steps, parts)]
    ]


def curves(trajectory: Trajectory, shares: Sequence[Grown], title: str) -> Figure:
    """MMCS and the share above the threshold against steps, a line per size, with fitted curves."""
    points, batch = trajectory.points, trajectory.batch_size
    figure, axes = figures.plt.subplots(1, 2, figsize=(figures.WIDTH, 3.6))
    sizes = sorted(points["dict_size"].unique())
    palette = dict(zip(sizes, figures.shades(len(sizes)), strict=True))
    names = {"mmcs": "MMCS with the next size", "share_above": "features found again"}
    for axis, (value, label) in zip(axes, names.items(), strict=True):
        sns.lineplot(
            points, x="steps", y=value, hue="dict_size", palette=palette, marker="o", markersize=4,
            lw=1.2, errorbar=("pi", 100), legend=axis is axes[0], ax=axis,
        )  # fmt: skip
        axis.set_xscale("log")
        axis.set_xlabel(f"optimiser steps of {batch} rows")
        axis.set_ylabel(label)
        axis.set_ylim(0, 1)
        rows = axis.secondary_xaxis("top", functions=(lambda s: s * batch, lambda r: r / batch))
        rows.set_xlabel("rows (activations) seen")
    for size, level in points.groupby("dict_size")["random_mmcs"].first().items():
        axes[0].axhline(level, color=palette[size], lw=0.8, ls=":")
    figures.percent_axis(axes[1])
    first, last = float(points["steps"].min()), float(points["steps"].max())
    for place, share in enumerate(shares):
        fit = share.fit
        if share.size is not None and fit is not None and fit.settled:
            steps, colour = np.geomspace(first, BEYOND * last, 200), palette[share.size]
            axes[1].plot(steps, fit.at(steps), color=colour, lw=1, ls="--")
            at = BEYOND * last * 1.15**place  # side by side
            axes[1].vlines(at, fit.low, fit.high, color=colour, lw=1.2)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].get_legend().remove()
    handles.append(figures.mpl.lines.Line2D([], [], color="0.4", lw=0.8, ls=":"))
    figure.legend(
        handles, [*labels, "random directions"], title="dictionary size",
        loc="outside lower center", ncols=8,
    )  # fmt: skip
    figure.suptitle(title)
    return figure


def _ends(points: pd.DataFrame) -> pd.DataFrame:
    """One row per size: half and full training beside each other; means over seeds."""
    rows = []
    for size, group in points.groupby("dict_size"):
        means = group.groupby("seen")[["mmcs", "n_above", "share_above"]].mean()
        last, half = int(means.index.max()), half_of(means.index)
        assert half is not None  # `trajectory.follow` saw to it
        rows.append(
            {
                "size": size,
                "next": int(group["next_size"].iloc[0]),
                "half": half,
                "full": last,
                **{
                    f"{label}, {part}": float(means[column].loc[seen])
                    for column, label in (("mmcs", "MMCS"), ("share_above", "share above"))
                    for part, seen in (("half", half), ("full", last))
                },
            }
        )
    return pd.DataFrame(rows)


def plateaus(shares: Sequence[Grown], steps: int) -> pd.DataFrame:
    """One row per share: where it would level off, and after how many steps; `steps` were made."""
    rows = []
    for share in shares:
        fit = share.fit
        row = {"size": "mean over sizes" if share.size is None else str(share.size)}
        row |= {"share now": f"{share.now:.0%}", "steps made": f"{steps:,}"}
        if fit is None:
            row["plateau"] = f"no curve fits (it needs {saturation.FEWEST} snapshots)"
        elif not fit.settled:
            row["plateau"] = f"not determined: between {fit.low:.0%} and {fit.high:.0%}"
        else:
            row["plateau"] = f"{fit.plateau:.0%} [{fit.low:.0%}, {fit.high:.0%}]"
            row["steps to 95 % of it"] = f"about {float(f'{fit.steps:.2g}'):,.0f}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("-")


def prospects(shares: Sequence[Grown]) -> pd.DataFrame:
    """One row per claim on the share found again: would more training carry it over its bar?"""
    cases = {None: (HIGH_SHARE, GOOD_PART)}
    return pd.DataFrame(
        [
            {
                "claim": cases[share.size][0].claim,
                "bar": cases[share.size][1],
                "share now": share.now,
                "would more training change its verdict?": prospect(share, cases[share.size][1]),
            }
            for share in shares
            if share.size in cases
        ]
    )


def prospect(share: Grown, bar: float) -> str:
    """Whether a share would cross the bar on its way to the plateau."""
    fit = share.fit
    if share.now > bar:
        return "no: the share is above the bar already"
    if fit is None:
        return "cannot be decided: no curve fits"
    if fit.low > bar:
        return f"yes: the plateau, [{fit.low:.0%}, {fit.high:.0%}], lies above the bar"
    if fit.high < bar:
        return f"no: the plateau, [{fit.low:.0%}, {fit.high:.0%}], lies below the bar"
    return f"cannot be decided: the plateau may lie on either side, [{fit.low:.0%}, {fit.high:.0%}]"


def claims(context: Context) -> list[Claim]:
    """Whether agreement still grows at the end of the training, and in what."""
    comparison, chain, trajectory = context.comparison, context.comparison.main, context.trajectory
    if trajectory.missing is not None or chain is None:
        why = trajectory.missing or NO_CHAIN
        return [statement.undecided(why) for statement in STATEMENTS]
    threshold = comparison.settings.threshold
    chains = counted_chains(comparison, chain)

    def samples(chain: Chain) -> list[Floats]:
        return [one.halves for one in trajectory.followed[chain.seed]]

    def shares(parts: Sequence[Floats]) -> Floats:
        """At half and full training, (2,)."""
        return np.asarray(np.mean([(part > threshold).mean(axis=0) for part in parts], axis=0))

    def growth(parts: Sequence[Floats]) -> float:
        half, full = shares(parts)
        return float(full - half)

    def relative(parts: Sequence[Floats]) -> float:
        half, full = shares(parts)
        return float(full / half - 1) if half > 0 else np.nan

    def relative_mmcs(parts: Sequence[Floats]) -> float:
        half, full = np.mean([part.mean(axis=0) for part in parts], axis=0)
        return float(full / half - 1)

    estimate = interval(comparison, chain, samples, growth)
    half, full = np.mean([shares(samples(other)) for other in chains], axis=0)
    ours = f"{half:.0%} at half, {full:.0%} at full training"
    if not half and not full:
        why = f"cannot be decided: {ours}, so nothing was found that could grow"
        return [statement.undecided(why) for statement in STATEMENTS]
    level = FAILS if full >= GOOD_PART else OPEN
    outcome = verdict(estimate, 0)
    if outcome != HOLDS:
        outcome = level if estimate.high < 0.02 else OPEN
    found = [UNDERTRAINED.decided(ours, estimate, outcome)]

    at_half = [sum((part[:, 0] > threshold).sum() for part in samples(c)) for c in chains]
    if min(at_half) < FEWEST:
        why = f"{min(at_half)} features above the threshold at half training; needs {FEWEST}"
        return [*found, SLOW_MMCS.undecided(why)]
    count = interval(comparison, chain, samples, relative)
    mmcs = interval(comparison, chain, samples, relative_mmcs)
    outcome = OPEN
    if verdict(count, MUCH) == HOLDS and mmcs.low > 0 and mmcs.high < MUCH:
        outcome = HOLDS
    elif verdict(count, MUCH) == FAILS or mmcs.low > MUCH or mmcs.high < 0:
        outcome = level
    ours = (
        f"features found again {count.value:+.1%}, MMCS {mmcs.value:+.1%} "
        f"[{mmcs.low:+.1%}, {mmcs.high:+.1%}]"
    )
    return [*found, SLOW_MMCS.decided(ours, count, outcome)]


STATEMENTS = (UNDERTRAINED, SLOW_MMCS)
ANALYSIS = Analysis("undertraining", section, STATEMENTS, claims)
