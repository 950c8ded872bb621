"""Stage 1: corpus, vocabulary and tokens, then the language model and its folder."""

import logging
import shutil
from pathlib import Path
from typing import Any

from sparse_dict import tracking
from sparse_dict.config import TrainLMConfig, identity
from sparse_dict.errors import UserError
from sparse_dict.lm import checkpoint, folder
from sparse_dict.machine import distributed, runtime
from sparse_dict.storage import files, tensor_files
from sparse_dict.storage.output import Output
from sparse_dict.text import corpus

log = logging.getLogger(__name__)


def _made_from(lm_dir: Path) -> dict[str, Any] | None:
    """Config and corpus that `lm_dir` was made of, finished or not; None if it holds neither."""
    if (lm_dir / folder.RECORD).exists():
        record = folder.read_record(lm_dir)
        return {key: record.get(key) for key in ("config", "corpus")}
    return checkpoint.identity(lm_dir / folder.CHECKPOINT)


OUTPUT = Output("train_lm", "lm_dir", folder.RECORD, _made_from)


def check(config: TrainLMConfig, _folder: Path | None = None) -> None:
    """Find wrong input within seconds, before anything is written."""
    OUTPUT.is_finished(Path(config.lm_dir), {"config": identity.record(config)}, config)
    if config.training.batch_size % distributed.size():
        raise UserError(
            f"training.batch_size must be a multiple of the {distributed.size()} processes"
        )
    runtime.check_device(config.device)
    corpus.check(config.data, validated=True)
    tracking.check(config.tracking)


def run(config: TrainLMConfig) -> None:
    """Train the language model, or go on with it, and write its folder."""
    check(config)
    with distributed.working_in(Path(config.lm_dir)):
        _run(config)


def _run(config: TrainLMConfig) -> None:
    lm_dir, cache_dir = Path(config.lm_dir), Path(config.cache_dir)
    described = corpus.describe(config.data, cache_dir)
    made_from = {"config": identity.record(config), "corpus": described}
    if OUTPUT.is_finished(lm_dir, made_from, config):
        log.info("%s is already trained", lm_dir)
        if distributed.main():
            OUTPUT.begin(lm_dir)
            shutil.rmtree(lm_dir / folder.CHECKPOINT.parent, ignore_errors=True)
        return

    import torch

    from sparse_dict.lm import baselines, train
    from sparse_dict.lm.model import GPT
    from sparse_dict.text import tokenizer as tokenizers
    from sparse_dict.text import tokens

    runtime.allocator()
    with distributed.main_first():
        tokenizer = tokenizers.build(config.tokenizer, config.data, cache_dir)
        store = tokens.prepare(config.data, tokenizer, cache_dir)
    corpus.refuse_change(described, store.manifest["corpus"])
    device = distributed.device(config.device)
    n_ctx = config.model.n_ctx
    text, validation = (store.split(name) for name in tokens.SPLITS)
    for name, part in zip(tokens.SPLITS, (text, validation), strict=True):
        if len(part) <= n_ctx:
            raise UserError(f"{len(part)} {name} tokens are too few for a context of {n_ctx}")
    windows = train.validation_windows(validation, n_ctx, config.training.eval_tokens)
    if distributed.main():
        without_model = baselines.losses(text, tokenizer.n_vocab, windows)
    torch.manual_seed(config.seed % 2**64)  # it takes no more bits
    model = GPT(config.model, tokenizer.n_vocab).to(device)
    job = train.Job(
        train=text,
        validation=windows,
        n_ctx=n_ctx,
        optimizer=config.optimizer,
        training=config.training,
        seed=config.seed,
        checkpoint=lm_dir / folder.CHECKPOINT,
        identity=made_from,
    )
    prints = {"tokenizer": tokenizer.fingerprint, "corpus": files.fingerprint(described)}
    if distributed.main():
        OUTPUT.begin(lm_dir)
    name = f"{config.name} lm"
    with tracking.open_run(config, "train_lm", name, lm_dir, "tokens", prints) as run:
        state = train.train(model, job, run)
        if not distributed.main():
            return
        losses = {key: state.history[-1][key] for key in ("train_loss", "val_loss")}
        run.summary(losses | {f"{k}_loss": without_model[k] for k in ("unigram", "bigram")})
        seen = state.step * job.step_tokens
        record = {
            "format_version": folder.FORMAT_VERSION,
            **made_from,
            "losses": losses,
            "tokens": seen,
            "steps": state.step,
            "seconds": state.seconds,
            "tokens_per_second": seen / state.seconds,
            "device": device.type,
            "n_vocab": tokenizer.n_vocab,
            "baselines": without_model,
        }
        weights = {name: p.detach().cpu().numpy() for name, p in model.named_parameters()}
        tensor_files.write(lm_dir / folder.WEIGHTS, weights)
        tokenizer.save(lm_dir / folder.TOKENIZER)
        files.write_csv(lm_dir / folder.HISTORY, state.history)
        model_print = folder.fingerprint(lm_dir / folder.WEIGHTS)
        record["fingerprints"] = {"model": model_print, **prints}
        record["sha256"] = files.sha256_of(lm_dir, folder.HASHED)
        files.write_json(lm_dir / folder.RECORD, files.sealed(record))
        run.made("language-model", lm_dir / folder.RECORD)
    shutil.rmtree(lm_dir / folder.CHECKPOINT.parent)
    log.info(
        "%s: validation loss %.3f (unigram %.3f, bigram %.3f), %.0f tokens/s",
        lm_dir, losses["val_loss"], without_model["unigram"], without_model["bigram"],
        seen / state.seconds,
    )  # fmt: skip
