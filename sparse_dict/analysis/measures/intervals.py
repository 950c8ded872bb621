"""95 % intervals: bootstrap of what a number is made of, Student's t over seeds.

And correlations of two columns, of which a resample may be constant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Floats

RESAMPLES = 1000
BLOCK = 1 << 18  # numbers that are drawn at once


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval and what the interval is over."""

    value: float
    low: float
    high: float
    over: str

    def __format__(self, form: str) -> str:
        """The value and, if it has one, its interval, each in this format: 0.53 [0.40, 0.61]."""
        value, low, high = (format(number, form) for number in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]" if np.isfinite(self.low) else value

    def columns(self, name: str) -> dict[str, float]:
        """The value under `name`, and the ends of its interval under names made of that."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def bootstrap(
    samples: Sequence[NDArray[Any]],
    statistic: Callable[[Sequence[NDArray[Any]]], float],
    over: str = "features",
) -> Estimate:
    """Percentile bootstrap: each of `samples` is resampled along its first axis."""
    return bootstraps(samples, lambda drawn: [statistic(drawn)], over)[0]


def bootstraps(
    samples: Sequence[NDArray[Any]],
    statistics: Callable[[Sequence[NDArray[Any]]], Sequence[float]],
    over: str = "features",
) -> list[Estimate]:
    """The same of several numbers of the same draws."""
    rng = np.random.default_rng(0)
    found = [
        statistics([sample[rng.integers(0, len(sample), len(sample))] for sample in samples])
        for _ in range(RESAMPLES)
    ]
    ends = np.nanpercentile(found, [2.5, 97.5], axis=0).tolist()
    each = zip(statistics(samples), *ends, strict=True)
    return [Estimate(float(value), low, high, f"{over} (bootstrap)") for value, low, high in each]


def ratio(top: Floats, bottom: Floats, over: str) -> Estimate:
    """The sum of `top` over that of `bottom`, both (n,) of the same things, resampled together.

    The same as `bootstrap`, many draws at a time.
    """
    rng, n, found = np.random.default_rng(0), len(top), []
    at_once = max(1, BLOCK // n)
    for start in range(0, RESAMPLES, at_once):
        chosen = rng.integers(0, n, (min(at_once, RESAMPLES - start), n))
        found.append(top[chosen].sum(1) / bottom[chosen].sum(1))
    low, high = np.nanpercentile(np.concatenate(found), [2.5, 97.5])
    value = float(top.sum() / bottom.sum())
    return Estimate(value, float(low), float(high), f"{over} (bootstrap)")


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and t interval of one value per seed; three or more."""
    from scipy.stats import t

    array = np.asarray(values, dtype=float)
    reach = t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / np.sqrt(len(array))
    middle = float(array.mean())
    return Estimate(middle, middle - float(reach), middle + float(reach), f"{len(array)} seeds")


def jackknife(value: float, without: Sequence[float]) -> Estimate:
    """Interval of a number of pairs of seeds, from what it is `without` each of the seeds."""
    n = len(without)
    return over_seeds([n * value - (n - 1) * part for part in without])


def pearson(pairs: Floats) -> float:
    """Pearson's coefficient of both columns of (n, 2); nan where one is constant."""
    flat = (np.ptp(pairs, axis=0) == 0).any()
    return float("nan") if flat else float(np.asarray(np.corrcoef(pairs.T))[0, 1])


def spearman(pairs: Floats) -> float:
    """The same of their ranks."""
    from scipy.stats import rankdata

    return pearson(rankdata(pairs, axis=0))
