"""How much of the language model's loss a reconstruction preserves when it replaces the activation.

Recovered = (CE_ablated - CE_reconstructed) / (CE_ablated - CE_original), cross-entropies on unseen
text, means over contexts: 1 for a perfect reconstruction, 0 for one no better than the ablation.
"""

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.analysis import harvested
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.harvested import Place
from sparse_dict.analysis.measures.bases import Basis, Floats
from sparse_dict.analysis.measures.intervals import Estimate, ratio
from sparse_dict.analysis.source import columns_of, put_back, rows_of
from sparse_dict.analysis.study import Entry
from sparse_dict.config import LossRecoveredConfig
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import Follow, LanguageModel, finite, threads_to_share
from sparse_dict.machine import runtime
from sparse_dict.machine.background import mapped
from sparse_dict.machine.progress import Progress

log = logging.getLogger(__name__)

Losses = NDArray[np.float64]  # a value for each context

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Replacement:
    """What takes the place of an activation, in one or more variants that share some work."""

    labels: tuple[str, ...]
    reconstruct: Callable[[Floats], Iterable[Floats]]  # (rows, d_in) to one (rows, d_out) a label


ORIGINAL, ZERO, MEAN = "original", "zero", "mean"


@torch.inference_mode()
def losses(
    model: LanguageModel,
    contexts: NDArray[np.int64],
    place: Place,
    mean: NDArray[np.float64],
    replacements: Iterable[Replacement],
    target: Place | None = None,
) -> dict[str, Losses]:
    """Cross-entropy in nats of the model, ablated and with each replacement: (n,) for each label.

    `contexts` (n, length + 1) are token ids, the last of each only a target; `mean` (d_out,) is the
    mean activation. All targets count, those of the positions that `place` leaves out among them.
    What is replaced is read at `place`; of transcoders, which read there in the same forward pass,
    it is what `target` computes.
    """
    replacements = [*replacements]
    labels = [ORIGINAL, ZERO, MEAN, *(label for item in replacements for label in item.labels)]
    found_losses: dict[str, list[Tensor]] = {label: [] for label in labels}
    n_read = len(place.sites) if target else 0
    sites = [*place.sites, *(target.sites if target else ())]
    step, skip = max(1, BATCH_TOKENS // (contexts.shape[1] - 1)), place.skip_first
    n = contexts[:, 1:].size
    log.info("loss recovered: %s tokens, each in %d variants", f"{n:,}", len(labels))
    with (
        threads_to_share(model) as threads,
        Progress("loss recovered", n * len(labels), "tokens") as progress,
    ):
        for start in range(0, len(contexts), step):
            batch = torch.from_numpy(contexts[start : start + step]).to(model.device)
            found, follow = model.split(batch[:, :-1], batch[:, 1:], sites)
            read, written = found[:n_read], found[n_read:]
            y = rows_of(written, skip)
            x = rows_of(read, skip) if target else y
            ablated = np.broadcast_to(mean.astype(np.float32), y.shape).copy()
            # One after another: the reconstructions of many dictionaries are larger than all else.
            every = chain.from_iterable(item.reconstruct(x) for item in replacements)
            news = chain([y, np.zeros_like(y), ablated], every)

            loss = partial(_loss, model, follow, read, written, skip)
            for label, values in zip(labels, mapped(loss, news, threads), strict=True):
                found_losses[label].append(values)
                progress.advance(batch[:, 1:].numel())
    return {label: torch.cat(parts).numpy() for label, parts in found_losses.items()}


@torch.inference_mode()  # of each thread
def _loss(
    model: LanguageModel, follow: Follow, read: Sequence[Tensor], written: Sequence[Tensor],
    skip: int, new: Floats,
) -> Tensor:  # fmt: skip
    changed = [*read, *put_back(written, new, skip)]
    return finite(follow(changed), model).double().mean(1).cpu()


def recovered(loss: Losses, original: Losses, ablated: Losses) -> Estimate:
    """Share of the ablation's damage that a reconstruction avoids; nan if there is none.

    All are of the same contexts, (n,), which are resampled for its interval.
    """
    if ablated.mean() <= original.mean():
        return Estimate(math.nan, math.nan, math.nan, "-")
    return ratio(ablated - loss, ablated - original, "contexts")


def of_dictionary(entry: Entry) -> Replacement:
    """The reconstruction by a dictionary, under its name."""
    dictionary = entry.trained.dictionary
    return Replacement((entry.name,), lambda x: [dictionary.reconstruct(x)])


def of_basis(method: str, basis: Basis, ks: list[int]) -> Replacement:
    """The reconstructions by a baseline with k codes each, under `method`:k."""
    return Replacement(tuple(f"{method}:{k}" for k in ks), lambda x: basis.sparse(x, ks))


def held_out(
    manifest: dict[str, Any], cache_dir: Path, n_ctx: int, n_tokens: int
) -> tuple[NDArray[np.int64], str]:
    """Contexts (n, n_ctx + 1) of the text that the activations were taken on, and what they are.

    They are of its validation part if it has one, behind the harvested tokens if enough lie there,
    else the last ones.
    """
    stream, first, validation = harvested.unread(manifest, cache_dir, n_ctx)
    n = min(n_tokens, len(stream) - 1) // n_ctx
    if not n:
        raise UserError("the text to take it on is shorter than one context")
    unseen = len(stream) - first > n * n_ctx
    start = first if unseen else len(stream) - n * n_ctx - 1
    windows = [stream.window(start + i * n_ctx, n_ctx + 1) for i in range(n)]
    size = f"{n * n_ctx:,} tokens of the "
    trained = harvested.is_ours(manifest)
    if validation:
        seen = "neither harvested nor trained on" if trained else "not harvested"
        what = seen if unseen else "the last of those harvested"
        return np.stack(windows), f"{size}validation text, {what}"
    size += "text"
    if trained:
        size += ", which has no validation part: a model trained on this corpus has seen them"
    return np.stack(windows), f"{size}; they were {'not ' if unseen else ''}harvested"


def measure(
    context: Context, bases: Mapping[str, Basis], also: Iterable[int]
) -> tuple[dict[str, Losses], str]:
    """`losses` of all dictionaries and baselines, and what text they were taken on.

    A baseline keeps each of `loss_recovered.ks` codes, and of `also`.
    """
    study, settings = context.study, context.settings(LossRecoveredConfig)
    read, manifest = context.activations, harvested.recorded(context.activations)
    place = harvested.place(manifest, study.site)
    target = harvested.place(manifest, study.target) if study.target else None
    lm = harvested.model(manifest, context.config)
    columns_of(lm.model, place.sites, read.d_in)
    runtime.allocator()
    contexts, what = held_out(manifest, Path(context.config.cache_dir), lm.n_ctx, settings.tokens)
    ks = sorted({k for k in (*settings.ks, *also) if k <= read.d_in})
    replacements = [of_dictionary(entry) for entry in study.entries]
    replacements += [of_basis(method, basis, ks) for method, basis in bases.items()]
    found = losses(lm.model, contexts, place, context.targets.mean, replacements, target)
    if place.skip_first:
        what += f"; positions before {place.skip_first} of each context keep their activation"
    return found, what
