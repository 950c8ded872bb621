"""Along which line through the (dictionary size, L1) plane does MMCS peak?

Where the L1 term is divided by the dictionary's size, the L1 of the best MMCS grows in proportion
to the size: a diagonal ridge, which the post's figure 4 shows and its figure 5 undoes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparse_dict.analysis.measures import Floats
from sparse_dict.analysis.measures.intervals import jackknife

if TYPE_CHECKING:
    import pandas as pd


FEWEST = 3  # L1 values of a peak, and peaks inside the grid of a slope
PEAKS = ["family", "size", "l1", "mmcs", "interior"]
RIDGES = ["family", "divided", "slope", "intercept", "low", "high"]


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


def interval(sizes: Floats, l1: Floats) -> tuple[float, float]:
    """95 % interval of the slope: leave one size out at a time, Student's t."""
    middle = slope(sizes, l1)[0]
    without = [slope(sizes[kept], l1[kept])[0] for kept in ~np.eye(len(sizes), dtype=bool)]
    found = jackknife(middle, without)
    shift = middle - found.value  # about the slope itself
    return found.low + shift, found.high + shift


def fit(cells: "pd.DataFrame") -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """A ridge per family that has three or more L1, and the peaks that it goes through.

    `cells` has a row a dictionary (family, size, axis, l1, l1_scaling, mmcs), of which means over
    seeds are taken; families keep its order. RIDGES: `divided` is whether the L1 term is divided by
    the dictionary's size; slope of ln L1 against ln size through the interior peaks (0: vertical in
    the heat map, 1: diagonal), the intercept, ln L1 at size 1, and the slope's 95 % interval; nan
    with fewer than three peaks. PEAKS: interior is whether the best L1 is inside the grid; at its
    edge the peak is perhaps beyond.
    """
    import pandas as pd

    ridges, peaks = [], []
    swept = cells[(cells["axis"] == "l1") & (cells["l1"] > 0)]
    for family, part in swept.groupby("family", sort=False):
        means = part.groupby(["size", "l1"])["mmcs"].mean().dropna()
        rows = {size: row.droplevel("size") for size, row in means.groupby("size")}
        own = {size: peak([*row.index], [*row]) for size, row in rows.items() if len(row) >= FEWEST}
        if not own:
            continue
        peaks += [(family, size, *found) for size, found in own.items()]
        inside = np.array(
            [(size, l1) for size, (l1, _, interior) in own.items() if interior], float
        )
        line = (np.nan,) * 4
        if len(inside) >= FEWEST:
            line = (*slope(*inside.T), *interval(*inside.T))
        ridges.append((family, part["l1_scaling"].iloc[0] == "dict_size", *line))
    return pd.DataFrame(ridges, columns=RIDGES), pd.DataFrame(peaks, columns=PEAKS)
