"""Trains many dictionaries in one pass over the activations; one dictionary is an ensemble of one.

Every member sees the same batches in the same order, and its result depends on its own config
alone: see `step_cpu` and `State.initial`.

With several GPUs each trains a part of the members, on batches of its own. One thread drives them
all: it only tells them what to do, and waits for them when values are logged or saved.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparse_dict.activations.store import Activations
from sparse_dict.config import TrainSAEConfig
from sparse_dict.errors import UserError, malformed
from sparse_dict.machine import interrupt
from sparse_dict.machine.balance import balanced
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as folders
from sparse_dict.sae import kernel
from sparse_dict.sae.batches import batches
from sparse_dict.sae.devices import training_devices
from sparse_dict.sae.rows import training_rows
from sparse_dict.sae.state import State, Stats, hyper
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep
from sparse_dict.sae.strategy import FreezePerturb
from sparse_dict.storage import tensor_files
from sparse_dict.tracking import Run

log = logging.getLogger(__name__)

HISTORY = {
    "activations", "mse", "fvu", "l0", "l1", "dead", "lr", "activations_per_second",
}  # fmt: skip  # of a row

COMPILE_FROM = 10_000  # steps: shorter trainings on a GPU are over before compiling pays


@dataclass
class Member:
    """One dictionary of an ensemble, and all that is its own."""

    config: TrainSAEConfig
    folder: Path
    record: dict[str, Any]  # what identifies its result; a checkpoint of another one is refused
    run: Run
    state: State
    strategy: FreezePerturb | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    error: UserError | None = None
    seconds: float = 0.0  # of all passes that trained it, including its companions' share
    saved_step: int = 0  # of the checkpoint in `folder`; 0: there is none

    def is_finite(self) -> bool:
        """Whether its state is, and its companion's, from which it would catch it."""
        pair = self.strategy.pair if self.strategy else (self.state,)
        return all(state.is_finite() for state in pair)

    def save_checkpoint(self, step: int) -> None:
        """Write its state after `step` optimiser steps."""
        tensors = self.state.tensors() | (self.strategy.tensors() if self.strategy else {})
        meta = {
            "step": step,
            "record": self.record,
            "history": self.history,
            "sums": asdict(self.state.stats()),  # since the last line of the history
            "seconds": self.seconds,
        }
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        tensor_files.write_checkpoint(self.folder / folders.CHECKPOINT, arrays, meta)
        self.saved_step = step

    def load_checkpoint(self) -> int:
        """Take its state from its folder; returns the optimiser steps done (0: none)."""
        meta = folders.read_checkpoint_meta(self.folder)
        if meta is None:
            return 0
        if meta["record"] != json.loads(json.dumps(self.record)):
            raise UserError(
                f"{self.folder / folders.CHECKPOINT} belongs to another config or other "
                "activations: choose another name= or remove the folder"
            )
        arrays = tensor_files.read_checkpoint(self.folder / folders.CHECKPOINT)
        try:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            self.state.load(tensors)
            if self.strategy is not None:
                self.strategy.load(tensors)
            self.state.add_stats(Stats(**meta["sums"]))
            if not 0 <= meta["step"] <= total_steps(self.config):
                raise ValueError(f"step {meta['step']}")
            if not all(isinstance(row, dict) and row.keys() == HISTORY for row in meta["history"]):
                raise ValueError("a malformed history")
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.folder / folders.CHECKPOINT} is malformed ({malformed(error)}): "
                "remove it to start again"
            ) from None
        self.history, self.seconds = meta["history"], meta["seconds"]
        self.saved_step = int(meta["step"])
        return self.saved_step


def make_step(states: list[State], d_in: int, n_steps: int) -> SparseStep | DenseStep:
    """The fastest way to train `states` where they are, if a whole training has `n_steps`."""
    device = states[0].b.device.type
    library = kernel.load(kernel.padded(d_in)) if device == "cpu" else None
    if library is not None:
        return SparseStep(library, states, d_in)
    return DenseStep(states, d_in, compiled=device == "cuda" and n_steps >= COMPILE_FROM)


def scale_of(config: TrainSAEConfig, activations: Activations) -> float:
    """What activations are divided by before a dictionary sees them."""
    return activations.rms if config.activations.scaling == "rms" else 1.0


def variance(activations: Activations) -> float:
    """Mean over dimensions of the raw activations' variance: the denominator of FVU."""
    return float(activations.rms**2 - (activations.mean.astype("float64") ** 2).mean())


def snapshot_steps(config: TrainSAEConfig) -> set[int]:
    """Steps after which the decoder is kept: the last, half of it, a quarter ..."""
    last = total_steps(config)
    return {last >> halvings for halvings in range(config.training.snapshots)} - {0}


def total_steps(config: TrainSAEConfig) -> int:
    """Optimiser steps of a whole training."""
    return -(-config.training.n_activations // config.training.batch_size)


@dataclass
class _Part:
    """The members that one device trains, each with its companion if it has one."""

    members: list[Member]
    pairs: list[FreezePerturb]
    step_fn: SparseStep | DenseStep
    feed: Iterator[torch.Tensor]

    def step(self, step: int, last_step: int, seen: int) -> None:
        """One optimiser step of each."""
        x = next(self.feed)
        hypers = [hyper(m.config, step) if m.error is None else None for m in self.members]
        companions = [h for h, m in zip(hypers, self.members, strict=True) if m.strategy]
        self.step_fn(x, hypers + companions, seen)
        for pair in self.pairs:
            pair.after_step(step, last_step)


def _parts(
    members: list[Member], activations: Activations, first_step: int, stack: ExitStack
) -> list[_Part]:
    """Put `members` on the devices that their config means, about the same work on each."""
    config = members[0].config
    devices = training_devices(config.device)
    batch_size, last_step = config.training.batch_size, total_steps(config)
    loads = [m.state.dict_size * (2 if m.strategy else 1) for m in members]
    parts = []
    for device, share in zip(devices, balanced(loads, len(devices)), strict=False):
        own = [members[i] for i in share]
        for member in own:
            (member.strategy or member.state).move(device)
        pairs = [member.strategy for member in own if member.strategy is not None]
        states = [member.state for member in own] + [pair.pair[1] for pair in pairs]
        step_fn = make_step(states, activations.d_in, last_step)
        stack.enter_context(step_fn)
        feed = batches(
            activations, rows=training_rows(activations, config.training.eval_rows, batch_size),
            batch_size=batch_size, first_step=first_step, last_step=last_step,
            scale=scale_of(config, activations), device=device,
        )  # fmt: skip
        parts.append(_Part(own, pairs, step_fn, feed))
    return parts


def train(members: list[Member], activations: Activations, first_step: int) -> None:
    """Train `members`, which share `training` and `activations` configs, from `first_step` on.

    A member found non-finite when values are logged or saved gets an `error` and is trained no
    further.

    Raises:
        Interrupted: a signal asked to stop; checkpoints are written.
    """
    config = members[0].config
    training, batch_size = config.training, config.training.batch_size
    var = variance(activations) / scale_of(config, activations) ** 2
    last_step = total_steps(config)
    started = logged = time.monotonic()
    logged_rows = first_step * batch_size
    seconds_before = [member.seconds for member in members]
    snapshots = snapshot_steps(config)
    with (
        interrupt.on_signal() as request,
        ExitStack() as stack,
        Progress(
            f"{len(members)} dictionar{'y' if len(members) == 1 else 'ies'}",
            last_step * batch_size, "rows", first_step * batch_size,
        ) as progress,
    ):  # fmt: skip
        parts = _parts(members, activations, first_step, stack)
        for step in range(first_step + 1, last_step + 1):
            seen = step * batch_size
            for part in parts:
                part.step(step, last_step, seen)
            progress.advance(batch_size)
            stops = request.signal is not None
            logs = step % training.log_every == 0 or step == last_step
            saves = stops or step % training.checkpoint_every == 0 or step == last_step
            if not (logs or saves or step in snapshots):
                continue
            for member, before in zip(members, seconds_before, strict=True):
                if member.error is None and not member.is_finite():
                    _drop(member, step)
                member.seconds = before + time.monotonic() - started
            living = [member for member in members if member.error is None]
            if not living:
                break
            if logs:
                now = time.monotonic()
                speed = (seen - logged_rows) / max(now - logged, 1e-9)
                logged, logged_rows = now, seen
                for member in living:
                    _log(member, seen, step, var, activations.d_in, speed)
            if step in snapshots:
                for member in living:
                    W_dec = member.state.W_dec[:, : activations.d_in].cpu().numpy()
                    folders.write_snapshot(member.folder, W_dec, seen)
            if saves:
                for member in living:
                    member.save_checkpoint(step)
            if stops:
                log.error("stopped after %s rows: the same command goes on from there", seen)
                raise request.error()
        if request.signal is not None:  # since the last step's checkpoint
            raise request.error()


def _drop(member: Member, step: int) -> None:
    kept = "no checkpoint was written before it"
    if member.saved_step:
        kept = f"{folders.CHECKPOINT} holds step {member.saved_step}, the last good one"
    member.error = UserError(
        f"{member.folder.name}: not finite after {step} steps, dropped; "
        f"lower optimizer.lr or raise optimizer.warmup_steps; {kept}"
    )
    log.error("%s", member.error)


def _log(member: Member, seen: int, step: int, var: float, d_in: int, speed: float) -> None:
    sums = member.state.stats()
    member.state.sums.zero_()
    mse = sums.squared_error / (sums.rows * d_in)
    values = {
        "activations": seen,
        "mse": mse,
        "fvu": mse / var,
        "l0": sums.active / sums.rows,
        "l1": sums.l1 / sums.rows,
        "dead": int(member.state.dead(seen).sum()),
        "lr": hyper(member.config, step).lr,
        "activations_per_second": speed,
    }
    member.history.append(values)
    member.run.log(
        {name if name == "activations" else f"sae/{name}": v for name, v in values.items()}
    )
