"""Share of features found again, by how often a feature is active."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparse_dict.analysis.measures.intervals import wilson
from sparse_dict.analysis.report import figures

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class FrequencyBin:
    """Features that fire about equally often; `low` and `high` are shares of rows."""

    low: float
    high: float
    n: int
    found: int


def by_frequency(frequency: Floats, found: Bools, per_decade: int = 1) -> list[FrequencyBin]:
    """Share of features found again, in bins of log frequency; the first holds the dead.

    `frequency` (n,) is the share of evaluation rows on which a feature is active. Empty bins are
    left out; that of the dead has low = high = 0.
    """
    never = frequency == 0
    bins = (
        [FrequencyBin(0.0, 0.0, int(never.sum()), int(found[never].sum()))] if never.any() else []
    )
    if never.all():
        return bins
    steps = np.floor(np.log10(np.where(never, 1, frequency)) * per_decade).astype(int)
    steps = np.minimum(steps, -1)  # a feature active on every row joins the topmost bin
    for step in range(int(steps[~never].min()), 0):
        chosen = ~never & (steps == step)
        if chosen.any():
            low, high = 10 ** (step / per_decade), 10 ** ((step + 1) / per_decade)
            bins.append(FrequencyBin(low, high, int(chosen.sum()), int(found[chosen].sum())))
    return bins


def draw(
    axis: Axes,
    groups: Sequence[tuple[str, Floats, Bools]],
    colours: str = "viridis",
) -> None:
    """Share found again against firing frequency, a line per group; dead features on the left."""
    binned = [(label, by_frequency(frequency, found)) for label, frequency, found in groups]
    rarest = min((b.low for _, bins in binned for b in bins if b.low > 0), default=0.1)
    never_at = rarest / 12
    any_never = any(b.low == 0 for _, bins in binned for b in bins)
    shades = figures.shades(len(binned), colours)
    for i, ((label, bins), colour) in enumerate(zip(binned, shades, strict=True)):
        nudge = 1.06 ** (i - (len(binned) - 1) / 2)  # so that error bars do not hide each other
        x = np.array([np.sqrt(b.low * b.high) if b.low else never_at for b in bins]) * nudge
        if not bins:
            axis.plot([], [], " ", label=f"{label}: no feature counts")
            continue
        share = np.array([b.found / b.n for b in bins])
        low, high = np.array([wilson(b.found, b.n) for b in bins]).T
        bars = np.maximum([share - low, high - share], 0)
        axis.errorbar(
            x, share, yerr=bars, color=colour, lw=1, elinewidth=0.8, marker="o", ms=3, label=label
        )
    axis.set_xscale("log")
    axis.set_xlim(never_at / 2 if any_never else rarest / 1.5, 1.2)
    decades = range(round(np.log10(rarest)), 1)
    labels = [f"$10^{{{k}}}$" if k else "1" for k in decades]
    axis.set_xticks([10.0**k for k in decades], labels)
    if any_never:
        axis.axvline(never_at * 4, color="0.8", lw=0.8)
        axis.set_xticks([never_at, *(10.0**k for k in decades)], ["dead", *labels])
    axis.minorticks_off()
    axis.set_ylim(-0.03, 1.03)
    figures.percent_axis(axis)
    axis.set_xlabel("share of rows on which a feature is active")
