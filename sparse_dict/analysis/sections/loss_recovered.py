"""Loss recovered by dictionaries, and by simpler bases (`measured/reconstruction_loss.py`)."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from sparse_dict.analysis.claim import Claim, Found, Lies, lacking
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measured.reconstruction_loss import (
    MEAN,
    ORIGINAL,
    ZERO,
    Label,
    Losses,
    on_held_out,
    recovered,
)
from sparse_dict.analysis.measures.bases import LABELS, SIMPLE, Floats, around, compared
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.sections.baselines import BASES, fitted, judged, standing
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import LossRecoveredConfig

KEY = "loss_recovered"


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The loss with each reconstruction; by simpler bases where these could be fitted."""
    with_bases = context.config.is_on("baselines") and "baselines" not in context.missing
    bases = context.once(fitted).bases if with_bases else {}
    level, entries = judged(context.tables), context.study.entries
    settings, d = context.settings(LossRecoveredConfig), context.activations.d_in
    wanted = {*settings.ks, *around(l0 for of in level for l0 in of.values())}
    ks = sorted(k for k in wanted if k <= d)

    def every(x: Floats) -> Iterator[tuple[Label, Floats]]:
        for entry in entries:
            yield entry.name, entry.trained.dictionary.reconstruct(x)
        for method, basis in bases.items():
            yield from zip(((method, k) for k in ks), basis.sparse(x, ks), strict=True)

    take, what = on_held_out(context, settings.tokens)
    losses = take(every)
    original, zero, mean = (losses[label] for label in (ORIGINAL, ZERO, MEAN))
    harm = {"mean": mean, "zero": zero}
    dictionaries = pd.DataFrame(
        {**e.identity, "l0": float(e.metrics["l0"]), **_numbers(losses[e.name], original, harm)}
        for e in entries
    )
    simpler = pd.DataFrame(
        {"baseline": LABELS[method], "l0": k, **_numbers(losses[method, k], original, harm)}
        for method in bases
        for k in ks
    )
    column = dictionaries[["dictionary", "recovered_mean"]]
    model = {"text": what, "contexts": len(original), "original": original.mean()}
    model |= {f"{name}_ablated": ablated.mean() for name, ablated in harm.items()}
    tables = {
        "dictionaries": column.rename(columns={"recovered_mean": KEY}),
        KEY: pd.concat([dictionaries, simpler], ignore_index=True),
        f"{KEY}_model": pd.DataFrame([model]),
    }
    known = {
        method: (ks, np.stack([losses[method, k] for k in ks], axis=1) - original[:, None])
        for method in SIMPLE
        if method in bases
    }
    if known and mean.mean() > original.mean():
        seeds = [[(losses[name] - original, l0) for name, l0 in of.items()] for of in level]
        best = compared(seeds, known, mean - original, "contexts")
        tables[f"{KEY}_best"] = pd.DataFrame([best])
    return tables


def _numbers(loss: Losses, original: Losses, ablations: Mapping[str, Losses]) -> dict[str, float]:
    """The mean loss, and what is recovered of each ablation, with its interval."""
    found = {"loss": float(loss.mean())}
    for name, ablated in ablations.items():
        found |= recovered(loss, original, ablated).columns(f"recovered_{name}")
    return found


def show(context: Context) -> Iterator[Block]:
    """Loss recovered by dictionaries, and by the baselines where these are on."""
    both, model = context.tables.others[KEY], context.tables.others[f"{KEY}_model"].iloc[0]
    yield (
        f"On {model['text']}, the cross-entropy is {model['original']:.4f} nats as the model is, "
        f"{model['mean_ablated']:.4f} with the mean activation and {model['zero_ablated']:.4f} "
        "with zero."
    )
    ours = both[both["dictionary"].notna()].rename(columns={"dict_size": "size"})
    simpler = both.drop(ours.index).dropna(axis="columns", how="all")
    if model["mean_ablated"] > model["original"]:
        shown = both["recovered_mean"].clip(-0.5, 1.5)
        limits = min(0.0, shown.min()), max(1.0, shown.max()) + 0.02
        figure = curves(
            ours, None if simpler.empty else simpler, "recovered_mean",
            "loss recovered, of mean-ablation", limits,
        )  # fmt: skip
        yield context.figure(KEY, figure, f"Over {model['contexts']:,} contexts.")
    ends = ["recovered_mean", "recovered_mean_low", "recovered_mean_high"]
    table = ours[["dictionary", "l0", "loss", *ends, "recovered_zero"]]
    yield Table("Dictionaries", table, fold=len(table) > 12)
    if not simpler.empty:
        yield Table("Baselines", simpler.rename(columns={"l0": "k"}), fold=True)


def _recover(study: Tables) -> Found:
    model = study.others[f"{KEY}_model"].iloc[0]
    if model["mean_ablated"] <= model["original"]:
        return Found("mean-ablation does the model no harm, so there is nothing to recover")
    if not (known := standing(study, KEY)):
        return lacking(BASES)
    best, less = known
    here = f"{1 - best['ours']:.1%} recovered, {1 - best['theirs']:.1%} by {best['basis']}"
    return Found(here, Lies(0)(less), less)


CLAIMS = (Claim("recover_more", judge=_recover, needs=(), living=False),)
ANALYSIS = Analysis(KEY, show, CLAIMS, measure, seconds=(6.5, 0.4))
