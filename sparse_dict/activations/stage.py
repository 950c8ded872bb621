"""Stage 2: the activations of one site of the language model, shuffled, on disk."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_dict import files, runtime, tracking
from sparse_dict.activations import store
from sparse_dict.config import HarvestStageConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.text import corpus

log = logging.getLogger(__name__)


def check(config: HarvestStageConfig) -> None:
    """Find wrong input within seconds, before anything is written.

    Raises:
        UserError: there is no finished language model, it has no such layer, the corpus or the
            device is not there, or `activations_dir` was made from other inputs.
    """
    record = lm_folder.read_record(Path(config.lm_dir))
    n_layers, n_ctx = (record["config"]["model"][key] for key in ("n_layers", "n_ctx"))
    if config.harvest.layer >= n_layers:
        raise UserError(
            f"harvest.layer={config.harvest.layer} does not exist: the model in {config.lm_dir} "
            f"has layers 0 to {n_layers - 1}"
        )
    if config.harvest.n_tokens < n_ctx:
        raise UserError(
            f"harvest.n_tokens must hold at least one context of {n_ctx} tokens, "
            f"not {config.harvest.n_tokens}"
        )
    target = Path(config.activations_dir)
    store.check_output(target)
    if (target / store.MANIFEST).exists():
        wanted = _inputs(config, record)
        _compare(target, {key: wanted[key] for key in ("config", "model", "tokenizer")})
    runtime.check_device(config.device)
    corpus.check(config.data)
    tracking.check(config.tracking)


def run(config: HarvestStageConfig) -> None:
    """Harvest, unless the same activations are there already.

    Raises:
        UserError: as `check`; the corpus has changed or holds less than one context, or an
            activation cannot be stored.
    """
    check(config)
    lm_dir, target = Path(config.lm_dir), Path(config.activations_dir)
    inputs = _inputs(config, lm_folder.read_record(lm_dir))
    inputs["corpus"] = corpus.describe(config.data)
    if (target / store.MANIFEST).exists():
        _compare(target, inputs)
        log.info("%s is already there", target)
        return

    from sparse_dict.activations.harvest import harvest
    from sparse_dict.text import tokens

    runtime.allocator()
    lm = lm_folder.load(lm_dir, runtime.device(config.device))
    n_ctx = lm.config.n_ctx
    stream = tokens.prepare(config.data, lm.tokenizer, Path(config.cache_dir)).split(
        config.harvest.split
    )
    rows = min(config.harvest.n_tokens, len(stream)) // n_ctx * n_ctx
    if not rows:
        raise UserError(
            f"the {config.harvest.split} part of the corpus holds {len(stream)} tokens, less than "
            f"one context ({n_ctx})"
        )
    if len(stream) < config.harvest.n_tokens:
        log.warning(
            "the %s part of the corpus holds %s tokens: %s rows instead of harvest.n_tokens=%s",
            config.harvest.split, f"{len(stream):,}", f"{rows:,}", f"{config.harvest.n_tokens:,}",
        )  # fmt: skip
    writer = store.ShardWriter(
        target, rows, lm.config.d_mlp, config.harvest.shard_rows, config.harvest.dtype, config.seed
    )
    with tracking.open_run(
        config.tracking,
        study_dir=config.study_dir,
        group=config.name,
        job_type="harvest",
        name=f"{config.name} activations",
        config=asdict(config),
        folder=target,
        step_metric="rows",
    ) as run:
        rate = harvest(lm.model, stream, config.harvest, n_ctx, writer, run)
        writer.finish(
            {
                "layer": config.harvest.layer,
                "site": config.harvest.site,
                "config": inputs["config"],
                "corpus": inputs["corpus"],
                "lm_dir": str(lm_dir),
            },
            {
                "model": inputs["model"],
                "tokenizer": inputs["tokenizer"],
                "corpus": files.fingerprint(inputs["corpus"]),
            },
        )
        written = store.Activations.open(target)
        run.summary(
            {
                "rows": rows,
                "rows_per_second": rate,
                "rms": written.rms,
                "mean_norm": float((written.mean**2).sum() ** 0.5),
                "layer": config.harvest.layer,
                "site": config.harvest.site,
            }
        )
    log.info("%s: %s rows at %.0f rows/s, RMS %.3g", target, f"{rows:,}", rate, written.rms)


def _inputs(config: HarvestStageConfig, record: dict[str, Any]) -> dict[str, Any]:
    """What decides the rows: the config's part, and the language model's fingerprints."""
    values = asdict(config)
    return {
        "config": {key: values[key] for key in ("data", "harvest", "seed")},
        "model": record["fingerprints"]["model"],
        "tokenizer": record["fingerprints"]["tokenizer"],
    }


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
