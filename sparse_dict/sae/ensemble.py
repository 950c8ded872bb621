"""Trains many dictionaries in one pass; the result of each depends on its own config alone."""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing

import torch

from sparse_dict.errors import UserError
from sparse_dict.machine import interrupt
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as folders
from sparse_dict.sae import step_cpu
from sparse_dict.sae.batches import batches
from sparse_dict.sae.interventions import Moment
from sparse_dict.sae.rows import Rows
from sparse_dict.sae.schedule import rate, total_steps
from sparse_dict.sae.state import State
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep
from sparse_dict.sae.trainee import Trainee

log = logging.getLogger(__name__)

# Steps: shorter trainings on a GPU are over before compiling pays. On an H200 with 16 cores it
# takes 38 s for the seven stacks of docs/reproduction.md and saves .7 ms a step.
COMPILE_FROM = 55_000

LEAST = 1e-12  # the variance of rows that are all the same, in scaled units: it divides the error

Step = SparseStep | DenseStep


def make_steps(states: list[State], n_steps: int) -> list[tuple[list[int], Step]]:
    """The fastest step for each of `states`, which see the same rows, and the indices it trains."""
    device, width = states[0].b.device.type, max(states[0].d_in, states[0].d_out)
    in_c = device == "cpu" and step_cpu.load(width) is not None
    fast = [i for i, s in enumerate(states) if in_c and s.is_fast and "W_skip" not in s.params]
    rest = [i for i in range(len(states)) if i not in fast]
    if slow := sorted({s.architecture.sae.activation for s in states if not s.is_fast}):
        log.info("%s: trained by the generic step, with autograd", ", ".join(slow))
    steps: list[tuple[list[int], Step]] = []
    if fast:
        steps.append((fast, SparseStep([states[i] for i in fast])))
    if rest:
        compiled = device == "cuda" and n_steps >= COMPILE_FROM
        steps.append((rest, DenseStep([states[i] for i in rest], compiled=compiled)))
    return steps


class _Part:
    def __init__(self, trainees: list[Trainee], first_step: int, stack: ExitStack) -> None:
        self.trainees = trainees
        self.last_step = total_steps(trainees[0].config)
        states = [state for trainee in trainees for state in trainee.states]
        self.steps = make_steps(states, self.last_step)
        for _, step_fn in self.steps:
            stack.enter_context(step_fn)
        data = trainees[0].data
        xs = stack.enter_context(closing(self._batches(first_step, self.last_step)))
        if data.y is data.x:
            self.feed: Iterator[tuple[torch.Tensor, torch.Tensor]] = ((x, x) for x in xs)
        else:
            ys = stack.enter_context(closing(self._batches(first_step, self.last_step, y=True)))
            self.feed = zip(xs, ys, strict=True)
        # sums of what is reconstructed, and of its squares, since values were logged
        self.sum = torch.zeros(data.y.d_in).to(states[0].sums)
        self.squares = torch.zeros(()).to(states[0].sums)
        unlogged = states[0].stats().rows // trainees[0].config.training.batch_size
        for y in self._batches(first_step - unlogged, first_step, y=True) if unlogged else ():
            self._see(y)

    def _batches(
        self, first_step: int, last_step: int, y: bool = False
    ) -> Generator[torch.Tensor, None, None]:
        data, training = self.trainees[0].data, self.trainees[0].config.training
        activations, scaling = (data.y, data.y_scaling) if y else (data.x, data.x_scaling)
        return batches(
            Rows(activations, training), scaling, self.trainees[0].state.b.device,
            batch_size=training.batch_size, first_step=first_step, last_step=last_step,
        )  # fmt: skip

    def _see(self, y: torch.Tensor) -> None:
        self.sum += y.sum(0)
        self.squares += torch.linalg.vector_norm(y) ** 2

    def variance(self, rows: int) -> float:
        square = self.squares / (rows * len(self.sum))
        found = float(square - (self.sum / rows).square().mean())
        self.sum.zero_()
        self.squares.zero_()
        return max(found, LEAST)

    def step(self, step: int, seen: int) -> None:
        x, y = next(self.feed)
        self._see(y)
        hypers = [numbers for trainee in self.trainees for numbers in trainee.hypers(step)]
        for indices, step_fn in self.steps:
            step_fn(x, y, [hypers[i] for i in indices], seen)

        def before(rows: int) -> Iterator[torch.Tensor]:
            return self._batches(max(0, step - -(-rows // len(x))), step)

        at = Moment(step, self.last_step, seen, x, y, before)
        for trainee in self.trainees:
            for intervention in trainee.interventions if trainee.error is None else ():
                intervention.after_step(trainee.states, at)


def train(groups: list[list[Trainee]], first_step: int) -> None:
    """Train dictionaries of one harvest from `first_step` on; a group shares device and batches.

    One that is found non-finite when values are logged or saved gets an `error` and is trained no
    further. A signal raises `Interrupted` when checkpoints are written.
    """
    trainees = [trainee for group in groups for trainee in group]
    config = trainees[0].config
    training, batch_size = config.training, config.training.batch_size
    last_step = total_steps(config)
    ticked = logged = time.monotonic()
    logged_rows = first_step * batch_size
    # steps after which the decoder is kept: the last, half of it, a quarter ...
    snapshots = {last_step >> halvings for halvings in range(training.snapshots)}
    with (
        interrupt.on_signal() as request,
        ExitStack() as stack,
        Progress(
            f"{len(trainees)} dictionar{'y' if len(trainees) == 1 else 'ies'}",
            last_step * batch_size, "rows", first_step * batch_size,
        ) as progress,
    ):  # fmt: skip
        parts = [_Part(group, first_step, stack) for group in groups]
        for step in range(first_step + 1, last_step + 1):
            seen = step * batch_size
            for part in parts:
                part.step(step, seen)
            progress.advance(batch_size)
            stops = request.signal is not None
            logs = step % training.log_every == 0 or step == last_step
            saves = stops or step % training.checkpoint_every == 0 or step == last_step
            if not (logs or saves or step in snapshots):
                continue
            for trainee in trainees:
                if trainee.error is None and not trainee.is_finite():
                    _drop(trainee, step)
            living = [trainee for trainee in trainees if trainee.error is None]
            if not living:
                break
            now = time.monotonic()
            for trainee in trainees:
                trainee.seconds += now - ticked
            ticked = now
            if logs:
                speed = (seen - logged_rows) / max(now - logged, 1e-9)
                logged, logged_rows = now, seen
                for part in parts:
                    _log(part, seen, step, speed)
            if step in snapshots:
                for trainee in living:
                    W_dec = trainee.state.W_dec.cpu().numpy()
                    balance = trainee.data.y_scaling.balance
                    folders.write_snapshot(trainee.job.folder, W_dec * balance, seen)
            if saves:
                for trainee in living:
                    trainee.save(step)
            if stops:
                log.error("stopped after %s rows: the same command goes on from there", seen)
                raise request.error()
        if request.signal is not None:  # since the last step's checkpoint
            raise request.error()


def _drop(trainee: Trainee, step: int) -> None:
    kept = "no checkpoint was written before it"
    if trainee.saved_step:
        kept = f"{folders.CHECKPOINT} holds step {trainee.saved_step}, the last good one"
    trainee.error = UserError(
        f"{trainee.job.folder.name}: not finite after {step} steps: lower optimizer.lr; {kept}"
    )
    log.error("%s", trainee.error)


def _log(part: _Part, seen: int, step: int, speed: float) -> None:
    """Log the means over the rows since the last time; the FVU is by the variance of these rows."""
    living = [trainee for trainee in part.trainees if trainee.error is None]
    variance = part.variance(living[0].state.stats().rows) if living else LEAST
    for trainee in living:
        state, sums = trainee.state, trainee.state.stats()
        state.sums.zero_()
        mse = sums.squared_error / (sums.rows * trainee.data.y.d_in)
        values = {
            "activations": seen,
            "mse": mse,
            "fvu": mse / variance,
            "l0": sums.active / sums.rows,
            "l1_norm": sums.l1 / sums.rows,
            # on the last `dead_window` rows; "dead", in metrics.json, is on no evaluation row
            "inactive": int(state.inactive(seen).sum()),
            "lr": rate(trainee.config.optimizer, step, total_steps(trainee.config)),
            "activations_per_second": speed,
        }
        trainee.history.append(values)
        trainee.run.log(
            {name if name == "activations" else f"sae/{name}": v for name, v in values.items()}
        )
