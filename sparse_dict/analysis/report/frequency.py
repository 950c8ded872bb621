"""Share of features found again, by how often a feature is active."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from sparse_dict.analysis.report import figures

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


def by_frequency(frequency: Floats | pd.Series, found: Bools | pd.Series) -> pd.DataFrame:
    """How many features are found again, by decade of their frequency; the first holds the dead.

    `frequency` (n,) is the share of evaluation rows on which a feature is active. Columns: low and
    high, the ends of the decade (0 of the dead), n, found. Decades without features are left out.
    """
    with np.errstate(divide="ignore"):  # what is active on every row joins the topmost decade
        decade = np.minimum(np.floor(np.log10(frequency)), -1)
    bins = pd.DataFrame({"low": 10.0**decade, "high": 10.0 ** (decade + 1), "found": found})
    return bins.groupby(["low", "high"])["found"].agg(n="size", found="sum").reset_index()


def draw(axis: Axes, rows: pd.DataFrame, found: str, colours: str = "viridis") -> None:
    """Share found again against firing frequency, a line a size; dead features on the left.

    `rows` are features; `found` is a column of truth values. Bars: 95 % (Wilson).
    """
    from scipy.stats import binomtest

    binned = {size: by_frequency(of["frequency"], of[found]) for size, of in rows.groupby("size")}
    lows = np.concatenate([bins["low"] for bins in binned.values()])
    rarest = lows.min(where=lows > 0, initial=0.1)
    never_at, any_never = rarest / 12, (lows == 0).any()
    shades = figures.shades(len(binned), colours)
    for i, ((size, bins), colour) in enumerate(zip(binned.items(), shades, strict=True)):
        nudge = 1.06 ** (i - (len(binned) - 1) / 2)  # so that error bars do not hide each other
        x = np.where(bins["low"] > 0, np.sqrt(bins["low"] * bins["high"]), never_at) * nudge
        share = bins["found"] / bins["n"]
        counts = bins[["found", "n"]].astype(int).itertuples(index=False)
        ends = np.array([binomtest(*one).proportion_ci(method="wilson") for one in counts]).T
        bars = np.maximum([share - ends[0], ends[1] - share], 0)
        axis.errorbar(
            x, share, bars, color=colour, lw=1, elinewidth=0.8, marker="o", ms=3, label=str(size)
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
