"""Share of features found again, by how often a feature is active."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from sparse_dict.analysis.report import figures


def wilson(found: "pd.Series[Any]") -> "pd.Series[Any]":
    """A share from truth values, and its 95 % interval (Wilson)."""
    from scipy.stats import binomtest

    low, high = binomtest(int(found.sum()), len(found)).proportion_ci(method="wilson")
    return pd.Series({"share": found.mean(), "share_low": low, "share_high": high})


def draw(axis: Axes, rows: pd.DataFrame, found: str, colours: str = "viridis") -> None:
    """Share found again by decade of the firing frequency, a line a size; the dead on the left.

    `rows` are features; `found` is a column of truth values. Bars: 95 % (Wilson).
    """
    with np.errstate(divide="ignore"):  # what is active on every row joins the topmost decade
        decade = np.minimum(np.floor(np.log10(rows["frequency"])), -1)
    lowest = int(decade.where(decade > -np.inf).min()) if (decade > -np.inf).any() else -1
    known = pd.DataFrame({"size": rows["size"], "found": rows[found].astype(float)})
    known["at"] = 10 ** (decade.clip(lower=lowest - 1.5) + 0.5)  # the dead beyond the rarest
    shares = known.groupby(["size", "at"])["found"].apply(wilson).unstack().reset_index()
    shades = figures.shades(known["size"].nunique(), colours)
    sns.lineplot(
        figures.ends(shares, "share"), x="at", y="share", hue="size", palette=shades,
        estimator="median", errorbar=("pi", 100), err_style="bars", err_kws={"lw": 0.8},
        marker="o", ms=4, lw=1, ax=axis,
    )  # fmt: skip
    ticks = {10.0**k: f"$10^{{{k}}}$" if k else "1" for k in range(lowest, 1)}
    if (decade == -np.inf).any():
        axis.axvline(10 ** (lowest - 0.4), color="0.8", lw=0.8)
        ticks[10.0 ** (lowest - 1)] = "dead"
    axis.set(xscale="log", ylim=(-0.03, 1.03), ylabel="")
    axis.set_xticks([*ticks], ticks.values())
    axis.minorticks_off()
    figures.percent_axis(axis)
    axis.set_xlabel("share of rows on which a feature is active")
