"""Top-activating text: where in the harvest's text a feature is active, and what it writes.

The rows of a harvest are shuffled, but their origins say where in the text each belongs: those of
evenly spaced contexts are read from the disk, so the language model need not run again. Their rows
(of at most a GiB) are in memory, as the files hold them, and the codes that are not zero. Of arrays
that no language model made, a row is a text of one token.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.features.chosen import Chosen, choose
from sparse_dict.analysis.source import Floats, Source, open_rows, open_source
from sparse_dict.config import ContextsConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress

if TYPE_CHECKING:
    from scipy.sparse import csr_array

log = logging.getLogger(__name__)

Encode = Callable[[Floats], Floats]  # rows (n, d_in) to codes (n, size)
Tokens = list[tuple[int, float]]  # with their logits for each unit of activation

BINS = 30  # of the histogram of activations, from 0 to the largest
CHUNK_VALUES = 1 << 22  # codes computed at a time
EFFECTS = 10  # tokens listed at each end
ROWS = 64  # directions whose effects on the whole vocabulary are held at a time


@dataclass(frozen=True, eq=False)
class Stretch:
    """A stretch of text around one token, within what the language model saw at once."""

    tokens: NDArray[np.int32]  # (n,)
    values: Floats  # (n,) the feature's activations; 0 where none was harvested
    peak: int  # which of the n tokens it was chosen for


@dataclass(frozen=True, eq=False)
class Feature:
    """What is known of one feature or neuron."""

    chosen: Chosen
    density: float  # share of the tokens read here on which it is active
    largest: float  # activation; 0 if never active
    histogram: NDArray[np.int64]  # (BINS,) active tokens by activation, from 0 to `largest`
    top: list[Stretch]  # the highest, at most one of each context of the language model
    spread: list[Stretch]  # at evenly spaced quantiles of its activations, highest first
    promoted: Tokens
    demoted: Tokens

    @property
    def dead(self) -> bool:
        """Whether it was never active on the evaluation rows; a neuron: on the tokens here."""
        entry = self.chosen.entry
        return not entry.alive[self.chosen.index] if entry else self.largest == 0

    @property
    def tokens(self) -> set[int]:
        """All that are shown of it."""
        shown = {token for c in (*self.top, *self.spread) for token in c.tokens.tolist()}
        return shown | {token for token, _ in (*self.promoted, *self.demoted)}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Features with their contexts, and the neurons nearest to them."""

    features: list[Feature]
    source: Source
    mcs: str  # which variant of MCS
    direct: list[Site]  # sites whose effect on the logits is shown
    indirect: list[str]  # why that of others is not

    @property
    def n_tokens(self) -> int:
        """Those with rows that were read here."""
        contexts, n_ctx = self.source.text.shape
        return contexts * (n_ctx - self.source.place.skip_first)

    @property
    def has_neurons(self) -> bool:
        """Whether neurons are shown beside the features, which is not so for transcoders."""
        return any(feature.chosen.entry is None for feature in self.features)

    @property
    def of_rows(self) -> bool:
        """Whether a context is a row of arrays that no language model made."""
        return not self.source.place.sites

    @property
    def unit(self) -> str:
        """What a column of the activations is called."""
        return "neuron" if self.source.place.of_neurons else "coordinate"


def gather(context: Context, also: Sequence[Chosen] = ()) -> Gallery:
    """Choose features, those of `also` too, and find their contexts."""
    settings, study = context.settings(ContextsConfig), context.study
    chosen = choose(context, settings, also)
    if context.activations.manifest is None:
        source = open_rows(context.activations, study, settings)
    else:
        source = open_source(context.config, study, settings.n_tokens)
    log.info("contexts: %d features on %s %s", len(chosen), f"{source.text.size:,}", source.unit)
    found, direct, indirect = describe(chosen, source, settings)
    return Gallery(found, source, str(context.comparison.shown), direct, indirect)


@dataclass(frozen=True)
class Code:
    """What is read: one column of what makes codes of rows, a dictionary or a basis."""

    encode: Encode
    size: int  # its columns
    index: int


def codes(wanted: Sequence[Code], source: Source, what: str) -> "csr_array":
    """Codes on all the text that has rows, (wanted, contexts * kept), of which few are not zero."""
    from scipy.sparse import csr_array, hstack

    n_contexts, n_ctx = source.text.shape
    together: dict[Encode, list[int]] = {}
    for row, code in enumerate(wanted):
        together.setdefault(code.encode, []).append(row)
    widest = max([1, len(wanted), *(code.size for code in wanted)])
    step = max(CHUNK_VALUES // (widest * n_ctx), 1)
    parts = []
    with Progress(what, source.text.size, source.unit) as progress:
        for start in range(0, n_contexts, step):
            rows = source.rows(slice(start, start + step))
            rows = rows.reshape(-1, rows.shape[-1])
            found = np.empty((len(wanted), len(rows)), np.float32)
            for encode, members in together.items():
                found[members] = encode(rows)[:, [wanted[row].index for row in members]].T
            parts.append(csr_array(found))
            progress.advance(min(step, n_contexts - start) * n_ctx)
    return hstack(parts, "csr")


def describe(
    chosen: Sequence[Chosen], source: Source, settings: ContextsConfig
) -> tuple[list[Feature], list[Site], list[str]]:
    """Contexts, histogram and logit effects of each of `chosen`, in that order.

    And the sites that have a direct path to the logits, and why others have none.
    """
    (_, n_ctx), skip, kept = source.text.shape, source.place.skip_first, source.kept.shape[1]
    found = codes([_code(item, source) for item in chosen], source, "contexts")
    promoted, demoted, direct, indirect = logit_effects(chosen, source)
    features = []
    for row, item in enumerate(chosen):
        here = slice(*found.indptr[row : row + 2])
        context, at = np.divmod(found.indices[here], kept)
        places, values = context * n_ctx + at + skip, found.data[here]  # a neuron's may be negative
        top, spread = _picked(places, values, source.text, settings)
        active = values[values > 0]
        largest = float(active.max(initial=0))
        counts = np.histogram(active, BINS, (0, largest or 1))[0]
        shown = counts, top, spread, promoted[row], demoted[row]
        features.append(Feature(item, len(active) / found.shape[1], largest, *shown))
    return features, direct, indirect


def _code(chosen: Chosen, source: Source) -> Code:
    entry = chosen.entry
    if entry is None:
        return Code(np.asarray, source.kept.shape[-1], chosen.index)
    return Code(entry.trained.dictionary.encode, entry.size, chosen.index)


def _picked(
    places: NDArray[np.int32], values: Floats, text: NDArray[np.int32], settings: ContextsConfig
) -> tuple[list[Stretch], list[Stretch]]:
    """The highest and the evenly spread contexts of one feature.

    A context whose text, up to the token in question, is already shown is left out: documentation
    repeats itself. `places` are of the tokens of `text` (contexts, n_ctx) on which the feature is
    not zero, rising, (n,), and `values` are there.
    """
    seen: set[bytes] = set()

    def fresh(candidates: NDArray[np.int64], most: int) -> list[Stretch]:
        found: list[Stretch] = []
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
) -> Stretch:
    """The text around a place, as far as the language model saw it at once."""
    n_ctx = text.shape[1]
    start = place // n_ctx * n_ctx
    first, stop = max(start, place - width), min(start + n_ctx, place + width + 1)
    shown = np.zeros(stop - first, np.float32)
    here = slice(*np.searchsorted(places, (first, stop)))
    shown[places[here] - first] = values[here]
    return Stretch(text.ravel()[first:stop], shown, place - first)


@torch.no_grad()
def logit_effects(
    chosen: Sequence[Chosen], source: Source
) -> tuple[list[Tokens], list[Tokens], list[Site], list[str]]:
    """The tokens whose logits each of `chosen` raises and lowers most.

    By the direct path from where its decoder row is read, as `LanguageModel.direct` has it, and
    relative to the mean over the vocabulary. And the sites that have such a path, and why others
    have none: without any no tokens are listed.
    """
    lm, sites = source.lm, source.place.sites
    none: list[Tokens] = [[] for _ in chosen]
    if lm is None:
        return none, none, [], []
    d_out = source.columns[-1][1]
    decoders = torch.from_numpy(np.stack([c.decoder(d_out) for c in chosen])).to(lm.model.device)

    def part(rows: Tensor, i: int) -> Tensor:
        return lm.model.direct(sites[i], rows[:, slice(*source.columns[i])])

    direct, missing = [], []
    for i in range(len(sites)):
        try:
            part(decoders[:1], i)
            direct.append(i)
        except UserError as error:
            missing.append(str(error))
    ends: tuple[list[Tokens], list[Tokens]] = ([], [])
    for rows in decoders.split(ROWS) if direct else ():
        # Some models have more rows in the unembedding than tokens.
        logits = torch.stack([part(rows, i)[:, : lm.tokenizer.n_vocab] for i in direct]).sum(0)
        logits -= logits.mean(1, keepdim=True)
        for end, largest in zip(ends, (True, False), strict=True):
            values, tokens = logits.topk(min(EFFECTS, logits.shape[1]), largest=largest)
            pairs = zip(tokens.tolist(), values.tolist(), strict=True)
            end += [[*zip(ids, effects, strict=True)] for ids, effects in pairs]
    raised, lowered = ends if direct else (none, none)
    return raised, lowered, [sites[i] for i in direct], missing
