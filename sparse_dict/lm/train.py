"""The training loop of the language model."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparse_dict.config import AdamWConfig, LMTrainingConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import checkpoint
from sparse_dict.lm.checkpoint import State
from sparse_dict.lm.model import GPT
from sparse_dict.lm.optimizer import learning_rate, make_optimizer, set_learning_rate
from sparse_dict.machine import distributed, interrupt
from sparse_dict.machine.background import prefetched
from sparse_dict.machine.progress import Progress
from sparse_dict.text.tokens import TokenStream
from sparse_dict.tracking import Run

log = logging.getLogger(__name__)


@dataclass
class Job:
    """Everything that a training run needs besides the model."""

    train: TokenStream
    validation: NDArray[np.int64]  # (n, n_ctx + 1), from `validation_windows`
    n_ctx: int
    optimizer: AdamWConfig
    training: LMTrainingConfig
    seed: int
    checkpoint: Path
    identity: dict[str, Any]  # what a checkpoint must record to be resumed

    @property
    def step_tokens(self) -> int:
        return self.training.batch_size * self.training.accumulate * self.n_ctx

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the run, the fewest that see `n_tokens` tokens."""
        return math.ceil(self.training.n_tokens / self.step_tokens)

    def lacks_validation(self, state: State) -> bool:
        """Whether a validation loss belongs to `state` that its history does not have yet."""
        due = state.step % self.training.eval_every == 0 or state.step == self.n_steps
        return due and state.step > 0 and not state.validated


def validation_windows(stream: TokenStream, n_ctx: int, n_tokens: int) -> NDArray[np.int64]:
    """About `n_tokens` targets in windows spread evenly over `stream`, (n, n_ctx + 1)."""
    n = max(1, min(n_tokens, len(stream) - 1) // n_ctx)
    starts = np.linspace(0, len(stream) - n_ctx - 1, n).astype(np.int64)
    return np.stack([stream.window(int(start), n_ctx + 1) for start in starts])


def batch(job: Job, step: int) -> NDArray[np.int64]:
    """This process' windows of optimiser step `step`, (accumulate, batch_size, n_ctx + 1).

    Their places are a function of seed and step, so a resumed run needs no data state.
    """
    shape = (job.training.accumulate, job.training.batch_size)
    rng = np.random.Generator(np.random.Philox([job.seed, step]))
    starts = rng.integers(len(job.train) - job.n_ctx, size=shape)
    starts = np.split(starts, distributed.size(), axis=1)[distributed.rank()]
    windows = [job.train.window(int(start), job.n_ctx + 1) for start in starts.flat]
    return np.stack(windows).reshape(*starts.shape, job.n_ctx + 1)


def _split(windows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    tokens = windows.to(device, non_blocking=True)  # (batch, n_ctx + 1)
    return tokens[:, :-1], tokens[:, 1:]


@torch.no_grad()
def evaluate(model: GPT, windows: NDArray[np.int64], batch_size: int) -> float:
    """Mean loss in nats over the targets of `windows`, in fp32; processes share the windows."""
    device = model.embed.weight.device
    own = torch.from_numpy(windows[distributed.rank() :: distributed.size()])
    total = 0.0
    for part in own.split(batch_size) if len(own) else ():
        total += model.loss(*_split(part, device)).item() * len(part)
    return sum(distributed.gather(total)) / len(windows)


class _Loss(nn.Module):
    """The training loss as a module: only a module's gradients can be averaged over processes."""

    def __init__(self, model: GPT, precision: str) -> None:
        super().__init__()
        self.model = model
        self.bf16 = precision == "bf16"

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(tokens, targets, bf16=self.bf16)


def train(model: GPT, job: Job, run: Run) -> State:
    """Train `model` to the end, from the job's checkpoint if there is one."""
    config = job.training
    device = model.embed.weight.device
    optimizer = make_optimizer(model, job.optimizer)
    state = State()
    if job.checkpoint.exists():
        state = checkpoint.load(job.checkpoint, model, optimizer)
        log.info("going on from step %d of %d", state.step, job.n_steps)
    if device.type == "cuda":
        for block in model.blocks:
            block.compile()  # one program for all, since they are alike
    loss_of = distributed.averaging(_Loss(model, config.precision))
    max_norm = job.optimizer.grad_clip or math.inf
    total = job.n_steps * job.step_tokens
    progress = Progress("train_lm", total, "tokens", initial=state.step * job.step_tokens)
    saved = state.step

    def windows_of(step: int) -> Tensor:
        windows = torch.from_numpy(batch(job, step))
        return windows.pin_memory() if device.type == "cuda" else windows

    def validate() -> None:
        val_loss = evaluate(model, job.validation, config.batch_size)
        if not math.isfinite(val_loss):
            raise UserError(_not_finite(job, state.step, saved))
        train_loss = state.loss_sum / state.loss_steps
        state.loss_sum, state.loss_steps = 0.0, 0
        tokens = state.step * job.step_tokens
        lr = learning_rate(job.optimizer, state.step - 1, job.n_steps)
        row = {"step": state.step, "tokens": tokens, "train_loss": train_loss}
        state.history.append({**row, "val_loss": val_loss, "lr": lr})
        run.log({"val_loss": val_loss, "tokens": tokens})
        log.info("step %d: loss %.3f, validation %.3f", state.step, train_loss, val_loss)

    with interrupt.on_signal() as stop, progress:
        if job.lacks_validation(state):  # an earlier version was stopped by a signal before it
            validate()
        started = time.perf_counter()
        for windows in prefetched(map(windows_of, range(state.step, job.n_steps))):
            lr = learning_rate(job.optimizer, state.step, job.n_steps)
            set_learning_rate(optimizer, lr)
            losses = []
            for i, part in enumerate(windows, start=1):
                with distributed.local(loss_of, when=i < config.accumulate):
                    loss = loss_of(*_split(part, device))
                    (loss / config.accumulate).backward()
                losses.append(loss.detach())
            own_loss = torch.stack(losses).mean().item()
            mean_loss = sum(distributed.gather(own_loss)) / distributed.size()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()
            if not (math.isfinite(mean_loss) and math.isfinite(norm)):
                raise UserError(_not_finite(job, state.step, saved))  # in every process
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
            if job.lacks_validation(state):
                validate()
            signal = round(max(distributed.gather(stop.signal or 0)))  # of any process
            saves = state.step % config.checkpoint_every == 0 or last or signal
            if saves:
                # The loss above is of the state before the step: check the one that is saved.
                if not (state.validated or math.isfinite(evaluate(model, job.validation[:1], 1))):
                    raise UserError(_not_finite(job, state.step, saved))
                if distributed.main():
                    checkpoint.save(job.checkpoint, model, optimizer, state, job.identity)
                saved = state.step
            if signal and not (last and state.validated):
                log.info("stopped at step %d: the same command goes on from there", state.step)
                distributed.barrier()  # the checkpoint is there
                raise interrupt.Interrupted(128 + signal)
            started = time.perf_counter()
    return state


def _not_finite(job: Job, step: int, saved: int) -> str:
    kept = "no checkpoint was written before it"
    if job.checkpoint.exists():
        kept = f"{job.checkpoint} holds step {saved}, the last good one"
    return f"the loss or a gradient is not finite at step {step}: lower optimizer.lr; {kept}"
