"""How much of one dictionary another holds, matched one to one: PW-MCC, the shared fraction."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.mcs import match, normalised

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

SHARED_ABOVE = 0.7  # Paulo and Belrose's threshold


@dataclass(frozen=True)
class Matched:
    """Two dictionaries matched one to one, by feature of the first, (n,) each."""

    partner: NDArray[np.int64]  # by decoder rows
    cosine: Floats  # of decoder rows, with that partner
    encoder_cosine: Floats  # of encoder rows, with the partner that they are matched with
    same: Bools  # whether it counts as shared


def match_features(
    first: tuple[NDArray[np.float32], NDArray[np.float32]],
    second: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> Matched:
    """Match two dictionaries, each given as encoder and decoder rows (n, d).

    The first must not be the larger one. Partners are those of the one-to-one matching of decoder
    rows that maximises the sum of cosines; the mean cosine is PW-MCC, the pairwise dictionary mean
    correlation coefficient of Song et al. (2025, arXiv 2505.20254); signed cosines, as in the
    authors' code. A feature is shared in the sense of Paulo and Belrose (2025, arXiv 2501.16615) if
    the optimal matching of the encoders gives it the same partner, and both cosines exceed 0.7.
    """
    partner, cosine = match(normalised(first[1]), normalised(second[1]))
    encoder_partner, encoder_cosine = match(normalised(first[0]), normalised(second[0]))
    same = partner == encoder_partner
    same &= (cosine > SHARED_ABOVE) & (encoder_cosine > SHARED_ABOVE)
    return Matched(partner, cosine, encoder_cosine, same)


def match_pair(
    first: tuple[NDArray[np.float32], NDArray[np.float32]],
    second: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> tuple[Floats, Bools]:
    """Of `match_features` the cosines of decoder rows, and which features are shared."""
    found = match_features(first, second)
    return found.cosine, found.same


def random_pw_mcc(d: int, sizes: set[int]) -> dict[int, float]:
    """PW-MCC of one draw of random directions, by dictionary size."""
    return {n: random_pair(d, n, n) for n in sorted(sizes)}


@lru_cache(maxsize=64)
def random_pair(d: int, n: int, m: int) -> float:
    """PW-MCC of one draw of n random directions with m others, n <= m."""
    rng = np.random.default_rng([d, n])
    one, other = (random_directions.unit_vectors(size, d, rng) for size in (n, m))
    return float(match(one, other)[1].mean())
