"""Top-activating text: where in the harvest's text a feature is active, and what it writes.

The rows of a harvest are shuffled, but their origins say where in the text each belongs: those of
evenly spaced contexts are read from the disk, so the language model need not run again. Their rows
(of at most a GiB) are in memory, as the files hold them. Of arrays that no language model made, a
row is a text of one token.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.features.chosen import Chosen, choose, partner
from sparse_dict.analysis.features.logit_effects import LogitEffects, logit_effects
from sparse_dict.analysis.harvested import (
    Floats,
    Place,
    Source,
    activations_of,
    open_rows,
    open_source,
)
from sparse_dict.analysis.measures.effective_neurons import simpson_neurons
from sparse_dict.analysis.study import Entry
from sparse_dict.config import AnalyzeConfig, ContextsConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress

log = logging.getLogger(__name__)

Places = NDArray[np.int64]

BINS = 30  # of the histogram of activations, from 0 to the largest
CHUNK_VALUES = 1 << 22  # codes computed at a time
SAMPLE = 256  # active tokens of a feature among which the evenly spread ones are sought
SPARE = 4  # candidates kept for each context shown, since repeated text is left out


@dataclass(frozen=True, eq=False)
class Context:
    """A stretch of text around one token, within what the language model saw at once."""

    tokens: NDArray[np.int32]  # (n,)
    values: Floats  # (n,) the feature's activations; 0 where none was harvested
    peak: int  # which of the n tokens it was chosen for


@dataclass(frozen=True, eq=False)
class Feature:
    """What is known of one feature or neuron."""

    chosen: Chosen
    effective: float  # effective neurons of its decoder row
    density: float  # share of the tokens read here on which it is active
    largest: float  # activation; 0 if never active
    histogram: NDArray[np.int64]  # (BINS,) active tokens by activation, from 0 to `largest`
    top: list[Context]  # the highest, at most one of each context of the language model
    spread: list[Context]  # at evenly spaced quantiles of its activations, highest first
    shares: list[float]  # of its squared decoder row that each site has
    promoted: list[tuple[int, float]]  # tokens and logits for each unit of activation
    demoted: list[tuple[int, float]]
    neuron: tuple[int, float] | None  # the nearest neuron and the signed cosine with it

    @property
    def dead(self) -> bool:
        """Whether it was never active on the evaluation rows; a neuron: on the tokens here."""
        entry = self.chosen.entry
        return not entry.alive[self.chosen.index] if entry else self.largest == 0


@dataclass(frozen=True, eq=False)
class Gallery:
    """Features with their contexts, and the neurons nearest to them."""

    features: list[Feature]
    vocabulary: dict[int, str]  # every token that occurs, printable
    n_tokens: int  # read here
    n_harvested: int
    n_ctx: int
    mcs: str  # which variant of MCS
    place: Place
    columns: tuple[tuple[int, int], ...]  # of each site: first, and one past the last
    direct: tuple[Site, ...]  # sites whose effect on the logits is shown
    indirect: tuple[str, ...]  # why that of others is not
    # each feature's in the next larger dictionary, with their cosine
    partners: dict[Chosen, tuple[Entry, int, float]] = field(default_factory=dict)

    @property
    def has_neurons(self) -> bool:
        """Whether neurons are shown beside the features, which is not so for transcoders."""
        return any(feature.chosen.entry is None for feature in self.features)

    @property
    def of_rows(self) -> bool:
        """Whether a context is a row of arrays that no language model made."""
        return not self.place.sites

    @property
    def unit(self) -> str:
        """What a column of the activations is called."""
        return "neuron" if self.place.of_neurons else "coordinate"


def gather(config: AnalyzeConfig, comparison: Comparison, also: Sequence[Chosen] = ()) -> Gallery:
    """Choose features, those of `also` too, and find their contexts.

    Raises:
        UserError: `contexts.features` names a feature that does not exist, or the text, the model
            or the activations are not there.
    """
    settings = config.settings(ContextsConfig)
    assert settings is not None
    chosen = choose(comparison, settings, config.seed, also)
    own = None
    with suppress(UserError):  # which `open_source` says better
        own = activations_of(comparison.study, config)
    if own is not None and own.manifest is None and len(own.folders) == 1:
        source = open_rows(own, comparison.study, settings)
    else:
        source = open_source(config, comparison.study, settings.n_tokens)
    log.info("contexts: %d features on %s tokens", len(chosen), f"{source.text.size:,}")
    found, effects = describe(chosen, source, settings, config.seed)
    shown = {token for f in found for c in [*f.top, *f.spread] for token in c.tokens.tolist()}
    shown |= {token for f in found for token, _ in [*f.promoted, *f.demoted]}
    n_contexts, n_ctx = source.text.shape
    skip = source.place.skip_first
    return Gallery(
        found, source.words(shown), n_contexts * (n_ctx - skip), source.n_harvested, n_ctx,
        str(comparison.shown), source.place, source.columns, effects.sites,
        effects.missing,
        {c: near for c in chosen if (near := partner(comparison, c)) is not None},
    )  # fmt: skip


class _Largest:
    """The `k` candidates with the largest keys in each row, of all that were ever added."""

    def __init__(self, rows: int, k: int) -> None:
        self.keys: Floats = np.full((rows, k), -np.inf, np.float32)
        self.values: Floats = np.zeros((rows, k), np.float32)
        self.places: Places = np.zeros((rows, k), np.int64)

    def add(self, keys: Floats, values: Floats, places: Places) -> None:
        """Offer candidates, (rows, n) each."""
        k = self.keys.shape[1]
        if keys.shape[1] > 4 * k:  # sorting only the best k is faster
            best = np.argpartition(keys, -k, axis=1)[:, -k:]
            keys = np.take_along_axis(keys, best, 1)
            values = np.take_along_axis(values, best, 1)
            places = np.take_along_axis(places, best, 1)
        keys = np.concatenate([self.keys, keys], axis=1)
        order = np.argsort(-keys, axis=1, kind="stable")[:, :k]
        self.keys = np.take_along_axis(keys, order, 1)
        self.values = np.take_along_axis(np.concatenate([self.values, values], 1), order, 1)
        self.places = np.take_along_axis(np.concatenate([self.places, places], 1), order, 1)


def describe(
    chosen: Sequence[Chosen], source: Source, settings: ContextsConfig, seed: int
) -> tuple[list[Feature], LogitEffects]:
    """Contexts, histogram and logit effects of each of `chosen`, in that order.

    The text is read twice: once to find the contexts and the largest activations, and once for the
    histograms, whose bins end there, and for the activations in the contexts.
    """
    n, (n_contexts, n_ctx) = len(chosen), source.text.shape
    best = _Largest(n, SPARE * settings.top)
    sample = _Largest(n, SAMPLE)
    active = np.zeros(n, np.int64)
    rng = np.random.default_rng(seed)
    with Progress("contexts", 2 * source.text.size, "tokens") as progress:
        for start, codes in _codes(chosen, source, progress):
            places = start + np.arange(codes.shape[1])
            active += (codes > 0).sum(1)
            by_context = codes.reshape(n, -1, n_ctx)
            at = by_context.argmax(2)
            values = np.take_along_axis(by_context, at[..., None], 2)[..., 0]
            best.add(values, values, places[::n_ctx] + at)
            keys = np.where(codes > 0, rng.random(codes.shape[1], np.float32), np.float32(-1))
            sample.add(keys, codes, np.broadcast_to(places, codes.shape))

        largest = np.maximum(best.values[:, 0], 0)
        picked = [_pick(row, best, sample, source.text, settings) for row in range(n)]
        histograms = np.zeros((n, BINS), np.int64)
        contexts: dict[tuple[int, int], Context] = {}
        requests = [(place, row) for row in range(n) for part in picked[row] for place in part]
        requests.sort(reverse=True)  # the next one last
        for start, codes in _codes(chosen, source, progress):
            rows, columns = np.nonzero(codes > 0)
            bins = (codes[rows, columns] / largest[rows] * BINS).astype(np.int64)
            flat = rows * BINS + np.minimum(bins, BINS - 1)
            histograms += np.bincount(flat, minlength=n * BINS).reshape(n, BINS)
            while requests and requests[-1][0] < start + codes.shape[1]:
                place, row = requests.pop()
                first, stop = _around(place, n_ctx, settings.width)
                values = codes[row, first - start : stop - start].copy()
                tokens = source.text.ravel()[first:stop]
                contexts[row, place] = Context(tokens, values, place - first)

    decoders = directions(chosen, source.columns[-1][1])
    effects = LogitEffects([[]] * n, [[]] * n, (), ())
    if source.lm is not None:
        effects = logit_effects(decoders, source.lm, source.place.sites, source.columns)
    features = []
    for row, item in enumerate(chosen):
        top, spread = ([contexts[row, place] for place in part] for part in picked[row])
        decoder = decoders[row : row + 1]
        features.append(
            Feature(
                chosen=item,
                effective=float(simpson_neurons(decoder)[0]),
                density=float(active[row]) / (n_contexts * (n_ctx - source.place.skip_first)),
                largest=float(largest[row]),
                histogram=histograms[row],
                top=top,
                spread=spread,
                shares=_shares(decoder[0], source.columns),
                promoted=effects.promoted[row],
                demoted=effects.demoted[row],
                neuron=item.nearest(),
            )
        )
    return features, effects


def _codes(
    chosen: Sequence[Chosen], source: Source, progress: Progress
) -> Iterator[tuple[int, Floats]]:
    """Codes of all tokens, whole contexts at a time: the first token's place, and (chosen, n).

    Positions that were not harvested are inactive.
    """
    owners: dict[str, tuple[Entry | None, list[int]]] = {}
    for row, item in enumerate(chosen):
        owners.setdefault(item.entry.name if item.entry else "", (item.entry, []))[1].append(row)
    n_contexts, n_ctx = source.text.shape
    widest = max([len(chosen), *(e.size for e, _ in owners.values() if e)])
    step = max(CHUNK_VALUES // (widest * n_ctx), 1)
    skip = source.place.skip_first
    for first in range(0, n_contexts, step):
        found = source.rows(slice(first, first + step))
        x = found.reshape(-1, found.shape[-1])  # (contexts * kept, d_in)
        codes = np.zeros((len(chosen), len(found), n_ctx), np.float32)
        for entry, rows in owners.values():
            all_codes = entry.trained.dictionary.encode(x) if entry else x
            wanted = all_codes[:, [chosen[row].index for row in rows]].T
            codes[rows, :, skip:] = wanted.reshape(len(rows), len(found), -1)
        yield first * n_ctx, codes.reshape(len(chosen), -1)
        progress.advance(len(found) * n_ctx)


def _shares(decoder: Floats, columns: Sequence[tuple[int, int]]) -> list[float]:
    squares = decoder.astype(np.float64) ** 2
    return [float(squares[a:b].sum() / max(squares.sum(), 1e-30)) for a, b in columns]


def _around(place: int, n_ctx: int, width: int) -> tuple[int, int]:
    """The first place of the text shown around `place`, and the one past its last."""
    start = place // n_ctx * n_ctx
    return max(start, place - width), min(start + n_ctx, place + width + 1)


def _pick(
    row: int, best: _Largest, sample: _Largest, text: NDArray[np.int32], settings: ContextsConfig
) -> tuple[list[int], list[int]]:
    """Places of the highest and of the evenly spread contexts of one feature.

    A context whose text, up to the token in question, is already shown is left out: documentation
    repeats itself.
    """
    seen: set[bytes] = set()

    def fresh(place: int) -> bool:
        first, _ = _around(place, text.shape[1], settings.width)
        shown = text.ravel()[first : place + 1].tobytes()
        new = shown not in seen
        seen.add(shown)
        return new

    top: list[int] = []
    for place in best.places[row][best.values[row] > 0].tolist():
        if len(top) < settings.top and fresh(place):
            top.append(place)
    there = sample.keys[row] >= 0
    order = np.argsort(-sample.values[row][there], kind="stable")
    candidates = sample.places[row][there][order].tolist()
    spread: list[int] = []
    for i in range(settings.spread):
        middle, end = (int((i + at) / settings.spread * len(candidates)) for at in (0.5, 1))
        spread += next(([place] for place in candidates[middle:end] if fresh(place)), [])
    return top, spread


def directions(chosen: Sequence[Chosen], d_out: int) -> Floats:
    """What a unit of activation adds to a row, (chosen, d_out)."""
    rows = np.zeros((len(chosen), d_out), np.float32)
    for row, item in zip(rows, chosen, strict=True):
        if item.entry is None:
            row[item.index] = 1
        else:
            row[:] = item.entry.decoder[item.index]
    return rows
