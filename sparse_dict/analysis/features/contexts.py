"""Top-activating text: where in the harvest's text a feature is active, and what it writes.

The rows of a harvest are shuffled, but their origins say where in the text each belongs: those of
evenly spaced contexts are read from the disk, so the language model need not run again. Their rows
(of at most a GiB) are in memory, as the files hold them, and the codes that are not zero. Of arrays
that no language model made, a row is a text of one token.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.features.chosen import Chosen, choose, partner
from sparse_dict.analysis.features.logit_effects import LogitEffects, logit_effects
from sparse_dict.analysis.harvested import Place, activations_of
from sparse_dict.analysis.measures.effective_neurons import simpson_neurons
from sparse_dict.analysis.source import Floats, Source, open_rows, open_source
from sparse_dict.analysis.study import Entry
from sparse_dict.config import AnalyzeConfig, ContextsConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress

log = logging.getLogger(__name__)

Encode = Callable[[Floats], Floats]  # rows (n, d_in) to codes (n, size)

BINS = 30  # of the histogram of activations, from 0 to the largest
CHUNK_VALUES = 1 << 22  # codes computed at a time


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
    """Choose features, those of `also` too, and find their contexts."""
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
    log.info("contexts: %d features on %s %s", len(chosen), f"{source.text.size:,}", source.unit)
    found, effects = describe(chosen, source, settings)
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


@dataclass(frozen=True)
class Code:
    """What is read: one column of what makes codes of rows, a dictionary or a basis."""

    encode: Encode
    size: int  # its columns
    index: int


def read(
    wanted: Sequence[Code], source: Source, what: str
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Codes on all the text that has rows, some contexts at a time: (wanted, contexts, kept)."""
    n_contexts, n_ctx = source.text.shape
    together: dict[Encode, list[int]] = {}
    for row, code in enumerate(wanted):
        together.setdefault(code.encode, []).append(row)
    step = max(CHUNK_VALUES // (max(len(wanted), *(c.size for c in wanted)) * n_ctx), 1)
    with Progress(what, source.text.size, source.unit) as progress:
        for start in range(0, n_contexts, step):
            contexts = slice(start, min(start + step, n_contexts))
            rows = source.rows(contexts)
            codes = np.empty((len(wanted), *rows.shape[:2]), np.float32)
            for encode, members in together.items():
                every = encode(rows.reshape(-1, rows.shape[-1]))
                part = every[:, [wanted[row].index for row in members]].T
                codes[members] = part.reshape(len(members), *rows.shape[:2])
            yield contexts, codes
            progress.advance(rows.shape[0] * n_ctx)


def describe(
    chosen: Sequence[Chosen], source: Source, settings: ContextsConfig
) -> tuple[list[Feature], LogitEffects]:
    """Contexts, histogram and logit effects of each of `chosen`, in that order."""
    from scipy.sparse import csr_array, hstack

    skip, parts = source.place.skip_first, []
    for _, part in read([_code(item, source) for item in chosen], source, "contexts"):
        placed = np.pad(part, ((0, 0), (0, 0), (skip, 0)))  # without rows: inactive
        parts.append(csr_array(placed.reshape(len(chosen), -1)))
    codes = hstack(parts, "csr")  # (chosen, tokens); a neuron's may be negative
    decoders = directions(chosen, source.columns[-1][1])
    effects = LogitEffects([[]] * len(chosen), [[]] * len(chosen), (), ())
    if source.lm is not None:
        effects = logit_effects(decoders, source.lm, source.place.sites, source.columns)
    features = []
    for row, item in enumerate(chosen):
        here = slice(*codes.indptr[row : row + 2])
        places, values, decoder = codes.indices[here], codes.data[here], decoders[row]
        top, spread = _picked(places, values, source.text, settings)
        active = values[values > 0]
        largest = float(active.max(initial=0))
        features.append(
            Feature(
                chosen=item,
                effective=float(simpson_neurons(decoder[None])[0]),
                density=len(active) / (len(source.text) * (source.text.shape[1] - skip)),
                largest=largest,
                histogram=np.histogram(active, BINS, (0, largest or 1))[0],
                top=top,
                spread=spread,
                shares=_shares(decoder, source.columns),
                promoted=effects.promoted[row],
                demoted=effects.demoted[row],
                neuron=item.nearest(),
            )
        )
    return features, effects


def _code(chosen: Chosen, source: Source) -> Code:
    entry = chosen.entry
    if entry is None:
        return Code(np.asarray, source.kept.shape[-1], chosen.index)
    return Code(entry.trained.dictionary.encode, entry.size, chosen.index)


def _shares(decoder: Floats, columns: Sequence[tuple[int, int]]) -> list[float]:
    squares = decoder.astype(np.float64) ** 2
    return [float(squares[a:b].sum() / max(squares.sum(), 1e-30)) for a, b in columns]


def _picked(
    places: NDArray[np.int32], values: Floats, text: NDArray[np.int32], settings: ContextsConfig
) -> tuple[list[Context], list[Context]]:
    """The highest and the evenly spread contexts of one feature.

    A context whose text, up to the token in question, is already shown is left out: documentation
    repeats itself.

    Args:
        places: of the tokens on which it is not zero, rising, (n,).
        values: there, (n,).
        text: (contexts, n_ctx).
        settings: how many, and how wide.
    """
    seen: set[bytes] = set()

    def fresh(candidates: NDArray[np.int64], most: int) -> list[Context]:
        found: list[Context] = []
        for place in places[candidates].tolist():
            if len(found) == most:
                break
            context = _around(place, places, values, text, settings.width)
            shown = context.tokens[: context.peak + 1].tobytes()
            found += [context] * (shown not in seen)
            seen.add(shown)
        return found

    order = np.argsort(-values, kind="stable")[: np.count_nonzero(values > 0)]
    _, first = np.unique(places[order] // text.shape[1], return_index=True)
    top = fresh(order[np.sort(first)], settings.top)
    spread = []
    for i in range(settings.spread):
        middle, end = (int((i + at) / settings.spread * len(order)) for at in (0.5, 1))
        spread += fresh(order[middle:end], 1)
    return top, spread


def _around(
    place: int, places: NDArray[np.int32], values: Floats, text: NDArray[np.int32], width: int
) -> Context:
    """The text around a place, as far as the language model saw it at once."""
    n_ctx = text.shape[1]
    start = place // n_ctx * n_ctx
    first, stop = max(start, place - width), min(start + n_ctx, place + width + 1)
    shown = np.zeros(stop - first, np.float32)
    here = slice(*np.searchsorted(places, (first, stop)))
    shown[places[here] - first] = values[here]
    return Context(text.ravel()[first:stop], shown, place - first)


def directions(chosen: Sequence[Chosen], d_out: int) -> Floats:
    """What a unit of activation adds to a row, (chosen, d_out)."""
    rows = np.zeros((len(chosen), d_out), np.float32)
    for row, item in zip(rows, chosen, strict=True):
        if item.entry is None:
            row[item.index] = 1
        else:
            row[:] = item.entry.decoder[item.index]
    return rows
