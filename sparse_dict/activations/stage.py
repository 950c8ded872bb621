"""Stage 2: the activations of one or more sites of a language model, shuffled, on disk."""

import logging
import time
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict import tracking
from sparse_dict.activations import store, toy
from sparse_dict.activations.writer import ShardWriter, Source, remove_spools
from sparse_dict.annotations import LanguageModel
from sparse_dict.config import HarvestStageConfig, HFModel, ToyData, identity
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.machine import distributed, runtime
from sparse_dict.storage import files
from sparse_dict.storage.output import Output
from sparse_dict.text import corpus

log = logging.getLogger(__name__)

TOY_KEYS = {"n_tokens", "shard_rows", "dtype"}  # the keys of `harvest` that decide a toy's rows


def _made_from(target: Path) -> dict[str, Any] | None:
    """What the manifest says; None without one: what is begun says nothing, and is begun anew."""
    if not (target / store.MANIFEST).exists():
        return None
    manifest = store.Activations.open(target).manifest or {}
    return {**manifest.get("fingerprints", {}), **manifest}


OUTPUT = Output("harvest", "activations_dir", store.MANIFEST, _made_from)


def check(config: HarvestStageConfig, _folder: Path | None = None) -> None:
    """Raise `UserError` for wrong input within seconds, before anything is written."""
    config, of_text = _resolved(config), not isinstance(config.data, ToyData)
    if of_text:
        module, model = _lm(config)
        n_ctx, settings = module.check(model, config.harvest.places()), config.harvest
        if not 0 < n_ctx - settings.skip_first <= settings.n_tokens:
            raise UserError(f"harvest.n_tokens and skip_first leave no context of {n_ctx} tokens")
    elif distributed.size() > 1:
        raise UserError("data=toy is written by one process: start it without torchrun")
    # The weights of a model that is not ours take long to read: `run` compares them.
    quick = not of_text or isinstance(config.lm, HFModel)
    wanted = {"config": _deciding(config)} | ({} if quick else module.prints(model))
    OUTPUT.is_finished(Path(config.activations_dir), wanted, config)
    if of_text:
        runtime.check_device(config.device)
        corpus.check(config.data)
    tracking.check(config.tracking)


def run(config: HarvestStageConfig) -> None:
    """Harvest, unless the same activations are there already."""
    check(config)
    with distributed.working_in(Path(config.activations_dir)):
        _run(config)


def _run(config: HarvestStageConfig) -> None:
    config = _resolved(config)
    target, settings = Path(config.activations_dir), config.harvest
    of_text = not isinstance(config.data, ToyData)
    inputs: dict[str, Any] = {}
    if of_text:
        module, model = _lm(config)
        described = corpus.describe(config.data, Path(config.cache_dir))
        inputs = module.prints(model) | {"corpus": described}
    if OUTPUT.is_finished(target, {"config": _deciding(config), **inputs}, config):
        if distributed.main():
            OUTPUT.begin(target)
            remove_spools(target)  # a kill may have left it, empty, beside the manifest
        log.info("%s is already there", target)
        return
    source = _text(config, inputs) if of_text else toy.source(config)
    if distributed.main():
        OUTPUT.begin(target)
    writer = ShardWriter(
        target, source.rows, source.d_in, settings.shard_rows, settings.dtype, config.seed
    )
    name = f"{config.name} activations"
    prints: dict[str, Any] = {k: inputs[k] for k in ("model", "tokenizer") if k in inputs}
    with tracking.open_run(config, "harvest", name, target, "rows", prints) as run:
        if of_text:
            digest = inputs["model"] if isinstance(config.lm, HFModel) else None
            run.used("language-model", module.source(model), digest)
        started = time.perf_counter()
        numbers = source.fill(writer, run)
        writer.finish(source.fields | {"config": _deciding(config)}, source.fingerprints())
        rate = source.rows / (time.perf_counter() - started)
        written = store.Activations.open(target)
        numbers |= {"mean_norm": float((written.mean**2).sum() ** 0.5), "rms": written.rms}
        run.summary({"rows": source.rows, "rows_per_second": rate, **numbers})
        run.made("activations", target / store.MANIFEST)
    log.info("%s: %s rows at %.0f rows/s, RMS %.3g", target, f"{source.rows:,}", rate, written.rms)


def _text(config: HarvestStageConfig, inputs: dict[str, Any]) -> Source:
    from sparse_dict.activations import pre_activations
    from sparse_dict.activations.harvest import harvest, widths
    from sparse_dict.text import tokens

    runtime.allocator()
    settings, (module, named) = config.harvest, _lm(config)
    lm = module.opened(named, distributed.device(config.device))
    model, n_ctx = lm.model, lm.n_ctx
    columns = widths(model, settings.places())
    with distributed.main_first():
        tokenized = tokens.prepare(config.data, lm.tokenizer, Path(config.cache_dir))
    corpus.refuse_change(inputs["corpus"], tokenized.manifest["corpus"])
    stream = tokenized.split(settings.split)
    kept = n_ctx - settings.skip_first  # rows of one context
    n_contexts = min(settings.n_tokens // kept, len(stream) // n_ctx)
    rows = n_contexts * kept
    if not rows:
        raise UserError(f"{len(stream)} {settings.split} tokens are less than a context of {n_ctx}")
    if rows < settings.n_tokens // kept * kept:
        log.warning(
            "the %s part of the corpus holds %s tokens: %s rows instead of harvest.n_tokens=%s",
            settings.split, f"{len(stream):,}", f"{rows:,}", f"{settings.n_tokens:,}",
        )  # fmt: skip

    measured = None
    if distributed.main():  # which writes the manifest
        _try(model, stream.window(0, n_ctx))
        measured = pre_activations.measure(
            model, settings.places(), stream, n_ctx, n_contexts, settings.batch_size,
            settings.skip_first,
        )  # fmt: skip

    def fill(writer: ShardWriter, run: tracking.Run) -> dict[str, Any]:
        harvest(model, stream, settings, n_ctx, writer, run)
        spreads = {
            f"{store.PRE_ACTIVATIONS}/{of_layer['layer']}/{key}": of_layer[key]
            for of_layer in measured or ()
            for key in ("std", "linear")
        }
        return {"site": "+".join(map(str, settings.places()))} | spreads

    fields = _columns(settings.places(), columns) | module.noted(named)
    fields["corpus"] = inputs["corpus"]
    if measured:
        log.info(
            "pre-activations, std and linear share of the hidden activation: %s",
            ", ".join(f"layer {m['layer']} {m['std']:.2f} {m['linear']:.0%}" for m in measured),
        )
        fields[store.PRE_ACTIVATIONS] = measured
    prints = inputs | {"corpus": files.fingerprint(inputs["corpus"])}
    return Source(rows, sum(columns), fields, fill, lambda: prints)


def _try(model: LanguageModel, context: NDArray[np.int64]) -> None:
    """See that the model computes a loss on the first `context` (n_ctx,) of the text."""
    import torch

    from sparse_dict.lm.interface import finite

    tokens = torch.from_numpy(context)[None].to(model.device)
    with torch.inference_mode():
        _, follow = model.split(tokens[:, :-1], tokens[:, 1:], [])
        loss = finite(follow([]), model).mean()
    log.info("the language model's loss on the first context: %.2f nats", loss)


def _resolved(config: HarvestStageConfig) -> HarvestStageConfig:
    if isinstance(config.data, ToyData) or not isinstance(config.lm, HFModel):
        return config
    return replace(config, lm=lm_folder.hf().with_start(config.lm))


def _lm(config: HarvestStageConfig) -> tuple[ModuleType, Any]:
    if isinstance(config.lm, HFModel):
        return lm_folder.hf(), config.lm
    return lm_folder, Path(config.lm_dir)


def _columns(sites: list[Site], widths: list[int]) -> dict[str, Any]:
    if len(sites) == 1:
        layer = sites[0].layer
        return ({} if layer is None else {"layer": layer}) | {"site": sites[0].name}
    stops = np.cumsum(widths).tolist()
    return {
        "sites": [
            {"site": str(site), "columns": [stop - width, stop]}
            for site, width, stop in zip(sites, widths, stops, strict=True)
        ]
    }


def _deciding(config: HarvestStageConfig) -> dict[str, Any]:
    """The part of the config that decides the rows, as the manifest keeps it.

    A key of `harvest` that has no effect beside the others, or is at its default, is left out:
    fingerprints stay those of harvests older than that key.
    """
    deciding, settings = identity.record(config), config.harvest
    idle: set[str] = set()
    if isinstance(config.data, ToyData):
        idle = deciding["harvest"].keys() - TOY_KEYS
    elif settings.sites:
        idle = {"layer", "site"}
    elif settings.places()[0].layer is None:
        idle = {"layer"}
    idle |= {f.name for f in fields_of(settings) if getattr(settings, f.name) == f.default}
    deciding["harvest"] = {k: v for k, v in deciding["harvest"].items() if k not in idle}
    if not deciding.get("lm", {}).get("bos", True):
        del deciding["lm"]["bos"]
    return deciding
