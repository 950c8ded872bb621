"""How much of the language model's loss a reconstruction preserves when it replaces the activation.

Cross-entropy on held-out text: of the model as it is, with the activation of the harvested site
replaced by a reconstruction at every harvested position, and with it replaced by zero or by its
mean; positions that the harvest left out keep their activation throughout.
Recovered = (CE_ablated - CE_reconstructed) / (CE_ablated - CE_original): 1 for a perfect
reconstruction, 0 for one that is no better than the ablation, below 0 for a worse one.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sparse_dict.analysis import harvested
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.harvested import Place, put_back, rows_of
from sparse_dict.analysis.measures.bases import LABELS, Basis, Floats
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import Entry
from sparse_dict.config import LossRecoveredConfig
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import LanguageModel
from sparse_dict.machine import runtime
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files

log = logging.getLogger(__name__)

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
) -> dict[str, float]:
    """Mean cross-entropy in nats of the model, ablated and with each replacement, by label.

    `contexts` (n, length + 1) are token ids, the last of each only a target; `mean` (d_out,) is the
    mean activation. All targets count, those of the positions that `place` leaves out among them.
    What is replaced is read at `place`; of transcoders, which read there in the same forward pass,
    it is what `target` computes.
    """
    replacements = [*replacements]
    ablated = mean.astype(np.float32)
    labels = [ORIGINAL, ZERO, MEAN, *(label for item in replacements for label in item.labels)]
    sums = dict.fromkeys(labels, 0.0)
    n_read = len(place.sites) if target else 0
    sites = [*place.sites, *(target.sites if target else ())]
    step, skip = max(1, BATCH_TOKENS // (contexts.shape[1] - 1)), place.skip_first
    n = contexts[:, 1:].size
    log.info("loss recovered: %s tokens, each in %d variants", f"{n:,}", len(sums))
    with Progress("loss recovered", n * len(sums), "tokens") as progress:
        for start in range(0, len(contexts), step):
            batch = torch.from_numpy(contexts[start : start + step]).to(model.device)
            found, follow = model.split(batch[:, :-1], batch[:, 1:], sites)
            read, written = found[:n_read], found[n_read:]
            y = rows_of(written, skip)
            x = rows_of(read, skip) if target else y
            made = [[y], [np.zeros_like(y)], [np.broadcast_to(ablated, y.shape).copy()]]
            news = chain(*made, *(item.reconstruct(x) for item in replacements))
            for label, new in zip(labels, news, strict=True):
                values = [*read, *put_back(written, new, skip)]
                sums[label] += float(follow(values)) * len(batch)
                progress.advance(batch[:, 1:].numel())
    return {label: value / len(contexts) for label, value in sums.items()}


def recovered(loss: float, original: float, ablated: float) -> float:
    """Share of the ablation's damage that a reconstruction avoids; nan if there is none."""
    return (ablated - loss) / (ablated - original) if ablated > original else float("nan")


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

    Raises:
        UserError: the text's tokens are no longer in `cache_dir`, or too few.
    """
    text = harvested.unread(manifest, cache_dir, n_ctx)
    stream, first = text.stream, text.first
    n = min(n_tokens, len(stream) - 1) // n_ctx
    if not n:
        raise UserError("the text to take it on is shorter than one context")
    unseen = len(stream) - first > n * n_ctx
    start = first if unseen else len(stream) - n * n_ctx - 1
    windows = [stream.window(start + i * n_ctx, n_ctx + 1) for i in range(n)]
    size = f"{n * n_ctx:,} tokens of the "
    trained = harvested.is_ours(manifest)
    if text.validation:
        seen = "neither harvested nor trained on" if trained else "not harvested"
        what = seen if unseen else "the last of those harvested"
        return np.stack(windows), f"{size}validation text, {what}"
    size += "text"
    if trained:
        size += ", which has no validation part: a model trained on this corpus has seen them"
    return np.stack(windows), f"{size}; they were {'not ' if unseen else ''}harvested"


def measure(context: Context) -> tuple[dict[str, float], str]:
    """`losses` of all dictionaries and baselines, and what text they were taken on.

    Raises:
        UserError: the activations, their language model or its text are not there.
    """
    config, settings = context.config, context.settings(LossRecoveredConfig)
    activations, manifest = context.activations, context.activations.manifest
    if manifest is None:
        raise UserError("these activations do not come from a language model")
    study = context.study
    place, lm = harvested.place(manifest, study.site), harvested.model(manifest, config)
    target = harvested.place(manifest, study.target) if study.target else None
    harvested.columns_of(lm.model, place.sites, activations.d_in)
    runtime.allocator()
    contexts, what = held_out(manifest, Path(config.cache_dir), lm.n_ctx, settings.tokens)
    ks = [k for k in settings.ks if k <= activations.d_in]
    replacements = [of_dictionary(entry) for entry in context.study.entries]
    replacements += [of_basis(method, basis, ks) for method, basis in _fitted(context).items()]
    found = losses(lm.model, contexts, place, context.targets.mean, replacements, target)
    if place.skip_first:
        what += f"; positions before {place.skip_first} of each context keep their activation"
    return found, what


def _fitted(context: Context) -> dict[str, Basis]:
    """The baselines if they are on; none where they cannot be fitted, as their section explains."""
    try:
        return context.bases.bases if context.config.is_on("baselines") else {}
    except UserError:
        return {}


def section(context: Context) -> Section:
    """Loss recovered by dictionaries, and by the baselines where these are on."""
    title = "The model's loss with reconstructed activations"
    try:
        losses, what = context.losses
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    found = dict(losses)
    original, zero, mean = (found.pop(label) for label in (ORIGINAL, ZERO, MEAN))
    rows = [
        {
            **entry.identity,
            "l0": float(entry.metrics["l0"]),
            "loss": found.pop(entry.name),
        }
        for entry in context.study.entries
    ]
    others = [
        {"baseline": LABELS[method], "l0": int(k), "loss": loss}
        for label, loss in found.items()
        for method, _, k in [label.partition(":")]
    ]
    dictionaries = pd.DataFrame(rows).drop(columns="axis")
    simpler = pd.DataFrame(others, columns=["baseline", "l0", "loss"])
    for frame in (dictionaries, simpler):
        for name, ablated in (("mean", mean), ("zero", zero)):
            values = [recovered(loss, original, ablated) for loss in frame["loss"]]
            frame[f"recovered_{name}"] = np.array(values, dtype=float)
    both = pd.concat([dictionaries, simpler], ignore_index=True)
    files.write_text(context.folder / "loss_recovered.csv", both.to_csv(index=False))

    text = (
        "The activation that the dictionaries were trained on is replaced at every position, and "
        f"the cross-entropy taken on {what}. It is {original:.4f} nats as the model is, "
        f"{mean:.4f} with the mean activation and {zero:.4f} with zero. Recovered is "
        "(CE ablated - CE reconstructed) / (CE ablated - CE original): 1 is perfect, 0 as bad as "
        "the ablation."
    )
    result = Section(title, [text])
    if mean > original:
        shown = both["recovered_mean"].clip(-0.5, 1.5)
        low, high = float(min(0, shown.min())), float(max(1, shown.max())) + 0.02
        result.blocks.append(
            context.draw(
                "loss_recovered",
                curves(
                    dictionaries, simpler, "recovered_mean", "loss recovered, of mean-ablation",
                    "Loss recovered by reconstructions", (low, high),
                ),
                "Loss recovered",
                "Towards the upper left is better: the same loss with fewer active codes.",
            )
        )  # fmt: skip
    columns = ["dictionary", "l0", "loss", "recovered_mean", "recovered_zero"]
    result.blocks.append(Table("Dictionaries", dictionaries[columns], fold=len(dictionaries) > 12))
    if len(simpler):
        result.blocks.append(Table("Baselines", simpler.rename(columns={"l0": "k"}), fold=True))
    return result


ANALYSIS = Analysis("loss_recovered", section)
