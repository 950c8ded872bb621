"""Where a share that grows with training would level off: a saturating curve, fitted.

The curve is Hill's, share(s) = plateau / (1 + (half / s)^power), with s in optimiser steps. Of 95
dictionaries (128 and 256 features, 23,000 steps, constant learning rate) it predicted the last of
eight snapshots from the others with a mean error of .039, from all but the last two with .066,
mostly too low; plateau (1 - exp(-(s / half)^power)) did so with .045 and .080, also too low.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures.intervals import over_seeds

Floats = NDArray[np.floating[Any]]

FEWEST = 5  # points; the curve has three parameters
RESAMPLES = 200  # of features; each takes a fit of its own
WIDEST = 0.3  # an interval of the plateau wider than this does not say where it lies
REACHED = 0.95  # of the plateau


@dataclass(frozen=True)
class Saturation:
    """A fitted curve and the 95 % interval of its plateau."""

    plateau: float
    half: float  # steps that reach a half of the plateau
    power: float
    low: float
    high: float

    @property
    def settled(self) -> bool:
        """Whether the points say where the plateau lies."""
        return self.high - self.low <= WIDEST

    @property
    def steps(self) -> float:
        """Optimiser steps that reach 95 % of the plateau."""
        return float(self.half * (REACHED / (1 - REACHED)) ** (1 / self.power))

    def at(self, steps: Floats) -> Floats:
        """The share after so many steps."""
        return _hill(np.log(steps), self.plateau, float(np.log(self.half)), self.power)


def _hill(log_steps: Floats, plateau: float, log_half: float, power: float) -> Floats:
    return np.asarray(plateau / (1 + np.exp(-power * (log_steps - log_half))))


def _parameters(log_steps: Floats, found: Floats) -> tuple[float, float, float] | None:
    """Plateau, ln half and power by least squares; None if they cannot be found.

    The plateau is a share, the power is 0.2 to 5, and half of the plateau is reached in the range
    of the steps or in one as wide (in logarithms) before or after it.
    """
    from scipy.optimize import curve_fit

    first, last = float(log_steps[0]), float(log_steps[-1])
    bounds = ([0, 2 * first - last, 0.2], [1, 2 * last - first, 5])
    start = (min(1.1 * float(found.max()) + 0.01, 1), (first + last) / 2, 1.5)
    try:
        best, _ = curve_fit(_hill, log_steps, found, p0=start, bounds=bounds)
    except RuntimeError:  # it did not converge
        return None
    plateau, log_half, power = (float(value) for value in best)
    return plateau, log_half, power


def shares(sizes: Sequence[NDArray[np.bool_]]) -> Floats:
    """Share found again after each number of steps, the mean over sizes."""
    return np.asarray(np.mean([part.mean(axis=0) for part in sizes], axis=0))


def fit(steps: Sequence[int], seeds: Sequence[Sequence[NDArray[np.bool_]]]) -> Saturation | None:
    """The curve of the share found again, averaged over sizes and seeds; None if there is none.

    `seeds` holds for each seed and size whether each feature was found again after each of the
    rising `steps`, shape (n, len(steps)). There is no curve with fewer than FEWEST steps, where
    nothing was found, or if the fit does not converge. The plateau's interval is Student's t over
    three or more seeds, each fitted by itself; else a bootstrap over features.
    """
    if len(steps) < FEWEST or not any(part.any() for sizes in seeds for part in sizes):
        return None
    log_steps = np.log(np.asarray(steps, dtype=float))
    found = _parameters(log_steps, np.mean([shares(sizes) for sizes in seeds], axis=0))
    if found is None:
        return None
    if len(seeds) >= 3:
        each = [_parameters(log_steps, shares(sizes)) for sizes in seeds]
        plateaus = [one[0] for one in each if one is not None]
        if len(plateaus) < 3:
            return None
        estimate = over_seeds(plateaus)
        low, high = max(estimate.low, 0.0), min(estimate.high, 1.0)
    else:
        rng = np.random.default_rng(0)
        drawn = []
        for _ in range(RESAMPLES):
            again = [[p[rng.integers(0, len(p), len(p))] for p in sizes] for sizes in seeds]
            one = _parameters(log_steps, np.mean([shares(sizes) for sizes in again], axis=0))
            drawn.append(np.nan if one is None else one[0])
        low, high = (float(value) for value in np.nanpercentile(drawn, [2.5, 97.5]))
    plateau, log_half, power = found
    return Saturation(plateau, float(np.exp(log_half)), power, low, high)
