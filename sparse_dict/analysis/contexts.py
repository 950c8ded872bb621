"""Top-activating text: where in the harvest's text a feature is active, and what it writes.

The language model reads pieces of the harvested text again, because a context needs the activations
of neighbouring tokens, which the shuffled rows on disk do not hold together. Memory does not grow
with the number of tokens, but for the tokens themselves (4 bytes each).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dict import files, runtime
from sparse_dict.activations.store import MANIFEST
from sparse_dict.analysis import sparsity
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.harvested import layer_and_site
from sparse_dict.analysis.study import Entry, Study
from sparse_dict.config import AnalyzeConfig, ContextsConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.lm.folder import LoadedLM
from sparse_dict.lm.model import GPT
from sparse_dict.progress import Progress
from sparse_dict.text.tokens import TokenStore

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

ASKED, TOP, RANDOM, LOW, OUTLIER, DEAD, NEURON = (
    "asked for", "top MCS", "random", "low MCS", "outlier", "dead", "neuron basis",
)  # fmt: skip
NEURONS = "neuron"  # how a neuron is named in `contexts.features`
BINS = 30  # of the histogram of activations, from 0 to the largest
EFFECTS = 10  # tokens listed at each end of the logit effects
CHUNK_VALUES = 1 << 22  # codes computed at a time
SAMPLE = 256  # active tokens of a feature among which the evenly spread ones are sought
SPARE = 4  # candidates kept for each context shown, since repeated text is left out
EFFECT_ROWS = 64  # features whose effects on the whole vocabulary are held at a time


@dataclass(frozen=True, eq=False)
class Chosen:
    """A feature of a dictionary, or a neuron, that is to be shown."""

    entry: Entry | None  # None: a neuron
    index: int
    groups: tuple[str, ...]  # why it was chosen
    mcs: float = float("nan")


@dataclass(frozen=True, eq=False)
class Context:
    """A stretch of text around one token, within what the language model saw at once."""

    tokens: NDArray[np.int32]  # (n,)
    values: Floats  # (n,) the feature's activations
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


@dataclass(frozen=True)
class Untold:
    """Why there is no gallery."""

    reason: str


@dataclass(frozen=True, eq=False)
class Source:
    """The language model that was harvested, and pieces of the text that it read then."""

    lm: LoadedLM
    layer: int
    site: str
    text: NDArray[np.int32]  # (contexts, n_ctx)
    n_harvested: int


def gather(config: AnalyzeConfig, comparison: Comparison) -> Gallery | Untold:
    """Choose features and find their contexts.

    Raises:
        UserError: `contexts.features` names a feature that does not exist.
    """
    settings = config.contexts
    chosen = choose(comparison, settings, config.seed)
    try:
        source = open_source(config, comparison.study)
    except UserError as error:
        log.warning("no contexts: %s", error)
        return Untold(str(error))
    found = describe(chosen, source, settings, config.seed)
    shown = {token for f in found for c in [*f.top, *f.spread] for token in c.tokens.tolist()}
    shown |= {token for f in found for token, _ in [*f.promoted, *f.demoted]}
    return Gallery(
        found,
        {token: printable(source.lm.tokenizer.token_bytes(token)) for token in sorted(shown)},
        source.text.size,
        source.n_harvested,
        source.text.shape[1],
        str(comparison.shown),
    )


def printable(token: bytes) -> str:
    """A token as it is shown: signs for line breaks and tabs, codes for what has no letter."""
    text = token.decode("utf-8", errors="backslashreplace")
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in text)


# --- which features -------------------------------------------------------------------------------


def choose(comparison: Comparison, settings: ContextsConfig, seed: int) -> list[Chosen]:
    """The features that `settings` ask for, each once, then the neurons nearest to them.

    Without `settings.features`: of each size of the main chain those with the highest and the
    lowest MCS and a random sample, all of them alive; outliers in effective neurons; dead ones.

    Raises:
        UserError: a feature that was asked for does not exist.
    """
    entries = comparison.main.entries if comparison.main else comparison.study.entries[:1]
    chosen: list[Chosen] = []
    if settings.features is not None:
        for name in dict.fromkeys(settings.features):
            entry, index = _asked(name, entries, comparison.study)
            value = float(_mcs(comparison, entry)[index]) if entry else float("nan")
            chosen.append(Chosen(entry, index, (ASKED,), value))
    else:
        for entry in entries:
            mcs = _mcs(comparison, entry)
            groups = _groups(entry, mcs, settings.per_group, np.random.default_rng(seed))
            for index in dict.fromkeys(i for members in groups.values() for i in members):
                names = tuple(name for name, members in groups.items() if index in members)
                chosen.append(Chosen(entry, index, names, float(mcs[index])))
    there = {c.index for c in chosen if c.entry is None}
    nearest = {_nearest(c)[0] for c in chosen if c.entry is not None}
    return chosen + [Chosen(None, index, (NEURON,)) for index in sorted(nearest - there)]


def _mcs(comparison: Comparison, entry: Entry) -> NDArray[Any]:
    """MCS of each feature, (size,); nan throughout where there is no larger dictionary."""
    if comparison.partners(entry, comparison.shown.against):
        return comparison.mcs(entry)
    return np.full(entry.size, np.nan)


def _groups(
    entry: Entry, mcs: NDArray[Any], n: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    alive = np.flatnonzero(entry.alive)
    known = alive[np.isfinite(mcs[alive])]
    ranked = known[np.argsort(-mcs[known], kind="stable")]
    effective = sparsity.simpson_neurons(entry.decoder)
    return {
        TOP: ranked[:n].tolist(),
        LOW: ranked[::-1][:n].tolist(),
        RANDOM: rng.permutation(alive)[:n].tolist(),
        OUTLIER: sparsity.outliers(np.where(entry.alive, effective, np.nan))[:n].tolist(),
        DEAD: np.flatnonzero(~entry.alive)[:n].tolist(),
    }


def _asked(name: str, chain: Sequence[Entry], study: Study) -> tuple[Entry | None, int]:
    """The dictionary and index of ``NAME/INDEX``; NAME as `ContextsConfig.features` says."""
    owner, _, number = name.rpartition("/")
    index = int(number)  # the config has seen to it that this is a number
    if owner == NEURONS:
        entry, size = None, study.d_in
    else:
        found = [e for e in chain if str(e.size) == owner]
        found += [e for e in study.entries if e.name == owner]
        if not found:
            known = [str(e.size) for e in chain] + [e.name for e in study.entries]
            raise UserError(
                f"contexts.features: {name!r} names no dictionary; there are {NEURONS}, "
                f"{', '.join(known)}"
            )
        entry, size = found[0], found[0].size
    if index >= size:
        raise UserError(f"contexts.features: {name!r}: indices end at {size - 1}")
    return entry, index


def _nearest(chosen: Chosen) -> tuple[int, float]:
    """The neuron with the largest absolute cosine, and that cosine; decoder rows are unit."""
    assert chosen.entry is not None
    row = chosen.entry.decoder[chosen.index]
    index = int(np.abs(row).argmax())
    return index, float(row[index] / max(np.linalg.norm(row), 1e-30))


# --- the text and the model -----------------------------------------------------------------------


def open_source(config: AnalyzeConfig, study: Study) -> Source:
    """The language model and the text behind a study's activations.

    Each folder is sought where the config says, then where the earlier stages' records say, and
    counts only if its fingerprint is the recorded one.

    Raises:
        UserError: one of them is not there, or cannot be read.
    """
    metrics = study.entries[0].metrics
    wanted = (metrics.get("fingerprints") or {}).get("activations")
    recorded = metrics["config"].get("activations_dir")
    manifest = _manifest([config.activations_dir, recorded], wanted)
    layer, site = layer_and_site(manifest)
    try:
        rows = int(manifest["rows"])
        inputs, harvest = manifest["fingerprints"], manifest["config"]["harvest"]
        fraction = manifest["config"]["data"]["val_fraction"]
        text = {"corpus": manifest["corpus"], "val_fraction": fraction}
        text["tokenizer"] = inputs["tokenizer"]
        split, model = str(harvest["split"]), inputs["model"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the activations' {MANIFEST} lacks {error}") from None
    lm = _lm([config.lm_dir, manifest.get("lm_dir")], model, runtime.device(config.device))
    stream = _tokens(Path(config.cache_dir), text).split(split)
    n_ctx = lm.config.n_ctx
    available = min(rows, len(stream)) // n_ctx
    n = min(max(config.contexts.n_tokens // n_ctx, 1), available)
    if not n:
        raise UserError(f"the text holds {len(stream)} tokens, less than one context ({n_ctx})")
    starts = np.arange(n) * available // n * n_ctx
    windows = np.stack([stream.window(int(start), n_ctx) for start in starts])
    return Source(lm, layer, site, windows.astype(np.int32), rows)


def _manifest(folders: Sequence[str | None], wanted: str | None) -> dict[str, Any]:
    tried = [Path(folder) for folder in dict.fromkeys(folders) if folder]
    for folder in tried:
        if (folder / MANIFEST).exists():
            manifest = files.read_json(folder / MANIFEST)
            if (manifest.get("fingerprints") or {}).get("activations") == wanted:
                return manifest
    raise UserError(
        f"the harvest that the dictionaries were trained on (fingerprint {wanted}) is not in "
        f"{' or '.join(map(str, tried))}, or is a folder of foreign arrays; set activations_dir"
    )


def _lm(folders: Sequence[str | None], wanted: str, device: torch.device) -> LoadedLM:
    tried = [Path(folder) for folder in dict.fromkeys(folders) if folder]
    for folder in tried:
        if (folder / lm_folder.RECORD).exists():
            record = lm_folder.read_record(folder)
            if record["fingerprints"]["model"] == wanted:
                return lm_folder.load(folder, device)
    raise UserError(
        f"the language model that was harvested (fingerprint {wanted}) is not in "
        f"{' or '.join(map(str, tried))}; set lm_dir"
    )


def _tokens(cache_dir: Path, wanted: dict[str, Any]) -> TokenStore:
    for path in sorted(cache_dir.glob("tokens/*/manifest.json")):
        manifest = files.read_json(path)
        if all(manifest.get(key) == value for key, value in wanted.items()):
            return TokenStore.open(path.parent)
    raise UserError(
        f"the tokens that were harvested are not in {cache_dir / 'tokens'}; set cache_dir, or run "
        "harvest.py anew with another activations_dir to have them made again"
    )


# --- contexts -------------------------------------------------------------------------------------


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
) -> list[Feature]:
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

    promoted, demoted = logit_effects(
        directions(chosen, source.lm.config.d_mlp), source.lm.model, source.layer
    )
    features = []
    for row, item in enumerate(chosen):
        top, spread = ([contexts[row, place] for place in part] for part in picked[row])
        decoder = item.entry.decoder[item.index : item.index + 1] if item.entry else None
        features.append(
            Feature(
                chosen=item,
                effective=1.0 if decoder is None else float(sparsity.simpson_neurons(decoder)[0]),
                density=float(active[row]) / (n_contexts * n_ctx),
                largest=float(largest[row]),
                histogram=histograms[row],
                top=top,
                spread=spread,
                promoted=promoted[row],
                demoted=demoted[row],
                neuron=None if item.entry is None else _nearest(item),
            )
        )
    return features


def _codes(
    chosen: Sequence[Chosen], source: Source, progress: Progress
) -> Iterator[tuple[int, Floats]]:
    """Codes of all tokens, whole contexts at a time: the first token's place, and (chosen, n)."""
    owners: dict[str, tuple[Entry | None, list[int]]] = {}
    for row, item in enumerate(chosen):
        owners.setdefault(item.entry.name if item.entry else "", (item.entry, []))[1].append(row)
    n_contexts, n_ctx = source.text.shape
    widest = max([len(chosen), *(e.size for e, _ in owners.values() if e)])
    step = max(CHUNK_VALUES // (widest * n_ctx), 1)
    model = source.lm.model
    for first in range(0, n_contexts, step):
        tokens = torch.from_numpy(source.text[first : first + step].astype(np.int64))
        with torch.inference_mode():
            found = model.activations(
                tokens.to(model.embed.weight.device), source.layer, source.site
            )
        x = found.flatten(0, 1).float().cpu().numpy()  # (n, d_in)
        codes = np.empty((len(chosen), len(x)), np.float32)
        for entry, rows in owners.values():
            all_codes = entry.trained.dictionary.encode(x) if entry else x
            codes[rows] = all_codes[:, [chosen[row].index for row in rows]].T
        yield first * n_ctx, codes
        progress.advance(len(x))


def _around(place: int, n_ctx: int, width: int) -> tuple[int, int]:
    """First and last but one place of the text shown around `place`."""
    start = place // n_ctx * n_ctx
    return max(start, place - width), min(start + n_ctx, place + width + 1)


def _pick(
    row: int, best: _Largest, sample: _Largest, text: NDArray[np.int32], settings: ContextsConfig
) -> tuple[list[int], list[int]]:
    """Places of the highest and of the evenly spread contexts of one feature.

    Text that repeats what is already shown, up to the token in question, is left out: a corpus of
    documentation says many things many times.
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


# --- logit effects --------------------------------------------------------------------------------


def directions(chosen: Sequence[Chosen], d_in: int) -> Floats:
    """What a unit of activation adds to the MLP's hidden activation, (chosen, d_in)."""
    rows = np.zeros((len(chosen), d_in), np.float32)
    for row, item in zip(rows, chosen, strict=True):
        if item.entry is None:
            row[item.index] = 1
        else:
            row[:] = item.entry.decoder[item.index]
    return rows


@torch.inference_mode()
def logit_effects(
    rows: Floats, model: GPT, layer: int
) -> tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]]:
    """Tokens whose logits each of `rows` (n, d_mlp) raises and lowers most, by the direct path.

    That is: down the MLP of `layer`, then the final LayerNorm's centring and gain, then the
    unembedding. The LayerNorm's division by the standard deviation is left out, as is everything
    that later blocks do. Logits are relative to their mean over the vocabulary.
    """
    down = model.get_parameter(f"blocks.{layer}.mlp_out.weight").float().cpu()
    gain, unembed = model.norm.weight.float().cpu(), model.embed.weight.float().cpu()
    k = min(EFFECTS, len(unembed))
    ends: tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]] = ([], [])
    for start in range(0, len(rows), EFFECT_ROWS):
        residual = torch.from_numpy(rows[start : start + EFFECT_ROWS]) @ down.T
        logits = ((residual - residual.mean(1, keepdim=True)) * gain) @ unembed.T
        logits -= logits.mean(1, keepdim=True)
        for end, largest in zip(ends, (True, False), strict=True):
            values, tokens = logits.topk(k, largest=largest)
            for pair in zip(tokens.tolist(), values.tolist(), strict=True):
                end.append(list(zip(*pair, strict=True)))
    return ends
