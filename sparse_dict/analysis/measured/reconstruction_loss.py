"""The language model's loss when other rows take the place of an activation.

How much of it a reconstruction preserves: recovered = (CE_ablated - CE_reconstructed) /
(CE_ablated - CE_original), cross-entropies on unseen text, means over contexts: 1 for a perfect
reconstruction, 0 for one no better than the ablation.
"""

import math
from collections.abc import Callable, Iterable, Sequence
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
from sparse_dict.analysis.measures import Index
from sparse_dict.analysis.measures.bases import Floats
from sparse_dict.analysis.measures.intervals import Estimate, ratio
from sparse_dict.analysis.source import columns_of, put_back, rows_of
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import Follow, LanguageModel, finite, threads_to_share
from sparse_dict.machine import runtime
from sparse_dict.machine.background import mapped
from sparse_dict.machine.progress import Progress
from sparse_dict.text.tokens import TokenStore

Losses = NDArray[np.float64]  # a value for each context, or token
Label = str | tuple[str, int]
# Of rows (n, d_in), what may take their place, (n, d_out) each, under its label; made one by one.
Reconstruct = Callable[[Floats], Iterable[tuple[Label, Floats]]]
BATCH_TOKENS = 4096
ORIGINAL, ZERO, MEAN = "original", "zero", "mean"


@dataclass(frozen=True)
class Batch:
    """Some contexts that the model has read as far as the activation."""

    x: Floats  # (rows, d_in), the rows that are read
    y: Floats  # (rows, d_out), those that may be replaced
    # In nats, of each token with other rows (rows, d_out), (contexts, length). Two more arguments:
    # a mask of that shape, for the losses of which tokens alone; and whose rows they are, of the
    # contexts that were read.
    loss: Callable[..., Losses]

    def labelled(self, new: tuple[Label, Floats]) -> tuple[Label, Losses]:
        """The mean loss of each context, with rows that have a label."""
        return new[0], self.loss(new[1]).mean(1)


@torch.inference_mode()
def read(
    model: LanguageModel, contexts: NDArray[np.integer[Any]], place: Place,
    target: Place | None = None,
) -> Batch:  # fmt: skip
    """Contexts (n, length + 1) of token ids, the last of each only a target.

    All targets count, those of the positions that `place` leaves out among them. What is replaced
    is read at `place`; of transcoders, which read there in the same forward pass, it is what
    `target` computes.
    """
    n_read = len(place.sites) if target else 0
    sites, skip = [*place.sites, *(target.sites if target else ())], place.skip_first
    tokens = torch.from_numpy(contexts.astype(np.int64)).to(model.device)
    found, follow = model.split(tokens[:, :-1], tokens[:, 1:], sites)
    before, written = found[:n_read], found[n_read:]
    y = rows_of(written, skip)
    x = rows_of(before, skip) if target else y
    return Batch(x, y, partial(_loss, model, follow, before, written, skip))


@torch.inference_mode()  # of each thread
def _loss(
    model: LanguageModel, follow: Follow, before: Sequence[Tensor], written: Sequence[Tensor],
    skip: int, new: Floats, of: NDArray[np.bool_] | None = None, contexts: Index | None = None,
) -> Losses:  # fmt: skip
    mask, which = (
        None if array is None else torch.from_numpy(array).to(model.device)
        for array in (of, contexts)
    )
    if which is not None:
        before, written = ([value[which] for value in part] for part in (before, written))
    losses = finite(follow([*before, *put_back(written, new, skip)], mask, which), model)
    found: Losses = losses.double().cpu().numpy()
    return found


def parts(n: int, length: int) -> list[slice]:
    """Those of `n` contexts of `length` tokens that go through the model at a time."""
    step = max(1, BATCH_TOKENS // length)
    return [slice(start, start + step) for start in range(0, n, step)]


def losses(
    model: LanguageModel, contexts: NDArray[np.int64], place: Place, mean: NDArray[np.float64],
    reconstruct: Reconstruct, target: Place | None = None,
) -> dict[Label, Losses]:  # fmt: skip
    """Cross-entropy in nats of the model, ablated and with each reconstruction: (n,) by label.

    `mean` (d_out,) is the mean activation; all else is as in `read`.
    """
    found: dict[Label, list[Losses]] = {}
    with (
        threads_to_share(model) as threads,
        Progress("loss recovered", contexts[:, 1:].size, "tokens") as progress,
    ):
        for part in parts(len(contexts), contexts.shape[1] - 1):
            batch = read(model, contexts[part], place, target)
            y = batch.y
            ablated = np.broadcast_to(mean.astype(np.float32), y.shape).copy()
            simple: list[tuple[Label, Floats]] = [
                (ORIGINAL, y), (ZERO, np.zeros_like(y)), (MEAN, ablated),
            ]  # fmt: skip
            # One after another: the reconstructions of many dictionaries are larger than all else.
            news = chain(simple, reconstruct(batch.x))
            for label, values in mapped(batch.labelled, news, threads):
                found.setdefault(label, []).append(values)
            progress.advance(contexts[part, 1:].size)
    return {label: np.concatenate(parts) for label, parts in found.items()}


def recovered(loss: Losses, original: Losses, ablated: Losses) -> Estimate:
    """Share of the ablation's damage that a reconstruction avoids; nan if there is none.

    All are of the same contexts, (n,), which are resampled for its interval.
    """
    if ablated.mean() <= original.mean():
        return Estimate(math.nan, math.nan, math.nan, "-")
    return ratio(ablated - loss, ablated - original, "contexts")


def held_out(
    manifest: dict[str, Any], cache_dir: Path, n_ctx: int, n_tokens: int
) -> tuple[NDArray[np.int64], str]:
    """Contexts (n, n_ctx + 1) of the text that the activations were taken on, and what they are.

    They are of its validation part if it has one, which a model trained on this corpus has not
    seen, behind the harvested tokens if enough lie there, else the last ones.
    """
    folder, _, split = harvested.tokens(manifest, cache_dir)
    validation = TokenStore.open(folder).streams["validation"]
    stream, contexts = harvested.text(manifest, cache_dir, n_ctx)
    first = min(contexts * n_ctx, len(stream))  # that was not harvested
    if split == "train":
        stream, first = validation, 0
    elif split == "all" and len(validation):  # "all" has it last
        stream, first = validation, max(0, first - (len(stream) - len(validation)))
    n = min(n_tokens, len(stream) - 1) // n_ctx
    if n < 1:
        raise UserError("the text to take it on is shorter than one context")
    unseen = len(stream) - first > n * n_ctx
    start = first if unseen else len(stream) - n * n_ctx - 1
    windows = [stream.window(start + i * n_ctx, n_ctx + 1) for i in range(n)]
    size, trained = f"{n * n_ctx:,} tokens of the ", harvested.is_ours(manifest)
    if len(validation):
        seen = "neither harvested nor trained on" if trained else "not harvested"
        what = seen if unseen else "the last of those harvested"
        return np.stack(windows), f"{size}validation text, {what}"
    size += "text"
    if trained:
        size += ", which has no validation part: a model trained on this corpus has seen them"
    return np.stack(windows), f"{size}; they were {'not ' if unseen else ''}harvested"


def on_held_out(
    context: Context, n_tokens: int
) -> tuple[Callable[[Reconstruct], dict[Label, Losses]], str]:
    """`losses` of the model behind a study's activations on unseen text, and what text that is."""
    study, config = context.study, context.config
    manifest = harvested.recorded(context.activations)
    place = harvested.place(manifest, study.site)
    target = harvested.place(manifest, study.target) if study.target else None
    lm = harvested.model(manifest, config)
    columns_of(lm.model, place.sites, context.activations.d_in)
    runtime.allocator()
    contexts, what = held_out(manifest, Path(config.cache_dir), lm.n_ctx, n_tokens)
    if place.skip_first:
        what += f"; positions before {place.skip_first} of each context keep their activation"
    mean = context.targets.mean
    return partial(losses, lm.model, contexts, place, mean, target=target), what
