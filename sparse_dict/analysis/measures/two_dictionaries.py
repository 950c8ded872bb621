"""Every measure of agreement between two dictionaries of one space, beside what chance gives."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.across_seeds import match_pair, random_pair
from sparse_dict.analysis.measures.mcs import max_cosine, normalised

Rows = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class OneWay:
    """The features of one dictionary sought in another: plain maximum."""

    features: int
    mmcs: float
    random_mmcs: float  # exact expectation for random directions
    above: int  # features whose highest cosine exceeds the threshold
    random_above: float  # exact expectation


@dataclass(frozen=True)
class Agreement:
    """The smaller dictionary against the larger one, and back."""

    smaller: OneWay
    larger: OneWay
    pw_mcc: float  # the smaller one's features matched one to one
    random_pw_mcc: float  # of one draw of random directions
    shared_fraction: float  # share of the smaller one's features


def agree(
    smaller: tuple[Rows, Rows], larger: tuple[Rows, Rows], threshold: float = 0.9
) -> Agreement:
    """Compare two dictionaries, each given as encoder and decoder rows (n, d), (m, d), n <= m.

    Raises:
        UserError: one-to-one matching would not fit in memory.
    """
    small, large = normalised(smaller[1]), normalised(larger[1])
    cosine, shared = match_pair(smaller, larger)
    return Agreement(
        _one_way(small, large, threshold), _one_way(large, small, threshold),
        float(cosine.mean()), random_pair(small.shape[1], len(small), len(large)),
        float(shared.mean()),
    )  # fmt: skip


def _one_way(rows: Rows, others: Rows, threshold: float) -> OneWay:
    mcs, d = max_cosine(rows, others), rows.shape[1]
    chance = 1 - float(random_directions.max_cdf(threshold, d, len(others)))
    return OneWay(
        len(rows), float(mcs.mean(dtype=np.float64)), random_directions.max_mean(d, len(others)),
        int((mcs > threshold).sum()), len(rows) * chance,
    )  # fmt: skip
