"""Every measure of agreement between two dictionaries of one space, beside what chance gives.

A dictionary is given as encoder and decoder rows, (n, d) each.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Bools, Floats, gaussian_rows, random_directions
from sparse_dict.analysis.measures.mcs import match, match_codes, max_cosine, normalised

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
    return {n: _random_pair(d, n, n) for n in sorted(sizes)}


@lru_cache(maxsize=64)
def _random_pair(d: int, n: int, m: int) -> float:
    """PW-MCC of one draw of n random directions with m others, n <= m."""
    rng = np.random.default_rng([d, n])
    one, other = (random_directions.unit_vectors(size, d, rng) for size in (n, m))
    return float(match(one, other)[1].mean())


def one_to_one(first: Rows, second: Rows) -> dict[str, float]:
    """PW-MCC, that of one draw of random directions, and the share of the smaller one's features.

    Either dictionary may be the larger one.
    """
    small, large = sorted([first, second], key=lambda rows: len(rows[1]))
    matched = match_features(small, large)
    return {
        "pw_mcc": matched.pw_mcc,
        "random_pw_mcc": _random_pair(small[1].shape[1], len(small[1]), len(large[1])),
        "shared_fraction": float(matched.same.mean()),
    }


def one_way(rows: Floats, others: Floats, threshold: float) -> dict[str, Any]:
    """The rows (n, d) of a decoder sought in another's (m, d): by the plain maximum.

    How many there are, their MMCS, and how many are `above` the threshold; `random`: the exact
    expectation of either for random directions.
    """
    mcs, d = max_cosine(rows, others), rows.shape[1]
    chance = 1 - float(random_directions.max_cdf(threshold, d, len(others)))
    return {
        "features": len(rows),
        "mmcs": float(mcs.mean(dtype=np.float64)),
        "random_mmcs": random_directions.max_mean(d, len(others)),
        "above": int((mcs > threshold).sum()),
        "random_above": len(rows) * chance,
    }


def of_directions(
    first: Rows, second: Rows, alive: tuple[Bools, Bools], threshold: float
) -> dict[str, float]:
    """The first dictionary's features sought in the second's: shares of them, and one to one.

    `above_alive` counts only features that are `alive`, among such; `gaussian`: what rows with the
    covariances of both reach.
    """
    rows, others = first[1], second[1]
    way, n = one_way(rows, others, threshold), len(rows)
    living = max_cosine(rows[alive[0]], others[alive[1]]) > threshold
    return {
        "mmcs": way["mmcs"],
        "random_mmcs": way["random_mmcs"],
        "gaussian_mmcs": gaussian_rows.mmcs(rows, others),
        "above": way["above"] / n,
        "above_alive": float(living.sum() / max(len(living), 1)),
        "random_above": way["random_above"] / n,
        **one_to_one(first, second),
    }


def of_codes(codes: Floats, others: Floats, threshold: float) -> dict[str, float]:
    """Correlations of codes (rows, n) and (rows, m) on the same tokens, matched one to one.

    Of features that are active on some of the rows; the dictionary that has fewer counts. Chance:
    the same with the rows of one in another order.
    """
    active = [part[:, (part > 0).any(0)] for part in (codes, others)]
    few, many = sorted(active, key=lambda part: part.shape[1])
    _, correlation = match_codes(few, many)
    _, chance = match_codes(few, np.roll(many, len(many) // 2, axis=0))
    return {
        "active": len(correlation),
        "correlation": float(correlation.mean()),
        "correlated": float((correlation > threshold).mean()),
        "chance": float(chance.mean()),
    }
