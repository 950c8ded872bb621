"""The language model's loss without single features, or with another dictionary's in their place.

What the dictionary does not explain stays in the activation: nothing but the feature changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sparse_dict.analysis.harvested import Source, put_back, rows_of
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.seeds import SeedPair, matched
from sparse_dict.analysis.study import Chain, Entry
from sparse_dict.config import EffectsConfig
from sparse_dict.machine.progress import Progress

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Compared:
    """A dictionary and those that differ from it in seed, rows or both, matched."""

    entry: Entry
    pairs: list[SeedPair]  # `entry` is the first of each

    @property
    def recurrence(self) -> Floats:
        """Share of the others that share each feature, (size,)."""
        return np.mean([pair.shared for pair in self.pairs], axis=0)


def largest(chain: Chain | None, known: Mapping[str, Sequence[SeedPair]]) -> Compared | None:
    """The largest dictionary of a chain that is among `known` pairs, with all its partners.

    Without a chain, as in a study of one size, the largest of all.
    """
    pairs = [pair for kind in known.values() for pair in kind]
    entries = chain.entries if chain else sorted((p.first for p in pairs), key=lambda e: e.size)
    for entry in reversed(entries):
        own = [
            pair if pair.first is entry else matched(entry, pair.first)
            for pair in pairs
            if entry in (pair.first, pair.second)
        ]
        if own:
            return Compared(entry, own)
    return None


def measure(compared: Compared, source: Source, settings: EffectsConfig, seed: int) -> pd.DataFrame:
    """A row a feature, with its effects: change of the loss in nats, mean over all tokens."""
    entry, other = compared.entry, compared.pairs[0].second
    active = np.stack(  # (contexts, size)
        [
            (entry.trained.dictionary.encode(source.rows(slice(i, i + 1))[0]) > 0).any(0)
            for i in range(len(source.text))
        ]
    )
    rng = np.random.default_rng(seed)
    features = np.flatnonzero(active.any(0))
    features = np.sort(rng.permutation(features)[: settings.features])
    cosines = normalised(entry.decoder[features]) @ normalised(other.decoder).T
    recurrence, rows = compared.recurrence, []
    with Progress("effects", len(features), "features") as progress:
        for feature, cosine in zip(features.tolist(), cosines, strict=True):
            partner = int(cosine.argmax())
            where = np.flatnonzero(active[:, feature])
            some = rng.permutation(where)[: settings.contexts]
            ablated, substituted = effect(
                source, source.text[np.sort(some)], (entry, feature), (other, partner)
            )
            share = len(where) / len(active)  # elsewhere nothing changes
            rows.append(
                {
                    "feature": feature,
                    "frequency": float(entry.frequency[feature]),
                    "recurrence": float(recurrence[feature]),
                    "ablated": ablated * share,
                    "substituted": substituted * share,
                    "cosine": float(cosine[partner]),
                }
            )
            progress.advance(1)
    return pd.DataFrame(rows)


@torch.inference_mode()
def effect(
    source: Source,
    text: NDArray[np.int32],
    feature: tuple[Entry, int],
    partner: tuple[Entry, int],
) -> tuple[float, float]:
    """Change of the mean loss on contexts `text` without a feature, and with its partner."""
    model, skip = source.lm.model, source.place.skip_first
    tokens = torch.from_numpy(text.astype(np.int64)).to(model.device)
    found, follow = model.split(tokens[:, :-1], tokens[:, 1:], source.place.sites)
    x = rows_of(found, skip)
    own, theirs = part(*feature, x), part(*partner, x)
    original, ablated, substituted = (
        float(follow(put_back(found, new, skip))) for new in (x, x - own, x - own + theirs)
    )
    return ablated - original, substituted - original


def part(entry: Entry, feature: int, x: Rows) -> Rows:
    """What a feature adds to the reconstruction of rows x (n, d_in)."""
    code = entry.trained.dictionary.encode(x)[:, feature]
    return code[:, None] * entry.decoder[feature]
