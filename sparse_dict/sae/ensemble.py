"""Trains many dictionaries in one pass over the activations; one dictionary is an ensemble of one.

Every member sees the same batches in the same order, and its result depends on its own config
alone: see `step_cpu` and `State.initial`.

With several GPUs each trains a part of the members, on batches of its own. One thread
enqueues the work of all, and waits for them only when values are logged or saved.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch

from sparse_dict.config import SAETrainingConfig, TrainSAEConfig
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
from sparse_dict.sae.sides import Side, Sides
from sparse_dict.sae.state import State
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep
from sparse_dict.sae.strategy import FreezePerturb

log = logging.getLogger(__name__)

# Steps: shorter trainings on a GPU are over before compiling pays. On an H200 with 16 cores it
# takes 38 s for the seven stacks of docs/reproduction.md and saves .7 ms a step.
COMPILE_FROM = 55_000

LEAST = 1e-12  # the variance of rows that are all the same, in scaled units: it divides the error

Step = SparseStep | DenseStep


def make_steps(states: list[State], n_steps: int) -> list[tuple[list[int], Step]]:
    """The fastest step for each of `states`, with the indices of those that it trains.

    Args:
        states: dictionaries on one device, of one width.
        n_steps: optimiser steps of a whole training.
    """
    device, d_out = states[0].b.device.type, states[0].d_out
    library = kernel.load(states[0].W_dec.shape[-1]) if device == "cpu" else None
    known = [state.architecture.fast and "W_skip" not in state.params for state in states]
    fast = [i for i, is_known in enumerate(known) if library and is_known]
    rest = [i for i in range(len(states)) if i not in fast]
    if slow := sorted({s.architecture.sae.activation for s in states if not s.architecture.fast}):
        log.info("%s: trained by the generic step, with autograd", ", ".join(slow))
    steps: list[tuple[list[int], Step]] = []
    if library and fast:
        steps.append((fast, SparseStep(library, [states[i] for i in fast], d_out)))
    if rest:
        compiled = device == "cuda" and n_steps >= COMPILE_FROM
        steps.append((rest, DenseStep([states[i] for i in rest], d_out, compiled=compiled)))
    return steps


def snapshot_steps(config: TrainSAEConfig) -> set[int]:
    """Steps after which the decoder is kept: the last, half of it, a quarter ..."""
    last = total_steps(config)
    return {last >> halvings for halvings in range(config.training.snapshots)} - {0}


@dataclass
class _Part:
    """Members on one device that see the same rows and columns, with any companions they have."""

    members: list[Member]
    pairs: list[FreezePerturb]
    steps: list[tuple[list[int], Step]]
    feed: Iterator[tuple[torch.Tensor, torch.Tensor]]
    between: Callable[[int, int], Iterator[torch.Tensor]]  # what is read from one step to another
    # (2, width): sums of what is reconstructed, and of its squares, since the last logged values
    moments: torch.Tensor

    def see(self, y: torch.Tensor) -> None:
        """Count rows (n, width) that are reconstructed."""
        self.moments[0] += y.sum(0)
        self.moments[1] += y.square().sum(0)

    def variance(self, rows: int, width: int) -> float:
        """Of the `rows` seen about their mean, a mean over columns; then all begins anew."""
        mean, square = (self.moments / rows).cpu().numpy()
        self.moments.zero_()
        return max(float((square - mean**2)[:width].mean()), LEAST)

    def step(self, step: int, last_step: int, seen: int) -> None:
        """One optimiser step of each."""
        x, y = next(self.feed)
        self.see(y)
        hypers = [
            hyper(m.config, step, m.sides.y.width) if m.error is None else None
            for m in self.members
        ]
        companions = [h for h, m in zip(hypers, self.members, strict=True) if m.strategy]
        for indices, step_fn in self.steps:
            step_fn(x, [(hypers + companions)[i] for i in indices], seen, y)
        for pair in self.pairs:
            pair.after_step(step, last_step)
        for member in self.members:
            if member.selection is not None and member.selection.step == step:
                first = max(0, step - -(-selection.ROWS // len(x)))
                member.selection.make(self.between(first, step))


def _parts(members: list[Member], first_step: int, stack: ExitStack) -> list[_Part]:
    """Put `members` on the devices that `config.device` selects, about the same work on each."""
    devices = training_devices(members[0].config.device)
    loads = [m.state.dict_size * (2 if m.strategy else 1) for m in members]
    shares: dict[tuple[torch.device, str, int, Sides], list[Member]] = defaultdict(list)
    for device, share in zip(devices, balanced(loads, len(devices)), strict=False):
        for i in share:
            training = members[i].config.training
            seen = training.rows, training.rows_seed, members[i].sides
            shares[device, *seen].append(members[i])
    parts = []
    for (device, _, _, sides), own in shares.items():
        config = own[0].config
        last_step = total_steps(config)
        for member in own:
            (member.strategy or member.state).move(device)
        pairs = [member.strategy for member in own if member.strategy is not None]
        states = [member.state for member in own] + [pair.pair[1] for pair in pairs]
        steps = make_steps(states, last_step)
        for _, step_fn in steps:
            stack.enter_context(step_fn)
        fed = partial(_fed, config.training, device, states[0].W_dec.shape[-1])
        xs, alike = fed(sides.x, first_step, last_step), sides.x is sides.y
        ys = xs if alike else fed(sides.y, first_step, last_step)
        for source in (xs, ys):
            stack.enter_context(closing(source))
        feed = ((x, x) for x in xs) if alike else zip(xs, ys, strict=True)
        moments = torch.zeros(2, states[0].W_dec.shape[-1]).to(states[0].sums)
        part = _Part(own, pairs, steps, feed, partial(fed, sides.x), moments)
        unlogged = states[0].stats().rows // config.training.batch_size
        for y in fed(sides.y, first_step - unlogged, first_step) if unlogged else ():
            part.see(y)
        parts.append(part)
    return parts


def _fed(
    training: SAETrainingConfig,
    device: torch.device,
    width: int,
    side: Side,
    first_step: int,
    last_step: int,
) -> Generator[torch.Tensor, None, None]:
    """The batches of one side, padded to `width`."""
    return batches(
        Rows(side.activations, training), batch_size=training.batch_size, first_step=first_step,
        last_step=last_step, view=side.view, device=device, width=width,
    )  # fmt: skip


def train(members: list[Member], first_step: int) -> None:
    """Train `members` from `first_step` on, whose harvest and `training` are equal.

    Which rows and columns they see may differ: each selection is read beside the others.

    A member found non-finite when values are logged or saved gets an `error` and is trained no
    further.

    Raises:
        Interrupted: a signal asked to stop; checkpoints are written.
    """
    config = members[0].config
    training, batch_size = config.training, config.training.batch_size
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
        parts = _parts(members, first_step, stack)
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
                for part in parts:
                    _log(part, seen, step, speed)
            if step in snapshots:
                for member in living:
                    y = member.sides.y
                    W_dec = member.state.W_dec[:, : y.width].cpu().numpy()
                    folders.write_snapshot(member.folder, W_dec * y.view.balance, seen)
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


def _log(part: _Part, seen: int, step: int, speed: float) -> None:
    """Log the means over the rows since the last time; the FVU is by the variance of these rows."""
    living = [member for member in part.members if member.error is None]
    if not living:
        return
    width = living[0].sides.y.width
    variance = part.variance(living[0].state.stats().rows, width)
    for member in living:
        sums = member.state.stats()
        member.state.sums.zero_()
        mse = sums.squared_error / (sums.rows * width)
        values = {
            "activations": seen,
            "mse": mse,
            "fvu": mse / variance,
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
