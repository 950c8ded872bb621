"""How much of what one dictionary learned another one learned too: across seeds and sizes."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.similarity import match, normalised
from sparse_dict.analysis.study import Chain, Entry, Study

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

SHARED_ABOVE = 0.7  # Paulo and Belrose's threshold


@dataclass(frozen=True)
class SeedPair:
    """Two dictionaries that differ only in the seed, matched one-to-one; arrays have shape (n,)."""

    first: Entry
    second: Entry
    cosine: Floats  # of decoder rows, under the decoders' optimal matching
    shared: Bools

    @property
    def pw_mcc(self) -> float:
        """Mean cosine of optimally matched decoder rows (see `match_pair`)."""
        return float(self.cosine.mean())


def match_pair(
    first: tuple[NDArray[np.float32], NDArray[np.float32]],
    second: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> tuple[Floats, Bools]:
    """Compare two dictionaries of the same size, each given as encoder and decoder rows (n, d).

    Returns, in the order of the first one's features:
    - the cosine with the partner under the one-to-one matching of decoder rows that maximises
      their sum. Its mean is PW-MCC, the pairwise dictionary mean correlation coefficient of Song
      et al. (2025, arXiv 2505.20254); signed cosines, as in the authors' code;
    - whether the feature is shared in the sense of Paulo and Belrose (2025, arXiv 2501.16615): the
      optimal matching of the encoders and that of the decoders give it the same partner, and both
      cosines exceed 0.7.
    """
    decoder_partner, decoder_cosine = match(normalised(first[1]), normalised(second[1]))
    encoder_partner, encoder_cosine = match(normalised(first[0]), normalised(second[0]))
    shared = decoder_partner == encoder_partner
    shared &= (decoder_cosine > SHARED_ABOVE) & (encoder_cosine > SHARED_ABOVE)
    return decoder_cosine, shared


def seed_groups(study: Study) -> list[list[Entry]]:
    """Dictionaries that are equal in everything but the seed, two or more, by rising seed."""
    groups: dict[tuple[str, float, int], list[Entry]] = defaultdict(list)
    for entry in study.entries:
        groups[entry.family, entry.l1, entry.size].append(entry)
    return [sorted(g, key=lambda e: e.seed) for g in groups.values() if len(g) > 1]


def compare_seeds(study: Study, match_limit: int) -> list[SeedPair]:
    """Match each dictionary with that of the next seed, the last with the first.

    So every seed counts equally, and the work grows linearly with the number of seeds. Sizes above
    `match_limit` are skipped: exact matching takes time and memory that grow steeply.
    """
    pairs = []
    for group in seed_groups(study):
        if group[0].size > match_limit:
            continue
        seconds = group[1:] + (group[:1] if len(group) > 2 else [])
        for first, second in zip(group, seconds, strict=False):
            cosine, shared = match_pair(
                (first.encoder, first.decoder), (second.encoder, second.decoder)
            )
            pairs.append(SeedPair(first, second, cosine, shared))
    return pairs


@dataclass(frozen=True)
class FrequencyBin:
    """Features that fire about equally often; `low` and `high` are shares of rows."""

    low: float
    high: float
    n: int
    found: int


def by_frequency(frequency: Floats, found: Bools, per_decade: int = 1) -> list[FrequencyBin]:
    """Share of features found again, in bins of log frequency; the first is "never active".

    `frequency` (n,) is the share of evaluation rows on which a feature is active. Empty bins are
    left out; the bin of the never-active has low = high = 0.
    """
    never = frequency == 0
    bins = (
        [FrequencyBin(0.0, 0.0, int(never.sum()), int(found[never].sum()))] if never.any() else []
    )
    if never.all():
        return bins
    steps = np.floor(np.log10(np.where(never, 1, frequency)) * per_decade).astype(int)
    steps = np.minimum(steps, -1)  # a feature active on every row joins the topmost bin
    for step in range(int(steps[~never].min()), 0):
        chosen = ~never & (steps == step)
        if chosen.any():
            low, high = 10 ** (step / per_decade), 10 ** ((step + 1) / per_decade)
            bins.append(FrequencyBin(low, high, int(chosen.sum()), int(found[chosen].sum())))
    return bins


def found_along(comparison: Comparison, chain: Chain, start: int = 0) -> NDArray[np.int64]:
    """In how many larger dictionaries in a row each feature of one of a chain is found again.

    "Found" means an MCS above the threshold, in the configured matching and features. Shape
    (size,): 0 means not even in the next size; excluded features get -1.
    """
    entry, larger = chain.entries[start], chain.entries[start + 1 :]
    shown = comparison.shown
    columns = [
        comparison.similarities.mcs(entry.name, other.name, shown.matching, shown.features)
        for other in larger
    ]
    values = np.stack(columns, axis=1)
    run = np.cumprod(values > comparison.settings.threshold, axis=1).sum(axis=1)
    return np.where(np.isfinite(values).all(axis=1), run, -1)
