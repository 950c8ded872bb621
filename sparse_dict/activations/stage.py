"""Stage 2: the activations of one or more sites of a language model, shuffled, on disk."""

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from dataclasses import fields as fields_of
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_dict import tracking
from sparse_dict.activations import store, toy
from sparse_dict.activations.writer import ShardWriter, check_output, remove_spools
from sparse_dict.config import HarvestStageConfig, HFModel, ToyData
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.machine import distributed, runtime
from sparse_dict.storage import files, lock
from sparse_dict.text import corpus

if TYPE_CHECKING:
    from sparse_dict.activations.harvest import Model
    from sparse_dict.text.tokens import Encoder

log = logging.getLogger(__name__)


def check(config: HarvestStageConfig, _folder: Path | None = None) -> None:
    """Find wrong input within seconds, before anything is written.

    Hydra's folder of the job does not matter: what is made goes to `activations_dir`.

    Raises:
        UserError: there is no finished language model, it has no such layer, the corpus or the
            device is not there, or `activations_dir` was made from other inputs.
    """
    if isinstance(config.data, ToyData):
        if distributed.size() > 1:
            raise UserError("data=toy is written by one process: start it without torchrun")
        check_output(Path(config.activations_dir))
        if (Path(config.activations_dir) / store.MANIFEST).exists():
            _compare(Path(config.activations_dir), {"config": toy.recorded(config)})
        tracking.check(config.tracking)
        return
    n_ctx = _check_lm(config)
    if config.harvest.skip_first >= n_ctx:
        raise UserError(
            f"harvest.skip_first={config.harvest.skip_first} leaves nothing of a context of "
            f"{n_ctx} tokens"
        )
    if config.harvest.n_tokens < n_ctx - config.harvest.skip_first:
        raise UserError(
            f"harvest.n_tokens must hold at least one context of "
            f"{n_ctx - config.harvest.skip_first} tokens, not {config.harvest.n_tokens}"
        )
    target = Path(config.activations_dir)
    check_output(target)
    if (target / store.MANIFEST).exists():
        # The weights of a model that is not ours take long to read: `run` compares them.
        quick = isinstance(config.lm, HFModel)
        _compare(target, {"config": _recorded(config)} if quick else _inputs(config))
    runtime.check_device(config.device)
    corpus.check(config.data)
    tracking.check(config.tracking)


def run(config: HarvestStageConfig) -> None:
    """Harvest, unless the same activations are there already.

    Raises:
        UserError: as `check`; the corpus has changed or holds less than one context, an activation
            cannot be stored, or another process works in `activations_dir`.
    """
    check(config)
    locked = [Path(config.activations_dir)] if distributed.main() else []
    with lock.holding(*locked), distributed.joined():
        _run(config)


def _run(config: HarvestStageConfig) -> None:
    target = Path(config.activations_dir)
    if isinstance(config.data, ToyData):
        if (target / store.MANIFEST).exists():
            _already_there(target)
        else:
            toy.write(config)
        return
    inputs = _inputs(config) | {"corpus": corpus.describe(config.data)}
    if (target / store.MANIFEST).exists():
        _compare(target, inputs)
        _already_there(target)
        return

    from sparse_dict.activations.harvest import harvest, widths
    from sparse_dict.text import tokens

    runtime.allocator()
    settings = config.harvest
    model, tokenizer, n_ctx = _load(config)
    columns = widths(model, settings.places())
    with distributed.main_first():
        tokenized = tokens.prepare(config.data, tokenizer, Path(config.cache_dir))
    stream = tokenized.split(settings.split)
    kept = n_ctx - settings.skip_first  # rows of one context
    n_contexts = min(settings.n_tokens // kept, len(stream) // n_ctx)
    rows = n_contexts * kept
    if not rows:
        raise UserError(
            f"the {settings.split} part of the corpus holds {len(stream)} tokens, less than "
            f"one context ({n_ctx})"
        )
    if rows < settings.n_tokens // kept * kept:
        log.warning(
            "the %s part of the corpus holds %s tokens: %s rows instead of harvest.n_tokens=%s",
            settings.split, f"{len(stream):,}", f"{rows:,}", f"{settings.n_tokens:,}",
        )  # fmt: skip
    writer = ShardWriter(
        target, rows, sum(columns), settings.shard_rows, settings.dtype, config.seed
    )
    name = f"{config.name} activations"
    with tracking.open_run(config, "harvest", name, target, "rows") as run:
        started = time.perf_counter()
        harvest(model, stream, settings, n_ctx, writer, run)
        fields = _places(config, columns)
        fields |= {"config": inputs["config"], "corpus": inputs["corpus"]}
        if not isinstance(config.lm, HFModel):
            fields["lm_dir"] = str(Path(config.lm_dir))
        writer.finish(
            fields,
            {
                "model": inputs["model"],
                "tokenizer": inputs["tokenizer"],
                "corpus": files.fingerprint(inputs["corpus"]),
            },
        )
        rate = rows / (time.perf_counter() - started)
        written = store.Activations.open(target)
        run.summary(
            {
                "rows": rows,
                "rows_per_second": rate,
                "rms": written.rms,
                "mean_norm": float((written.mean**2).sum() ** 0.5),
                "site": "+".join(map(str, settings.places())),
            }
        )
    log.info("%s: %s rows at %.0f rows/s, RMS %.3g", target, f"{rows:,}", rate, written.rms)


def _already_there(target: Path) -> None:
    if distributed.main():
        remove_spools(target)  # a kill may have left it, empty, beside the manifest
    log.info("%s is already there", target)


def _check_lm(config: HarvestStageConfig) -> int:
    """See that the language model is there and has the sites; the length of its contexts."""
    sites = config.harvest.places()
    if isinstance(config.lm, HFModel):
        _hf().check(config.lm, sites)
        return config.lm.n_ctx
    record = lm_folder.read_record(Path(config.lm_dir))
    n_layers, n_ctx = (record["config"]["model"][key] for key in ("n_layers", "n_ctx"))
    for site in sites:
        if site.layer is None:
            raise UserError(f"harvest: {site} is a module's path, which needs lm=hf")
        if site.layer >= n_layers:
            raise UserError(
                f"harvest: {site} does not exist: the model in {config.lm_dir} has layers 0 to "
                f"{n_layers - 1}"
            )
    return int(n_ctx)


def _load(config: HarvestStageConfig) -> "tuple[Model, Encoder, int]":
    """The language model on its device, its tokenizer, and the length of its contexts."""
    device = distributed.device(config.device)
    if isinstance(config.lm, HFModel):
        hf = _hf()
        return hf.load(config.lm, device), hf.load_tokenizer(config.lm), config.lm.n_ctx
    lm = lm_folder.load(Path(config.lm_dir), device)
    return lm.model, lm.tokenizer, lm.config.n_ctx


def _hf() -> ModuleType:
    try:
        from sparse_dict.activations import hf
    except ImportError as error:
        raise UserError(
            f"lm=hf needs transformers: pip install 'sparse-dict[hf]' ({error.name} is missing)"
        ) from None
    return hf


def _places(config: HarvestStageConfig, widths: Sequence[int]) -> dict[str, Any]:
    """The manifest's word on what a row holds: `layer` and `site`, or the columns of `sites`."""
    sites = config.harvest.places()
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


def _inputs(config: HarvestStageConfig) -> dict[str, Any]:
    """What decides the rows: the config's part, and the language model's fingerprints."""
    if isinstance(config.lm, HFModel):
        hf = _hf()
        model, tokenizer = hf.fingerprint(config.lm), hf.load_tokenizer(config.lm).fingerprint
    else:
        prints = lm_folder.read_record(Path(config.lm_dir))["fingerprints"]
        model, tokenizer = prints["model"], prints["tokenizer"]
    return {"config": _recorded(config), "model": model, "tokenizer": tokenizer}


def _recorded(config: HarvestStageConfig) -> dict[str, Any]:
    """The config's part in what decides the rows, as the manifest keeps it.

    A key at its default is left out: such keys are younger than some harvests.
    """
    values = asdict(config)
    defaults = {field.name: field.default for field in fields_of(config.harvest)}
    harvest = {k: v for k, v in values["harvest"].items() if v != defaults[k]}
    if all(site.layer is None for site in config.harvest.places()) or config.harvest.sites:
        del harvest["layer"]  # says nothing
    if config.harvest.sites:
        del harvest["site"]
    recorded = {"data": values["data"], "harvest": harvest, "seed": config.seed}
    return recorded | ({"lm": values["lm"]} if isinstance(config.lm, HFModel) else {})


def _compare(target: Path, wanted: dict[str, Any]) -> None:
    manifest = store.Activations.open(target).manifest
    assert manifest is not None
    there = manifest["fingerprints"] | manifest
    difference = lm_folder.first_difference({key: there.get(key) for key in wanted}, wanted)
    if difference:
        raise UserError(
            f"{target} was made from other inputs: {difference.removeprefix('config.')}; choose "
            "another name= or activations_dir=, or delete the folder"
        )
