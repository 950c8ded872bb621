"""Along which line through the (dictionary size, L1) plane does MMCS peak?

Where the L1 term is divided by the dictionary's size, the L1 of the best MMCS grows in proportion
to the size: a diagonal ridge, which the post's figure 4 shows and its figure 5 undoes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Peak:
    """The L1 with the best MMCS at one dictionary size."""

    dict_size: int
    l1: float
    mmcs: float
    interior: bool  # False: the best MMCS lies at the edge of the grid, the peak perhaps beyond


@dataclass(frozen=True)
class Ridge:
    """Peaks of one family, and the slope of log L1 against log size through the interior ones."""

    family: str
    divided: bool  # whether the L1 term is divided by the dictionary's size
    grid: tuple[float, ...]  # the L1 that were tried
    peaks: tuple[Peak, ...]
    slope: float | None  # 0: vertical in the heat map, 1: diagonal; None: fewer than three peaks
    intercept: float | None  # natural log of L1 at size 1
    interval: tuple[float, float] | None  # 95 %, jackknife over sizes


def peak(l1: Sequence[float], mmcs: Sequence[float]) -> tuple[float, float, bool]:
    """L1 of the best MMCS, refined by a parabola in log L1, the MMCS there, and "interior".

    `l1` is positive and rising; at the edge of the grid nothing is refined.
    """
    x, y = np.log(np.asarray(l1)), np.asarray(mmcs)
    i = int(np.argmax(y))
    if i in (0, len(x) - 1):
        return float(l1[i]), float(y[i]), False
    around = slice(i - 1, i + 2)
    a, b, _ = np.polyfit(x[around] - x[i], y[around] - y[i], 2)
    if a >= 0:  # three equal values
        return float(l1[i]), float(y[i]), True
    shift = -b / (2 * a)
    return float(np.exp(x[i] + shift)), float(y[i] + b * shift / 2), True


def slope(sizes: Floats, l1: Floats) -> tuple[float, float]:
    """Least-squares slope and intercept of ln L1 against ln size."""
    gradient, intercept = np.polyfit(np.log(sizes), np.log(l1), 1)
    return float(gradient), float(intercept)


def jackknife(sizes: Floats, l1: Floats) -> tuple[float, float]:
    """95 % interval of the slope: leave one size out at a time, Student's t."""
    from scipy.stats import t

    n = len(sizes)
    kept = ~np.eye(n, dtype=bool)
    slopes = np.array([slope(sizes[k], l1[k])[0] for k in kept])
    error = np.sqrt((n - 1) / n * ((slopes - slopes.mean()) ** 2).sum())
    reach = float(t.ppf(0.975, n - 1) * error)
    middle = slope(sizes, l1)[0]
    return middle - reach, middle + reach


def fit(cells: "pd.DataFrame", families: Sequence[str]) -> list[Ridge]:
    """One ridge per family that has three or more L1, from `Comparison.cells` (means over seeds).

    In the order of `families`.
    """
    ridges: list[Ridge] = []
    if cells.empty:
        return ridges
    means = (
        cells[(cells["axis"] == "l1") & (cells["l1"] > 0)]
        .groupby(["family", "dict_size", "l1"])["mmcs"]
        .mean()
        .dropna()
    )
    divided = cells.groupby("family")["l1_scaling"].first() == "dict_size"
    known = set(means.index.get_level_values("family"))
    for family in (name for name in families if name in known):
        peaks = []
        grid = tuple(sorted(set(means[family].index.get_level_values("l1"))))
        for size, row in means[family].groupby(level="dict_size"):
            if len(row) >= 3:
                l1 = row.index.get_level_values("l1").to_numpy()
                peaks.append(Peak(int(size), *peak(l1, row.to_numpy())))
        if not peaks:
            continue
        good = [p for p in peaks if p.interior]
        if len(good) < 3:
            ridges.append(
                Ridge(family, bool(divided[family]), grid, tuple(peaks), None, None, None)
            )
            continue
        sizes = np.array([p.dict_size for p in good], dtype=float)
        best = np.array([p.l1 for p in good])
        ridges.append(
            Ridge(
                family,
                bool(divided[family]),
                grid,
                tuple(peaks),
                *slope(sizes, best),
                jackknife(sizes, best),
            )
        )
    return ridges
