"""The language model's loss without single features, or with another dictionary's in their place.

What the dictionary does not explain stays in the activation: nothing but the feature changes.
"""

import hashlib
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from annotated_types import Len
from numpy.typing import NDArray
from typing_extensions import TypedDict

from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.source import Source, put_back, rows_of
from sparse_dict.analysis.study import Entry
from sparse_dict.config import EffectsConfig
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import finite, threads_to_share
from sparse_dict.machine.background import mapped
from sparse_dict.machine.progress import Progress
from sparse_dict.sae.folder import WEIGHTS
from sparse_dict.storage import records
from sparse_dict.storage.files import fingerprint, sha256_file, write_json

Rows = NDArray[np.float32]

log = logging.getLogger(__name__)

KEPT = Path("effects") / "measured.json"  # in the analysis' folder
TOKENS = 4096  # in one forward pass
SAVE_S = 20.0  # seconds between two savings of what is measured


def measure(
    entry: Entry, other: Entry, source: Source, settings: EffectsConfig, seed: int, kept: Path
) -> pd.DataFrame:
    """A row a feature of `entry`: changes of the loss in nats, means over all tokens.

    `ablated` without it, `substituted` with its nearest feature of `other` in its place, and the
    `cosine` of the two. Results are saved in the file `kept`, from which a measurement goes on that
    was interrupted or reached `settings.minutes`.
    """
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
    log.info(
        "effects of %d of %d features of %s, each in up to %d contexts of %s tokens",
        len(features), entry.size, entry.name, settings.contexts, f"{source.text.size:,}",
    )  # fmt: skip
    weights = [sha256_file(e.trained.folder / WEIGHTS) for e in (entry, other)]
    text = hashlib.sha256(source.text.tobytes()).hexdigest()
    of = fingerprint([weights, text, settings.features, settings.contexts, seed])
    effects = _known(kept, of)
    # in random order, so that those that there is time for are a sample
    order = np.random.default_rng(seed).permutation(len(features))
    todo, done = order[len(effects) :], len(effects)
    own = _codes(entry, features[todo], [chosen[i] for i in todo], source)
    theirs = _codes(other, partners[todo], [chosen[i] for i in todo], source)
    # One by one, so that it does not depend on what was measured in an earlier run.
    original = cache(lambda context: losses(source, np.array([context]), [None]).item())
    assert source.lm is not None
    saved = started = time.monotonic()

    def effect(at: int) -> list[float]:
        i, ours, match = todo[at], own[at], theirs[at]
        without = -ours[..., None] * entry.decoder[features[i]]
        instead = without + match[..., None] * other.decoder[partners[i]]
        whole = np.mean([original(context) for context in chosen[i].tolist()])
        changed = losses(source, chosen[i], [without, instead]).mean(1) - whole
        share = len(where[i]) / len(active)  # elsewhere nothing changes
        return [float(value) for value in share * changed]

    with (
        threads_to_share(source.lm.model) as threads,
        Progress("effects", len(features), "features", done) as progress,
    ):
        for found in mapped(effect, range(len(todo)), threads):
            effects.append(found)
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
    columns = {"feature": features, "cosine": cosines.max(axis=1, initial=-1)}
    table = pd.DataFrame(columns).iloc[measured]
    table = table.assign(ablated=ablated, substituted=substituted)
    return table.sort_values("feature", ignore_index=True)


class _Kept(TypedDict):
    of: records.Line
    effects: list[Annotated[list[records.Number], Len(2, 2)]]


def _known(kept: Path, of: str) -> list[list[float]]:
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


@torch.inference_mode()
def losses(
    source: Source, contexts: NDArray[np.int64], changes: Sequence[Rows | None]
) -> NDArray[np.float64]:
    """The loss in nats on each context with each change of its rows, (changes, contexts).

    A change (contexts, kept, d_in) is added to the rows.
    """
    assert source.lm is not None
    model, skip = source.lm.model, source.place.skip_first
    found, at_once = np.empty((len(changes), len(contexts))), max(1, TOKENS // source.text.shape[1])
    for start in range(0, len(contexts), at_once):
        some = slice(start, start + at_once)
        text = source.text[contexts[some]]
        tokens = torch.from_numpy(text.astype(np.int64)).to(model.device)
        values, follow = model.split(tokens[:, :-1], tokens[:, 1:], source.place.sites)
        x = rows_of(values, skip)
        for i, change in enumerate(changes):
            new = values
            if change is not None:
                new = put_back(values, x + change[some, :-1].reshape(x.shape), skip)
            found[i, some] = finite(follow(new), model).mean(1).cpu()
    return found
