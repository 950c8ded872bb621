"""Trains many dictionaries in one pass over the activations; one dictionary is an ensemble of one.

Every member sees the same batches in the same order, and its result depends on its own config
alone: see `step_cpu` and `State.initial`.

With several GPUs each trains a part of the members, on batches of its own. One thread
enqueues the work of all, and waits for them only when values are logged or saved.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from sparse_dict.activations.store import Activations
from sparse_dict.config import TrainSAEConfig
from sparse_dict.errors import UserError
from sparse_dict.machine import interrupt
from sparse_dict.machine.balance import balanced
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as folders
from sparse_dict.sae import kernel, selection
from sparse_dict.sae.batches import batches
from sparse_dict.sae.devices import training_devices
from sparse_dict.sae.member import Member
from sparse_dict.sae.rows import Rows
from sparse_dict.sae.schedule import hyper, rate, total_steps
from sparse_dict.sae.state import State
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep
from sparse_dict.sae.strategy import FreezePerturb
from sparse_dict.sae.view import View

log = logging.getLogger(__name__)

# Steps: shorter trainings on a GPU are over before compiling pays. On an H200 with 16 cores it
# takes 38 s for the seven stacks of docs/reproduction.md and saves .7 ms a step.
COMPILE_FROM = 55_000


Step = SparseStep | DenseStep


def make_steps(states: list[State], d_in: int, n_steps: int) -> list[tuple[list[int], Step]]:
    """The fastest step for each of `states`, with the indices of those that it trains.

    Args:
        states: dictionaries on one device.
        d_in: width of the activations.
        n_steps: optimiser steps of a whole training.
    """
    device = states[0].b.device.type
    library = kernel.load(kernel.padded(d_in)) if device == "cpu" else None
    fast = [i for i, state in enumerate(states) if library and state.architecture.fast]
    rest = [i for i in range(len(states)) if i not in fast]
    if slow := sorted({s.architecture.sae.activation for s in states if not s.architecture.fast}):
        log.info("%s: trained by the generic step, with autograd", ", ".join(slow))
    steps: list[tuple[list[int], Step]] = []
    if library and fast:
        steps.append((fast, SparseStep(library, [states[i] for i in fast], d_in)))
    if rest:
        compiled = device == "cuda" and n_steps >= COMPILE_FROM
        steps.append((rest, DenseStep([states[i] for i in rest], d_in, compiled=compiled)))
    return steps


def snapshot_steps(config: TrainSAEConfig) -> set[int]:
    """Steps after which the decoder is kept: the last, half of it, a quarter ..."""
    last = total_steps(config)
    return {last >> halvings for halvings in range(config.training.snapshots)} - {0}


@dataclass
class _Part:
    """Members on one device that see the same rows, each with its companion if it has one."""

    members: list[Member]
    pairs: list[FreezePerturb]
    steps: list[tuple[list[int], Step]]
    between: Callable[..., Iterator[torch.Tensor]]  # `batches` of first_step to last_step
    feed: Iterator[torch.Tensor]
    d_in: int

    def step(self, step: int, last_step: int, seen: int) -> None:
        """One optimiser step of each."""
        x = next(self.feed)
        hypers = [
            hyper(m.config, step, self.d_in) if m.error is None else None for m in self.members
        ]
        companions = [h for h, m in zip(hypers, self.members, strict=True) if m.strategy]
        for indices, step_fn in self.steps:
            step_fn(x, [(hypers + companions)[i] for i in indices], seen)
        for pair in self.pairs:
            pair.after_step(step, last_step)
        for member in self.members:
            if member.selection is not None and member.selection.step == step:
                first = max(0, step - -(-selection.ROWS // len(x)))
                member.selection.make(self.between(first_step=first, last_step=step))


def _parts(
    members: list[Member], activations: Activations, view: View, first_step: int, stack: ExitStack
) -> list[_Part]:
    """Put `members` on the devices that `config.device` selects, about the same work on each."""
    devices = training_devices(members[0].config.device)
    loads = [m.state.dict_size * (2 if m.strategy else 1) for m in members]
    shares: dict[tuple[torch.device, str, int], list[Member]] = defaultdict(list)
    for device, share in zip(devices, balanced(loads, len(devices)), strict=False):
        for i in share:
            training = members[i].config.training
            shares[device, training.rows, training.rows_seed].append(members[i])
    parts = []
    for (device, *_), own in shares.items():
        config = own[0].config
        last_step = total_steps(config)
        for member in own:
            (member.strategy or member.state).move(device)
        pairs = [member.strategy for member in own if member.strategy is not None]
        states = [member.state for member in own] + [pair.pair[1] for pair in pairs]
        steps = make_steps(states, activations.d_in, last_step)
        for _, step_fn in steps:
            stack.enter_context(step_fn)
        rows = Rows(activations, config.training)
        between = partial(
            batches, rows, batch_size=config.training.batch_size, view=view, device=device
        )
        feed = between(first_step=first_step, last_step=last_step)
        parts.append(_Part(own, pairs, steps, between, feed, activations.d_in))
    return parts


def train(members: list[Member], activations: Activations, view: View, first_step: int) -> None:
    """Train `members` from `first_step` on, whose `activations` and `training` are equal.

    Which rows they see may differ: each selection is read beside the others.

    A member found non-finite when values are logged or saved gets an `error` and is trained no
    further.

    Raises:
        Interrupted: a signal asked to stop; checkpoints are written.
    """
    config = members[0].config
    training, batch_size = config.training, config.training.batch_size
    var = view.seen_variance
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
        parts = _parts(members, activations, view, first_step, stack)
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
                    folders.write_snapshot(member.folder, W_dec * view.balance, seen)
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
        "l1_norm": sums.l1 / sums.rows,
        "inactive": int(member.state.inactive(seen).sum()),
        "lr": rate(member.config.optimizer, step, total_steps(member.config)),
        "activations_per_second": speed,
    }
    member.history.append(values)
    member.run.log(
        {name if name == "activations" else f"sae/{name}": v for name, v in values.items()}
    )
