"""The training loop of the language model."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict import interrupt
from sparse_dict.config import AdamWConfig, LMTrainingConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import checkpoint
from sparse_dict.lm.baselines import Stream
from sparse_dict.lm.checkpoint import State
from sparse_dict.lm.model import GPT
from sparse_dict.progress import Progress

if TYPE_CHECKING:
    from sparse_dict.tracking import Run

log = logging.getLogger(__name__)


@dataclass
class Job:
    """All that a run is made of."""

    train: Stream
    validation: NDArray[np.int64]  # (n, n_ctx + 1), from `validation_windows`
    n_ctx: int
    optimizer: AdamWConfig
    training: LMTrainingConfig
    seed: int
    checkpoint: Path
    identity: dict[str, Any]  # what a checkpoint must be a checkpoint of

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimiser step."""
        return self.training.batch_size * self.training.accumulate * self.n_ctx

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the run, the fewest that see `n_tokens` tokens."""
        return math.ceil(self.training.n_tokens / self.step_tokens)


def validation_windows(stream: Stream, n_ctx: int, n_tokens: int) -> NDArray[np.int64]:
    """About `n_tokens` targets in windows spread evenly over `stream`, (n, n_ctx + 1)."""
    n = max(1, min(n_tokens, len(stream) - 1) // n_ctx)
    starts = np.linspace(0, len(stream) - n_ctx - 1, n).astype(np.int64)
    return np.stack([stream.window(int(start), n_ctx + 1) for start in starts])


def batch(job: Job, step: int) -> NDArray[np.int64]:
    """The windows of optimiser step `step`, (accumulate, batch_size, n_ctx + 1).

    Their places are a function of the seed and the step, so a resumed run needs no data state.
    """
    shape = (job.training.accumulate, job.training.batch_size)
    rng = np.random.Generator(np.random.Philox([job.seed, step]))
    starts = rng.integers(len(job.train) - job.n_ctx, size=shape)
    windows = [job.train.window(int(start), job.n_ctx + 1) for start in starts.flat]
    return np.stack(windows).reshape(*shape, job.n_ctx + 1)


def learning_rate(config: AdamWConfig, step: int, n_steps: int) -> float:
    """Linear warm-up, then half a cosine down to ``lr * min_lr_ratio`` at the last step."""
    warmup = round(config.warmup_fraction * n_steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, n_steps - 1 - warmup)
    share = (1 + math.cos(math.pi * min(done, 1.0))) / 2
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def make_optimizer(model: GPT, config: AdamWConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def _split(windows: NDArray[np.int64], device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = torch.from_numpy(windows).to(device)  # (batch, n_ctx + 1)
    return tokens[:, :-1], tokens[:, 1:]


@torch.no_grad()
def evaluate(model: GPT, windows: NDArray[np.int64], batch_size: int) -> float:
    """Mean loss in nats over the targets of `windows`, in fp32."""
    device = model.embed.weight.device
    total = 0.0
    for start in range(0, len(windows), batch_size):
        part = windows[start : start + batch_size]
        total += model.loss(*_split(part, device)).item() * len(part)
    return total / len(windows)


def train(model: GPT, job: Job, run: "Run") -> State:
    """Train `model` to the end, from the job's checkpoint if there is one.

    Raises:
        UserError: the loss or a gradient is not finite; the checkpoint holds an earlier state.
        Interrupted: the process was asked to stop; the checkpoint holds the last step.
    """
    config = job.training
    device = model.embed.weight.device
    optimizer = make_optimizer(model, job.optimizer)
    state = State()
    if job.checkpoint.exists():
        state = checkpoint.load(job.checkpoint, model, optimizer)
        log.info("going on from step %d of %d", state.step, job.n_steps)
    max_norm = job.optimizer.grad_clip or math.inf
    total = job.n_steps * job.step_tokens
    progress = Progress("train_lm", total, "tokens", initial=state.step * job.step_tokens)
    saved = state.step

    with interrupt.on_signal() as stop, progress:
        while state.step < job.n_steps:
            started = time.perf_counter()
            lr = learning_rate(job.optimizer, state.step, job.n_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses = []
            for windows in batch(job, state.step):
                loss = model.loss(*_split(windows, device), bf16=config.precision == "bf16")
                (loss / config.accumulate).backward()
                losses.append(loss.detach())
            mean_loss = torch.stack(losses).mean().item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
            if not (math.isfinite(mean_loss) and math.isfinite(norm)):
                raise UserError(_not_finite(job, state.step, saved))
            optimizer.step()
            optimizer.zero_grad()

            state.step += 1
            state.seconds += time.perf_counter() - started
            state.loss_sum += mean_loss
            state.loss_steps += 1
            tokens = state.step * job.step_tokens
            progress.advance(job.step_tokens, loss=mean_loss)
            last = state.step == job.n_steps
            if state.step % config.log_every == 0 or last:
                values = {"train_loss": mean_loss, "lr": lr, "grad_norm": norm, "tokens": tokens}
                values["tokens_per_second"] = tokens / state.seconds
                run.log(values)
            if state.step % config.eval_every == 0 or last:
                val_loss = evaluate(model, job.validation, config.batch_size)
                train_loss = state.loss_sum / state.loss_steps
                state.loss_sum, state.loss_steps = 0.0, 0
                state.history.append(
                    {
                        "step": state.step,
                        "tokens": tokens,
                        "train_loss": train_loss,
                        "val_loss": val_loss,
                        "lr": lr,
                    }
                )
                run.log({"val_loss": val_loss, "tokens": tokens})
                log.info("step %d: loss %.3f, validation %.3f", state.step, train_loss, val_loss)
            if state.step % config.checkpoint_every == 0 or last or stop.signal:
                checkpoint.save(job.checkpoint, model, optimizer, state, job.identity)
                saved = state.step
            if stop.signal and not last:
                log.info(
                    "stopped at step %d of %d: the same command goes on from there",
                    state.step, job.n_steps,
                )  # fmt: skip
                raise stop.error()
    return state


def _not_finite(job: Job, step: int, saved: int) -> str:
    kept = (
        f"{job.checkpoint} holds step {saved}, the last good one"
        if job.checkpoint.exists()
        else "no checkpoint was written before it"
    )
    return f"the loss or a gradient is not finite at step {step}: lower optimizer.lr; {kept}"
