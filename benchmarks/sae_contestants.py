"""Who takes part in `sae_cpu.py`: each trains the same grid of dictionaries and is timed.

All start from the same values, Adam moments included, take the same batches in the same order and
minimise the same loss, mean squared error + l1 * sum of codes, with unit decoder rows and without
the gradient's part along them. What that took for each peer is said where it is set up.
"""

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

SEED = 0
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Task:
    """A grid to train. Its timed steps are those behind the first `warm` ones."""

    sizes: list[int]
    l1: list[float]
    batch: int
    steps: int
    activations: str
    repeat: int = 1  # dictionaries of each kind, by seed
    warm: int = 0  # steps already made, by `warm_up`
    start: str | None = None  # what `warm_up` wrote
    eval_rows: int = 32_768
    keep: str | None = None  # ours: where dictionaries are left
    sample_memory: bool = False
    device: str = "cpu"  # or cuda, for `sae_gpu.py`, which leaves `warm` at 0

    @cached_property
    def width(self) -> int:
        """Columns of the activations."""
        from sparse_dict.activations.store import Activations

        return Activations.open(Path(self.activations)).d_in


class Clock:
    """Wall and CPU seconds of this process since it was made, less what is `taken_off`."""

    def __init__(self) -> None:
        self._start = self._now()
        self._off = (0.0, 0.0)

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    @contextmanager
    def taken_off(self) -> Iterator[None]:
        """Do not count what happens in this context."""
        before = self._now()
        yield
        pairs = zip(self._off, self._now(), before, strict=True)
        self._off = tuple(off + now - then for off, now, then in pairs)

    def read(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds`."""
        pairs = zip(self._now(), self._start, self._off, strict=True)
        wall, cpu = (now - start - off for now, start, off in pairs)
        return {"seconds": wall, "cpu_seconds": cpu}


def configs(
    task: Task, study_dir: str, tracking: str = "disabled", kind: str = "untied", **sae: Any
) -> list[Any]:
    """One of our configs per dictionary of a kind; keyword arguments are values of `sae`."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import sparse_dict.launch.jobs  # noqa: F401  makes the schemas known

    overrides = [
        f"sae={kind}", "name=bench", f"study_dir={study_dir}", f"device={task.device}",
        f"tracking.mode={tracking}",
        f"activations_dir={task.activations}", "sae.project_gradient=true",
        "sae.l1_scaling=none", "activations.centering=none",
        f"training.n_activations={(task.warm + task.steps) * task.batch}",
        f"training.batch_size={task.batch}", f"training.eval_rows={task.eval_rows}",
        "training.snapshots=0", "training.checkpoint_every=1_000_000", "training.log_every=100",
        "optimizer.lr=1e-3", "optimizer.lr_scaling=none", "optimizer.schedule=constant",
        *(f"sae.{key}={value}" for key, value in sae.items()),
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        first = OmegaConf.to_object(compose("train_sae", overrides))
    l1_of = [{"l1": l1} if hasattr(first.sae, "l1") else {} for l1 in task.l1]  # type: ignore
    return [
        replace(first, seed=seed, sae=replace(first.sae, dict_size=size, **l1))  # type: ignore
        for size in task.sizes
        for l1 in l1_of
        for seed in range(SEED, SEED + task.repeat)
    ]


def starts(task: Task) -> list[Any]:
    """The `State` that each dictionary begins with."""
    import torch
    from safetensors.torch import load_file

    from sparse_dict.sae.state import State

    tensors = load_file(task.start) if task.start else None
    states = []
    for i, config in enumerate(configs(task, "unused")):
        state = State.initial(config, task.width, task.width, torch.device("cpu"))
        if tensors is not None:
            state.load({name: tensors[f"{i}.{name}"] for name in state.tensors()})
        states.append(state)
    return states


def warm_up(task: Task, path: Path) -> None:
    """Train `task.warm` steps by our trainer, untimed, and leave the state at `path`."""
    from safetensors.torch import save_file

    from sparse_dict.sae import ensemble, stage

    first = replace(task, warm=0, steps=task.warm, start=None)
    train = ensemble.train

    def train_and_save(groups: list[list[Any]], *rest: Any) -> None:
        train(groups, *rest)
        states = [trainee.state.tensors() for trainee in groups[0]]
        save_file({f"{i}.{k}": v for i, state in enumerate(states) for k, v in state.items()}, path)

    ensemble.train = train_and_save
    with tempfile.TemporaryDirectory() as folder:
        grid = configs(first, folder)
        stage.train_many(grid, [Path(folder) / str(i) for i in range(len(grid))])


def ours(
    task: Task,
    *,
    threads: int | None = None,
    dense: bool = False,
    compiled: bool = False,
    **sae: Any,
) -> dict:
    """Our trainer, by what the command line calls; reading from disk is timed with it.

    The checkpoint that it writes behind the last step is left out, as no peer writes one.
    """
    from sparse_dict.sae import ensemble, evaluate, stage, step_cpu, trainee  # noqa: F401

    if threads is not None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if dense:
        step_cpu.load = lambda width: None
    else:
        step_cpu.load(task.width)
    if compiled:  # in this process, before the clock starts
        ensemble.COMPILE_FROM = 0
        with tempfile.TemporaryDirectory() as folder:
            grid = configs(replace(task, steps=2), folder, **sae)
            stage.train_many(grid, [Path(folder) / str(i) for i in range(len(grid))])
    initial = starts(task) if task.start else None
    result: dict[str, Any] = {}
    train = ensemble.train

    def timed(groups: list[list[Any]], first_step: int) -> None:
        for own, state in zip(groups[0], initial or [], strict=initial is not None):
            own.state.load(state.tensors())
        clock = Clock()
        train(groups, task.warm)
        result.update(clock.read())

    ensemble.train = timed
    trainee.Trainee.save = lambda self, step: None
    with tempfile.TemporaryDirectory() as temporary, sampling(task.sample_memory, result):
        home = Path(task.keep or temporary)
        grid = configs(task, str(home), **sae)
        outcomes = stage.train_many(grid, [home / str(i) for i in range(len(grid))])
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return result | {key: [m[key] for m in outcomes] for key in ("l0", "fvu")}  # type: ignore


def floor(task: Task) -> dict:
    """Milliseconds a step of what no step can do without, by torch, and of ours if nothing fires.

    The encoder's products in float32 and Adam's pass over all parameters (torch's fused one).
    """
    import torch

    from sparse_dict.sae import ensemble
    from sparse_dict.sae.schedule import hyper

    fed, states = Fed(replace(task, steps=min(task.steps, 50))), starts(task)
    grid = configs(task, "unused")
    parameters = [p for state in states for p in (state.W_enc, state.W_dec, state.b)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    adam = torch.optim.Adam(parameters, fused=True)
    products = [torch.empty(state.dict_size, task.batch) for state in states]

    def multiply(x: Any, step: int) -> None:
        for state, product in zip(states, products, strict=True):
            torch.mm(state.W_enc, x.T, out=product)

    idle = starts(task)
    for state in idle:
        state.b.fill_(-1e9)
    ((_, step_fn),) = ensemble.make_steps(idle, task.steps)
    with step_fn as ours_idle:
        kinds: dict[str, Callable[[Any, int], Any]] = {
            "products": multiply,
            "Adam": lambda x, step: adam.step(),
            "ours, nothing active": lambda x, step: ours_idle(
                x, x, [hyper(config, task.warm + step, task.width) for config in grid], task.batch
            ),
        }
        times: dict[str, list[float]] = {kind: [] for kind in kinds}
        for step, x in enumerate(fed.batches(), start=1):
            for kind, compute in kinds.items():
                began = time.perf_counter()
                compute(x, step)
                times[kind].append(1e3 * (time.perf_counter() - began))
    return {kind: statistics.median(values) for kind, values in times.items()}


class sampling:
    """While it is open, watch this process's own memory; MiB above the start go into `result`."""

    def __init__(self, on: bool, result: dict[str, Any]) -> None:
        self._on, self._result, self._stop = on, result, threading.Event()

    @staticmethod
    def _status() -> dict[str, float]:
        lines = Path("/proc/self/status").read_text().splitlines()
        pairs = [line.split(":") for line in lines if line.startswith(("RssAnon", "VmRSS"))]
        return {name: int(value.split()[0]) / 1024 for name, value in pairs}

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            for name, value in self._status().items():
                self._peak[name] = max(self._peak[name], value)

    def __enter__(self) -> None:
        if self._on:
            self._first, self._peak = self._status(), self._status()
            self._thread = threading.Thread(target=self._watch)
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        if self._on:
            self._stop.set()
            self._thread.join()
            above = {name: self._peak[name] - self._first[name] for name in self._first}
            self._result |= {"own_mib": above["RssAnon"], "with_mapped_files_mib": above["VmRSS"]}


class Fed:
    """What contestants other than ours get: scaled rows in memory, and the numbers at the end."""

    def __init__(self, task: Task) -> None:
        import torch

        from sparse_dict.activations.store import Activations

        self.task = task
        activations = Activations.open(Path(task.activations))
        self._scale = activations.rms
        self._rows = activations.rows - task.eval_rows
        needed = [(task.warm + i) * task.batch % self._rows for i in range(task.steps)]
        assert max(needed) + task.batch <= self._rows, "the timed steps pass the end of the data"
        read = activations.read(min(needed), max(needed) + task.batch)
        self._offset = min(needed)
        self._data = torch.from_numpy(read).div_(self._scale).to(task.device)
        held_out = activations.read(self._rows, activations.rows)
        self._held_out = torch.from_numpy(held_out).to(task.device)
        self._variance = float((self._held_out / self._scale).var(0, correction=0).mean())

    def batches(self) -> Iterator[Any]:
        """(batch, width) each."""
        for step in range(self.task.warm, self.task.warm + self.task.steps):
            at = step * self.task.batch % self._rows - self._offset
            yield self._data[at : at + self.task.batch]

    def numbers(self, weights: list[tuple[Any, Any, Any]]) -> dict[str, list[float]]:
        """L0 and FVU of (W_enc (K, width), b (K,), W_dec (K, width)) on the held-out rows."""
        import torch

        x, l0, fvu = self._held_out / self._scale, [], []
        with torch.no_grad():
            for W_enc, b, W_dec in weights:
                active = error = 0.0
                for part in x.split(1024):
                    codes = torch.relu(part @ W_enc.T + b)
                    active += float((codes > 0).sum())
                    error += float((codes @ W_dec - part).square().sum())
                l0.append(active / len(x))
                fvu.append(error / x.numel() / self._variance)
        return {"l0": l0, "fvu": fvu}


def wait_for(device: str) -> None:
    """Until a GPU has done what it was told."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize()


def adam_state(
    step: int, state: Any, name: str, *, factor: float = 1.0, transposed: bool = False
) -> dict[str, Any]:
    """Adam's state of `state`'s parameter `name`, for a loss that is `factor` times ours."""
    import torch

    m, v = state.m[name], state.v[name]
    if transposed:
        m, v = m.T, v.T
    return {
        "step": torch.tensor(float(step)),
        "exp_avg": (m * factor).contiguous(),
        "exp_avg_sq": (v * factor**2).contiguous(),
    }


def autograd(task: Task, *, keep_memory: bool = False) -> dict:
    """What one would write first: autograd and torch's fused Adam, a dictionary at a time."""
    import torch

    from sparse_dict.machine import runtime

    if keep_memory:
        runtime.allocator()
    fed, members = Fed(task), []
    for config, state in zip(configs(task, "unused"), starts(task), strict=True):
        parameters = {name: p.requires_grad_() for name, p in state.params.items()}
        optimizer = torch.optim.Adam(list(parameters.values()), lr=1e-3, fused=True)
        if task.warm:
            for name, p in parameters.items():
                optimizer.state[p] = adam_state(task.warm, state, name)
        members.append((state.architecture, parameters, optimizer, torch.tensor(config.sae.l1)))
    clock = Clock()
    for x in fed.batches():
        for kind, p, optimizer, l1 in members:
            optimizer.zero_grad()
            kind.objective(p, x, x, {"l1": l1}).loss.backward()
            with torch.no_grad():
                W_dec = p["W_dec"]
                W_dec.grad -= (W_dec.grad * W_dec).sum(dim=1, keepdim=True) * W_dec
                optimizer.step()
                W_dec /= W_dec.norm(dim=1, keepdim=True)
    weights = [(p["W_enc"], p["b"], p["W_dec"]) for _, p, _, _ in members]
    return {**clock.read(), **fed.numbers(weights)}


def dictionary_learning(task: Task) -> dict:
    """`trainSAE` with `StandardTrainer`, whose loss is ours times the width.

    Its decoder's bias, which the post lacks, is kept at zero.
    """
    import torch
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.training import trainSAE

    fed, initial = Fed(task), starts(task)
    made: list[Any] = []

    class Same(StandardTrainer):
        """Theirs from our initial values."""

        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            state, ae = initial[len(made)], self.ae
            with torch.no_grad():
                ae.encoder.weight.copy_(state.W_enc)
                ae.decoder.weight.copy_(state.W_dec.T)
                ae.encoder.bias.copy_(state.b)
            ae.bias.requires_grad_(False)
            if task.warm:
                self.optimizer.state |= {
                    ae.encoder.weight: adam_state(task.warm, state, "W_enc", factor=task.width),
                    ae.decoder.weight: adam_state(
                        task.warm, state, "W_dec", factor=task.width, transposed=True
                    ),
                    ae.encoder.bias: adam_state(task.warm, state, "b", factor=task.width),
                }
            made.append(ae)

    trainers = [
        dict(
            trainer=Same, steps=task.steps, activation_dim=task.width, dict_size=c.sae.dict_size,
            layer=2, lm_name="x", lr=1e-3, l1_penalty=c.sae.l1 * task.width, warmup_steps=0,
            sparsity_warmup_steps=None, seed=SEED, device=task.device,
        )
        for c in configs(task, "unused")
    ]  # fmt: skip
    clock = Clock()
    trainSAE(fed.batches(), trainers, task.steps, device=task.device)
    wait_for(task.device)
    times = clock.read()
    weights = [(a.encoder.weight, a.encoder.bias, a.decoder.weight.T) for a in made]
    return {**times, **fed.numbers(weights)}


def sae_lens(task: Task) -> dict:
    """`MultiSAETrainer` with `StandardTrainingSAE`, brought to the same problem by its own hooks.

    It leaves decoder norms free and weights L1 by them; two hooks of its optimiser project the
    gradient and renormalise, as dictionary_learning does by itself. It clips gradients at norm 1,
    hard-coded: its loss is divided by the width, which Adam does not notice and which makes it
    ours, and hardly a gradient comes near 1 (`clipped` counts them). The hooks' time is taken off.
    """
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    class Divided(StandardTrainingSAE):
        """Theirs with its loss divided by the width."""

        def training_forward_pass(self, step_input: Any) -> Any:
            output = super().training_forward_pass(step_input)
            output.loss = output.loss / task.width
            return output

    fed, saes, initial = Fed(task), {}, starts(task)
    for i, (config, state) in enumerate(zip(configs(task, "unused"), initial, strict=True)):
        sae = Divided(
            StandardTrainingSAEConfig(
                d_in=task.width, d_sae=config.sae.dict_size,
                l1_coefficient=config.sae.l1 * task.width, apply_b_dec_to_input=False,
            )
        )  # fmt: skip
        with torch.no_grad():
            sae.W_enc.copy_(state.W_enc.T)
            sae.W_dec.copy_(state.W_dec)
            sae.b_enc.copy_(state.b)
            sae.b_dec.zero_()
        sae.b_dec.requires_grad_(False)
        saes[str(i)] = sae
    trainer = MultiSAETrainer(
        SAETrainerConfig(
            total_training_samples=task.steps * task.batch,
            train_batch_size_samples=task.batch, lr=1e-3, lr_end=1e-3, device=task.device,
        ),
        saes, {name: "x" for name in saes}, ({"x": batch} for batch in fed.batches()),
    )  # fmt: skip
    clock, clipped = Clock(), 0

    def hooks(sae: Any) -> tuple[Callable[..., None], Callable[..., None]]:
        @torch.no_grad()
        def project(*_: Any) -> None:
            nonlocal clipped
            with clock.taken_off():
                squares = sum(p.grad.square().sum() for p in (sae.W_enc, sae.b_enc, sae.W_dec))
                clipped = clipped + (squares > 0.99)  # a tensor: a GPU is not waited for
                grad = sae.W_dec.grad
                grad -= (grad * sae.W_dec).sum(dim=1, keepdim=True) * sae.W_dec

        @torch.no_grad()
        def renormalise(*_: Any) -> None:
            with clock.taken_off():
                sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)

        return project, renormalise

    for (name, sae), state in zip(saes.items(), initial, strict=True):
        optimizer = trainer.trainers[name].optimizer
        if task.warm:
            optimizer.state |= {
                sae.W_enc: adam_state(task.warm, state, "W_enc", transposed=True),
                sae.W_dec: adam_state(task.warm, state, "W_dec"),
                sae.b_enc: adam_state(task.warm, state, "b"),
            }
        project, renormalise = hooks(sae)
        optimizer.register_step_pre_hook(project)
        optimizer.register_step_post_hook(renormalise)
    clock = Clock()
    trainer.fit()
    wait_for(task.device)
    times = clock.read()
    weights = [(s.W_enc.T, s.b_enc, s.W_dec) for s in saes.values()]
    return {**times, "clipped": int(clipped), **fed.numbers(weights)}


CONTESTANTS: dict[str, Callable[[Task], dict]] = {
    "ours": ours,
    "ours, bf16 selection": lambda task: ours(task, precision="bf16"),
    # From the dense start: what `--warm` leaves is ReLU's.
    "ours, TopK": lambda task: ours(replace(task, start=None, warm=0), kind="topk", k=32),
    "ours, gated": lambda task: ours(replace(task, start=None, warm=0), kind="gated"),
    "ours, one thread": lambda task: ours(task, threads=1),
    "closed form, dense": lambda task: ours(task, dense=True),
    "ours, compiled": lambda task: ours(task, compiled=True),
    "ours, compiled, bf16": lambda task: ours(task, compiled=True, precision="bf16"),
    "autograd": autograd,
    "autograd, memory kept": lambda task: autograd(task, keep_memory=True),
    "dictionary_learning": dictionary_learning,
    "sae_lens": sae_lens,
    "floor": floor,
}
