"""The language model's loss without single features, or with another dictionary's in their place.

What the dictionary does not explain stays in the activation: nothing but the feature changes.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import pandas as pd
from annotated_types import Len
from numpy.typing import NDArray
from typing_extensions import TypedDict

from sparse_dict.analysis.features.top_contexts import Code, codes
from sparse_dict.analysis.measured.reconstruction_loss import Batch, Losses, parts, read
from sparse_dict.analysis.measures import Index, alignment
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, spearman
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.source import MEMORY, Source
from sparse_dict.analysis.study import Entry
from sparse_dict.analysis.tables import SEED, Tables
from sparse_dict.config import EffectsConfig
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import threads_to_share
from sparse_dict.machine.background import mapped
from sparse_dict.machine.progress import Progress
from sparse_dict.sae.folder import WEIGHTS
from sparse_dict.storage import records
from sparse_dict.storage.files import fingerprint, sha256_file, write_json

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Rows = NDArray[np.float32]
log = logging.getLogger(__name__)
KEPT = Path("effects") / "measured.json"  # in the analysis' folder
RECURS = 0.5  # a feature recurs if at least this share of the other dictionaries share it
THIRDS = ("rare", "middle", "frequent")  # by firing frequency
FEWEST = 20  # features of which something is said
SAVE_S = 20.0  # seconds between two savings of what is measured


def measure(
    entry: Entry, other: Entry, source: Source, settings: EffectsConfig, seed: int, kept: Path
) -> pd.DataFrame:
    """A row a feature of `entry`: changes of the loss in nats, means over all tokens.

    `ablated` without it, `substituted` with its nearest feature of `other` in its place, and the
    `cosine` of the two. Results are saved in the file `kept`, from which a measurement goes on that
    was interrupted or reached `settings.minutes`.
    """
    assert source.lm is not None
    model = source.lm.model
    own = _codes(entry, range(entry.size), source)
    feature, row = own.nonzero()
    active = np.zeros((len(source.text), entry.size), bool)
    active[row // (own.shape[1] // len(active)), feature] = True
    rng = np.random.default_rng(seed)
    features = np.flatnonzero(active.any(0))
    features = np.sort(rng.permutation(features)[: settings.features])
    cosines = normalised(entry.decoder[features]) @ normalised(other.decoder).T
    partners = cosines.argmax(axis=1)
    where = [np.flatnonzero(active[:, feature]) for feature in features]
    chosen = [np.sort(rng.permutation(there)[: settings.contexts]) for there in where]
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
    todo = order[len(effects) :]
    theirs = _codes(other, partners[todo].tolist(), source)
    saved = started = time.monotonic()

    def effect(at: int, used: Index, held: Read) -> list[float]:
        i = todo[at]
        ours, match = (
            row.toarray().reshape(len(active), -1, 1)[chosen[i]]
            for row in (own[[features[i]]], theirs[[at]])
        )
        without = -ours * entry.decoder[features[i]]
        instead = without + match * other.decoder[partners[i]]
        changed = held.changes(np.searchsorted(used, chosen[i]), [without, instead]).mean(1)
        share = len(where[i]) / len(active)  # elsewhere nothing changes
        return [float(value) for value in share * changed]

    def each() -> Generator[list[float], None, None]:
        for group in _groups([chosen[i] for i in todo], _most_contexts(source)):
            used = np.unique(np.concatenate([chosen[todo[at]] for at in group]))
            measured = partial(effect, used=used, held=Read.of(source, used))
            with threads_to_share(model) as threads:
                yield from mapped(measured, group, threads)

    with (
        closing(each()) as found,
        Progress("effects", len(features), "features", len(effects)) as progress,
    ):
        for change in found:
            effects.append(change)
            progress.advance(1)
            now, done = time.monotonic(), len(effects) == len(features)
            late = now - started > 60 * settings.minutes
            if late or done or now - saved > SAVE_S:
                write_json(kept, {"of": of, "effects": effects})
                saved = now
            if late and not done:
                log.info(
                    "effects of %d of %d features in effects.minutes=%g: the same command goes on",
                    len(effects), len(features), settings.minutes,
                )  # fmt: skip
                break
    table = pd.DataFrame({"feature": features, "cosine": cosines.max(axis=1, initial=-1)})
    table = table.iloc[order[: len(effects)]]
    table[["ablated", "substituted"]] = np.reshape(effects, (-1, 2))
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


def _codes(entry: Entry, features: Sequence[int], source: Source) -> "csr_array":
    """Codes of some features on all rows, (features, contexts * kept)."""
    encode = entry.trained.dictionary.encode
    return codes([Code(encode, entry.size, i) for i in features], source, entry.name)


def _most_contexts(source: Source) -> int:
    """How many contexts that a model has read are held at a time."""
    (first, _), (_, last) = source.columns[0], source.columns[-1]
    row = 4 * (last - first)  # bytes
    return max(MEMORY // (4 * row * source.text.shape[1]), 1)


def _groups(chosen: Sequence[Index], most: int) -> Iterator[list[int]]:
    """Features in order, as many together as have at most `most` contexts in all, or one."""
    group: list[int] = []
    together: set[int] = set()
    for at, contexts in enumerate(chosen):
        wider = together | {*contexts.tolist()}
        if group and len(wider) > most:
            yield group
            group, wider = [], {*contexts.tolist()}
        group, together = [*group, at], wider
    if group:
        yield group


@dataclass(frozen=True)
class Read:
    """Contexts of a source that the model has read as far as the activation."""

    batch: Batch
    rows: Rows  # (contexts, kept, d), the activations
    skip: int  # tokens of a context without such a row
    before: Losses  # in nats of each token, (contexts, n_ctx - 1)

    @classmethod
    def of(cls, source: Source, contexts: Index) -> Self:
        """Those of these numbers."""
        assert source.lm is not None
        model, skip = source.lm.model, source.place.skip_first
        batch = read(model, source.text[contexts], source.place)
        rows = batch.y.reshape(len(contexts), -1, batch.y.shape[1])
        places, every = np.arange(len(contexts)), parts(len(contexts), source.text.shape[1] - 1)

        def losses(part: slice) -> Losses:
            return batch.loss(rows[part].reshape(-1, rows.shape[2]), None, places[part])

        with threads_to_share(model) as threads:
            return cls(batch, rows, skip, np.concatenate([*mapped(losses, every, threads)]))

    def changes(self, contexts: Index, of: Sequence[Rows]) -> Losses:
        """By how much the mean loss of each context rises with each change of its rows, in nats.

        (changes, contexts), of `contexts` by their place here. A change (contexts, kept, d) is
        added to the rows; losses stay what they are up to the first row that is changed.
        """
        found = np.zeros((len(of), len(contexts)))
        for i, change in enumerate(of):
            for part in parts(len(contexts), self.before.shape[1]):
                some, added = contexts[part], change[part, :-1]
                behind = np.logical_or.accumulate(added.any(2), axis=1)
                mask = np.pad(behind, ((0, 0), (self.skip, 0)))  # (contexts, n_ctx - 1)
                rises = np.zeros(mask.shape)
                new = (self.rows[some] + added).reshape(-1, added.shape[2])
                rises[mask] = self.batch.loss(new, mask, some) - self.before[some][mask]
                found[i, part] = rises.mean(1)
        return found


def partners_of(study: Tables) -> pd.DataFrame:
    """The pairs of the dictionary that is measured, as columns dictionary, other, differ, ...

    It is the largest that has any at the chosen level, of the lowest seed; those that differ in
    the seed alone come first.
    """
    lowest = study.level[study.level["seed"] == study.level["seed"].min()]
    if study.pairs.empty:
        return study.pairs
    turned = {"first": "second", "second": "first", "feature": "partner", "partner": "feature"}
    both = pd.concat([study.pairs, study.pairs.rename(columns=turned)])
    both = both.rename(columns={"first": "dictionary", "second": "other"})
    own = both.merge(lowest[["dictionary", "size"]])
    own = own[own["size"] == own["size"].max()]
    return own.sort_values("differ", key=lambda differ: differ != SEED, kind="stable")


def overlap(one: Entry, other: Entry, pairs: pd.DataFrame) -> dict[str, float]:
    """How much of each other's span the features that the two do not share hold.

    Of those that are active the most frequent ones, at most a quarter of the dimensions.
    """
    d, same, rows = one.decoder.shape[1], pairs[pairs["same"]], []
    for entry, shared in ((one, same["feature"]), (other, same["partner"])):
        kept = np.setdiff1d(np.flatnonzero(entry.alive), shared)
        rows.append(entry.decoder[kept[np.argsort(-entry.frequency[kept])][: d // 4]])
    fewest = min(map(len, rows))
    mean, variance = alignment.random_overlap(len(rows[0]), len(rows[1]), d)
    overlap = alignment.overlap(*rows) if fewest else np.nan
    return {"n": fewest, "overlap": overlap, "random": mean, "variance": variance}


def thirds(frequency: "pd.Series[Any]") -> "pd.Series[Any]":
    """The third by firing frequency to which each feature belongs."""
    return pd.qcut(frequency.rank(method="first"), 3, labels=list(THIRDS))


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's coefficient of recurrence and effect, in all and within thirds of frequency."""
    parts = {"all": table, **dict([*table.groupby(thirds(table["frequency"]), observed=True)])}
    rows = []
    for name, part in parts.items():
        if len(part) >= FEWEST and part["recurrence"].nunique() > 1:
            found = over_features(part, spearman)
            rows.append((name, len(part), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["features", "n", "spearman", "low", "high"])


def over_features(table: pd.DataFrame, number: Callable[[NDArray[Any]], float]) -> Estimate:
    """`number` of (features, 2), recurrence and effect, with an interval over features."""
    return bootstrap([table[["recurrence", "ablated"]].to_numpy()], lambda drawn: number(drawn[0]))


def by_recurrence(table: pd.DataFrame) -> pd.DataFrame:
    """Number and effect of the features that recur, and of the others."""
    recurs = np.where(table["recurrence"] >= RECURS, "recur", "do not")
    sums = table.assign(n=1).groupby(recurs)[["n", "ablated", "substituted"]].sum()
    sums = sums.reindex(["recur", "do not"], fill_value=0).rename_axis("features").reset_index()
    shares = sums[["n", "ablated"]] / sums[["n", "ablated"]].sum()
    left = sums["substituted"] / sums["ablated"].replace(0, np.nan)
    columns = {"share of features": shares["n"], "share of effect": shares["ablated"]}
    return sums[["features", "n"]].assign(**columns, **{"left with the match": left})
