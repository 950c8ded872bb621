"""The language model's loss without single features, or with another dictionary's in their place.

What the dictionary does not explain stays in the activation: nothing but the feature changes.
"""

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from annotated_types import Len
from numpy.typing import NDArray
from typing_extensions import TypedDict

from sparse_dict.analysis.harvested import Source, put_back, rows_of
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.seeds import SeedPair, matched
from sparse_dict.analysis.study import Chain, Entry
from sparse_dict.config import EffectsConfig
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import finite
from sparse_dict.machine.progress import Progress
from sparse_dict.sae.folder import WEIGHTS
from sparse_dict.storage import records
from sparse_dict.storage.files import fingerprint, sha256_file, write_json

Floats = NDArray[np.floating[Any]]
Rows = NDArray[np.float32]

log = logging.getLogger(__name__)

KEPT = Path("effects") / "measured.json"  # in the analysis' folder
TOKENS = 4096  # in one forward pass
SAVE_S = 20.0  # seconds between two savings of what is measured


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


def measure(
    compared: Compared, source: Source, settings: EffectsConfig, seed: int, kept: Path
) -> pd.DataFrame:
    """A row per feature, with its effects: change of the loss in nats, mean over all tokens.

    Results are saved in the file `kept`, from which a measurement goes on that was interrupted or
    reached `settings.minutes`.
    """
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
    partners = cosines.argmax(axis=1)
    where = [np.flatnonzero(active[:, feature]) for feature in features]
    chosen = [np.sort(rng.permutation(found)[: settings.contexts]) for found in where]
    weights = [sha256_file(e.trained.folder / WEIGHTS) for e in (entry, other)]
    text = hashlib.sha256(source.text.tobytes()).hexdigest()
    of = fingerprint([weights, text, settings.features, settings.contexts, seed])
    effects = _known(kept, of)
    # in random order, so that those that there is time for are a sample
    order = np.random.default_rng(seed).permutation(len(features))
    todo, done = order[len(effects) :], len(effects)
    own = _codes(entry, features[todo], [chosen[i] for i in todo], source)
    theirs = _codes(other, partners[todo], [chosen[i] for i in todo], source)
    originals = _Originals(source)
    saved = started = time.monotonic()
    with Progress("effects", len(features), "features", done) as progress:
        for i, ours, match in zip(todo, own, theirs, strict=True):
            without = -ours[..., None] * entry.decoder[features[i]]
            instead = without + match[..., None] * other.decoder[partners[i]]
            original = originals.mean(chosen[i])
            share = len(where[i]) / len(active)  # elsewhere nothing changes
            effects.append(
                [share * (loss(source, chosen[i], c) - original) for c in (without, instead)]
            )
            progress.advance(1)
            now = time.monotonic()
            late = now - started > 60 * settings.minutes
            if late or now - saved > SAVE_S or len(effects) == len(features):
                write_json(kept, {"of": of, "effects": effects})
                saved = now
            if late and len(effects) < len(features):
                log.info(
                    "effects of %d of %d features in effects.minutes=%g: the same command goes on",
                    len(effects), len(features), settings.minutes,
                )  # fmt: skip
                break
    measured = order[: len(effects)]
    ablated, substituted = np.reshape(effects, (-1, 2)).T
    table = pd.DataFrame(
        {
            "feature": features[measured],
            "frequency": entry.frequency[features[measured]],
            "recurrence": compared.recurrence[features[measured]],
            "ablated": ablated,
            "substituted": substituted,
            "cosine": cosines.max(axis=1, initial=-1)[measured],
        }
    )
    return table.sort_values("feature", ignore_index=True)


class _Kept(TypedDict):
    """What was measured: of what, and for each feature its two effects."""

    of: records.Line
    effects: list[Annotated[list[records.Number], Len(2, 2)]]


def _known(kept: Path, of: str) -> list[list[float]]:
    """The saved pairs of effects of the measurement with hash `of`: those of its first features."""
    try:
        found = records.read(kept, _Kept)
    except UserError:
        return []
    return found["effects"] if found["of"] == of else []


def _codes(
    entry: Entry, features: NDArray[np.int64], chosen: Sequence[NDArray[np.int64]], source: Source
) -> list[Rows]:
    """The codes of each feature in the contexts chosen for it, (contexts, kept) each.

    All features are encoded together, and each context once.
    """
    found: list[list[Rows]] = [[] for _ in features]
    users = defaultdict(list)
    for i, contexts in enumerate(chosen):
        for context in contexts.tolist():
            users[context].append(i)
    for context in sorted(users):
        codes = entry.trained.dictionary.encode(source.rows(slice(context, context + 1))[0])
        for i in users[context]:  # in the order of its contexts, which are sorted
            found[i].append(codes[:, features[i]].copy())
    return [np.stack(rows) for rows in found]


class _Originals:
    """The model's own loss on each context, computed when it is first asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._known: dict[int, float] = {}

    def mean(self, contexts: NDArray[np.int64]) -> float:
        """The mean loss on some contexts."""
        for context in contexts.tolist():
            if context not in self._known:
                self._known[context] = loss(self._source, np.array([context]), None)
        return float(np.mean([self._known[context] for context in contexts.tolist()]))


@torch.inference_mode()
def loss(source: Source, contexts: NDArray[np.int64], change: Rows | None) -> float:
    """The mean loss on contexts in nats, with `change` (contexts, kept, d_in) added to the rows."""
    model, skip = source.lm.model, source.place.skip_first
    total, at_once = 0.0, max(1, TOKENS // source.text.shape[1])
    for start in range(0, len(contexts), at_once):
        some = slice(start, start + at_once)
        text = source.text[contexts[some]]
        tokens = torch.from_numpy(text.astype(np.int64)).to(model.device)
        values, follow = model.split(tokens[:, :-1], tokens[:, 1:], source.place.sites)
        if change is not None:
            x = rows_of(values, skip)
            values = put_back(values, x + change[some, :-1].reshape(x.shape), skip)
        total += float(finite(follow(values), model).sum())
    return total / len(contexts)
