"""Every measure of agreement between two dictionaries of one space, beside what chance gives.

A dictionary is given as encoder and decoder rows, (n, d) each.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Floats, random_directions
from sparse_dict.analysis.measures.mcs import match, max_cosine, normalised

Rows = tuple[Floats, Floats]  # of the encoder, and of the decoder

SHARED_ABOVE = 0.7  # Paulo and Belrose's threshold


@dataclass(frozen=True)
class Matched:
    """Two dictionaries matched one to one, by feature of the first, (n,) each."""

    partner: NDArray[np.int64]  # by decoder rows
    cosine: Floats  # of decoder rows, with that partner
    encoder_cosine: Floats  # of encoder rows, with the partner that they are matched with
    same: NDArray[np.bool_]  # whether it counts as shared

    @property
    def pw_mcc(self) -> float:
        """See `match_features`."""
        return float(self.cosine.mean())


def match_features(first: Rows, second: Rows) -> Matched:
    """Match two dictionaries, of which the first must not be the larger one.

    Partners are those of the one-to-one matching of decoder rows that maximises the sum of
    cosines; the mean cosine is PW-MCC, the pairwise dictionary mean correlation coefficient of
    Song et al. (2025, arXiv 2505.20254); signed cosines, as in the authors' code. A feature is
    shared in the sense of Paulo and Belrose (2025, arXiv 2501.16615) if the optimal matching of
    the encoders gives it the same partner, and both cosines exceed 0.7.
    """
    encoder_partner, encoder_cosine = match(normalised(first[0]), normalised(second[0]))
    partner, cosine = match(normalised(first[1]), normalised(second[1]))
    same = (partner == encoder_partner) & (np.minimum(cosine, encoder_cosine) > SHARED_ABOVE)
    return Matched(partner, cosine, encoder_cosine, same)


def random_pw_mcc(d: int, sizes: Iterable[int]) -> dict[int, float]:
    """PW-MCC of one draw of random directions, by dictionary size."""
    return {n: random_pair(d, n, n) for n in sorted(sizes)}


@lru_cache(maxsize=64)
def random_pair(d: int, n: int, m: int) -> float:
    """PW-MCC of one draw of n random directions with m others, n <= m."""
    rng = np.random.default_rng([d, n])
    one, other = (random_directions.unit_vectors(size, d, rng) for size in (n, m))
    return float(match(one, other)[1].mean())


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


def agree(smaller: Rows, larger: Rows, threshold: float = 0.9) -> Agreement:
    """Compare two dictionaries."""
    matched, small, large = match_features(smaller, larger), smaller[1], larger[1]
    return Agreement(
        one_way(small, large, threshold), one_way(large, small, threshold), matched.pw_mcc,
        random_pair(small.shape[1], len(small), len(large)), float(matched.same.mean()),
    )  # fmt: skip


def one_way(rows: Floats, others: Floats, threshold: float) -> OneWay:
    """The rows (n, d) of a decoder sought in another's (m, d), by cosines above `threshold`."""
    mcs, d = max_cosine(normalised(rows), normalised(others)), rows.shape[1]
    chance = 1 - float(random_directions.max_cdf(threshold, d, len(others)))
    return OneWay(
        len(rows), float(mcs.mean(dtype=np.float64)), random_directions.max_mean(d, len(others)),
        int((mcs > threshold).sum()), len(rows) * chance,
    )  # fmt: skip
