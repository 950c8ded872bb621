"""One optimiser step of many dictionaries with dense products, on any device.

For GPUs, CPUs without a C compiler, and every kind that `kernel.c` does not have. Same interface
and same numbers, within rounding, as `step_cpu`. Dictionaries of one kind and size are stacked:
each product is one batched product and Adam a few operations on whole stacks, with what differs
between them (learning rate, penalty ...) as vectors. Gradients are written by hand where a
dictionary `is_fast`, else autograd computes those of `Architecture.objective`.

A step does not wait for the device, so that one thread keeps several GPUs busy. On a GPU the first
steps run as they are written, then the work of a whole step of all stacks is recorded as one CUDA
graph: starting hundreds of small kernels one by one takes longer than running them.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from sparse_dict.sae.loss import Numbers, Params, keep_largest, product
from sparse_dict.sae.schedule import Hyper
from sparse_dict.sae.state import FLOOR_DECAY, State, align, keep_aligned
from sparse_dict.storage.files import fingerprint

log = logging.getLogger(__name__)

# Features of one stack. Each of several intermediate results takes 4 bytes for each feature and
# row: 512 MiB with 65,536 and 2,048. On a CPU stacks of more features gain nothing and leave the
# cache.
MAX_FEATURES = 65_536
MAX_FEATURES_CPU = 1024

# Keys that dictionaries of one stack may differ in besides the numbers of their loss: they are read
# at the beginning alone, or in `schedule.py`.
OWN = {"init", "l1_scaling"}
ADAM = 5  # numbers of a step that are Adam's; those of the loss follow
BEFORE_CAPTURE = 3  # steps without a graph: libraries set themselves up in their first calls


class DenseStep:
    """Computes steps for a fixed list of dictionaries."""

    def __init__(
        self, states: list[State], *, compiled: bool = False, max_features: int | None = None
    ) -> None:
        self.states = states
        if max_features is None:
            on_cpu = states[0].b.device.type == "cpu"
            max_features = MAX_FEATURES_CPU if on_cpu else MAX_FEATURES
        self._indices = _grouped(states, max_features)  # of the dictionaries of each stack
        self._stacks = [_stacked([states[i] for i in indices]) for indices in self._indices]
        self._train = [train] * len(self._stacks)
        if compiled:
            # torch counts compilations for each function, and gives up after a few
            torch._dynamo.config.recompile_limit += len(self._stacks)
            # A whole graph or an error; exact shapes. Not in the mode that makes CUDA graphs: it
            # does not allow parameters to be written in place, as `_captured` does.
            quick = torch.compile(train, fullgraph=True, dynamic=False)
            self._train = [quick if stack.is_fast else train for stack in self._stacks]
        self._steps = 0
        self._captured: tuple[torch.cuda.CUDAGraph, list[Tensor]] | None = None  # what it reads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open; the method makes both steps interchangeable."""

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, hypers: Sequence[Hyper | None], seen: int) -> None:
        """As `SparseStep.__call__`; where the hyper is None, finite values stay what they are."""
        numbers = []
        for indices in self._indices:
            own = [_numbers(self.states[i], hypers[i]) for i in indices]
            numbers += [value for values in zip(*own, strict=True) for value in values]
        counts = [seen, min(self.states[0].dead_window, seen)]
        given = [
            x, y, _sent(numbers, torch.float32, x.device), _sent(counts, torch.int64, x.device)
        ]  # fmt: skip
        self._steps += 1
        if x.is_cuda and self._steps == BEFORE_CAPTURE + 1:
            self._capture(given)
        if self._captured is None:
            for call in self._work(*given):
                call()
            return
        graph, read = self._captured
        for place, new in dict(zip(read, given, strict=True)).items():  # y may be x itself
            place.copy_(new)
        graph.replay()

    def _work(
        self, x: Tensor, y: Tensor, numbers: Tensor, counts: Tensor
    ) -> list[Callable[[], None]]:
        rows = [ADAM + len(stack.architecture.numbers) for stack in self._stacks]
        sizes = [n * len(own) for n, own in zip(rows, self._indices, strict=True)]
        parts = [p.view(n, -1) for n, p in zip(rows, numbers.split(sizes), strict=True)]
        return [partial(self._step, i, x, y, part, counts) for i, part in enumerate(parts)]

    def _step(self, i: int, *given: Tensor) -> None:
        try:
            self._train[i](self._stacks[i], *given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if self._train[i] is train or self._steps > 1:
                raise
            log.warning("torch.compile failed, training without it: %s", str(error).split("\n")[0])
            self._train[i] = train
            train(self._stacks[i], *given)

    def _capture(self, given: list[Tensor]) -> None:
        """Record a step without making it, as one CUDA graph, or say why that cannot be done.

        It reads its inputs at fixed places. The stacks are branches of it, so that the kernels of
        small dictionaries share the device.
        """
        x, y, *rest = given
        read = [x.clone()]
        read += [read[0] if y is x else y.clone(), *(tensor.clone() for tensor in rest)]
        graph = torch.cuda.CUDAGraph()
        branches = [torch.cuda.Stream(x.device) for _ in self._stacks]
        try:
            # thread_local: the thread that reads ahead may go on copying and allocating
            with (
                torch.cuda.device(x.device),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                main = torch.cuda.current_stream()
                for call, branch in zip(self._work(*read), branches, strict=True):
                    branch.wait_stream(main)
                    with torch.cuda.stream(branch):
                        call()
                for branch in branches:
                    main.wait_stream(branch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("no CUDA graph, steps are slower: %s", str(error).split("\n")[0])
            return
        self._captured = graph, read


def _grouped(states: list[State], max_features: int) -> list[list[int]]:
    """Indices of dictionaries that one stack can hold: keys agree in all but `OWN` and numbers."""
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for i, state in enumerate(states):
        architecture = state.architecture
        keys = {key.name for key in fields(architecture.Config)}
        keys -= OWN.union(architecture.numbers)
        kind = {key: getattr(architecture.sae, key) for key in sorted(keys)}
        alike[fingerprint(kind), state.terms].append(i)
    groups = []
    for indices in alike.values():
        parts = -(-len(indices) // max(1, max_features // states[indices[0]].dict_size))
        size = -(-len(indices) // parts)  # even ones: fewer shapes to compile
        groups += [indices[start : start + size] for start in range(0, len(indices), size)]
    return groups


def _stacked(states: list[State]) -> State:
    """A state whose tensors have a leading axis of `states`, whose own become views of them."""
    stack = replace(states[0], params={}, m={}, v={})
    for group in ("params", "m", "v"):
        for name in getattr(states[0], group):
            whole = torch.stack([getattr(state, group)[name] for state in states])
            for holder, tensor in zip([stack, *states], [whole, *whole], strict=True):
                getattr(holder, group)[name] = tensor
    for name in ("last_fired", "sums", "batch_floor"):
        if getattr(states[0], name) is not None:
            whole = torch.stack([getattr(state, name) for state in states])
            for holder, tensor in zip([stack, *states], [whole, *whole], strict=True):
                setattr(holder, name, tensor)
    return stack


def _numbers(state: State, hyper: Hyper | None) -> list[float]:
    if hyper is None:  # nothing moves
        return [0.0, 1.0, 1.0, 0.0, 0.0, *([1.0] * len(state.architecture.numbers))]
    own = [hyper.numbers[name] for name in state.architecture.numbers]
    return [*hyper.corrected, hyper.eps, 1 - hyper.beta1, 1 - hyper.beta2, *own]


def _sent(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    host = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        host = host.pin_memory()  # a copy from other memory would wait
    return host.to(device, non_blocking=True)


@dataclass
class Gradients:
    """Gradients and sums of one batch for n stacked dictionaries."""

    of: Params  # by parameter, as large
    sums: tuple[Tensor, Tensor, Tensor]  # (n, batch) each: squared error, L1, active features
    fired: Tensor  # (n, dict_size) bool: active in some row
    floors: list[Tensor]  # BatchTopK: (n,) each, the smallest code of each selection


def train(stack: State, x: Tensor, y: Tensor, numbers: Tensor, counts: Tensor) -> None:
    """One step of n stacked dictionaries, in place, on x (batch, d_in) and y (batch, d_out).

    With `project_gradient` the decoder's gradient first loses its part along each feature (Bricken
    et al. 2023, "Towards Monosemanticity", appendix on the autoencoder's training). `numbers` (...,
    n) are `_numbers` of each; `counts` (2,) int64: rows seen, and after how many a feature is
    inactive.
    """
    seen, window = counts.unbind()
    sae = stack.architecture.sae
    inactive = seen - stack.last_fired >= window if sae.dead == "auxk" else None
    own = dict(zip(stack.architecture.numbers, numbers[ADAM:].unbind(), strict=True))
    gradients = closed_form if stack.is_fast else by_autograd
    g = gradients(stack, x, y, own, inactive)
    for i, rows in enumerate(g.sums):
        stack.sums[:, i].add_(rows.sum(dim=-1, dtype=stack.sums.dtype))
    stack.sums[:, 3].add_(len(x))
    aligned = sae.encoder_norm and not sae.tied
    if aligned:
        keep_aligned(stack.W_enc, stack.W_dec, g.of["W_enc"], g.of["W_dec"])
    if sae.project_gradient:
        along = (g.of["W_dec"] * stack.W_dec).sum(dim=-1, keepdim=True)
        g.of["W_dec"] = g.of["W_dec"] - along * stack.W_dec
    for name, gradient in g.of.items():
        _adam(stack.params[name], gradient, stack.m[name], stack.v[name], numbers[:ADAM])
    stack.W_dec.div_(stack.W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    if aligned:
        align(stack.W_enc, stack.W_dec)
    if stack.batch_floor is not None:
        for floor in g.floors:
            floor = floor[:, None]  # (n, 1)
            pace = torch.where(stack.batch_floor == 0, 1.0, 1 - FLOOR_DECAY)
            stack.batch_floor.add_((floor - stack.batch_floor) * pace)
    # not by masked_fill_, which fetches its value from a GPU
    stack.last_fired.copy_(torch.where(g.fired, seen, stack.last_fired))


def by_autograd(
    stack: State, x: Tensor, y: Tensor, numbers: Numbers, inactive: Tensor | None
) -> Gradients:
    """The gradients of `Architecture.objective`, of any kind."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in stack.params.items()}
    with torch.enable_grad():
        p = replace(stack, params=leaves).whole
        fit = stack.architecture.objective(p, x, y, numbers, inactive, stack.terms)
        found = torch.autograd.grad(fit.loss.sum(), list(leaves.values()))
    codes = fit.encoded.codes.detach()
    on = codes > 0
    return Gradients(
        of=dict(zip(leaves, found, strict=True)),
        sums=((fit.x_hat.detach() - y).square().sum(-1), codes.sum(-1), on.sum(-1)),
        fired=on.any(dim=1),
        floors=fit.encoded.floors,
    )


def closed_form(
    stack: State, x: Tensor, y: Tensor, numbers: Numbers, inactive: Tensor | None
) -> Gradients:
    """The same by formulas, for kinds whose code is z where it is active, and zero elsewhere."""
    sae, batch = stack.architecture.sae, len(x)
    c = {name: number[:, None, None] for name, number in numbers.items()}  # (n, 1, 1) each
    x = x.expand(len(stack.b), -1, -1)  # (n, batch, d_in)
    encoded = stack.architecture.encode(stack.whole, x)
    z, codes = encoded.z, encoded.codes  # (n, batch, dict_size)
    on = codes > 0
    residual = product(codes, stack.W_dec, sae.precision) - y
    if "b_dec" in stack.params:  # a transcoder's; it is not taken from the input
        residual = residual + stack.params["b_dec"][:, None]
    if (skipped := stack.architecture.skipped(stack.params, x)) is not None:
        residual = residual + skipped
    scale = 2 / y.numel()
    scaled = residual * scale
    g_recon = product(scaled, stack.W_dec.mT, sae.precision)  # (n, batch, dict_size)
    g_codes = (g_recon + c["l1"] / batch) * on
    g_dec = product(codes.mT, scaled, sae.precision)
    if inactive is not None:  # the gradients of `loss.auxiliary`, whose target is constant
        kept = keep_largest(z.relu() * inactive[:, None], sae.aux_k)
        error = product(kept, stack.W_dec, sae.precision) + residual
        error = c["aux_coefficient"] * scale * error
        g_codes = g_codes + product(error, stack.W_dec.mT, sae.precision) * (kept > 0)
        g_dec = g_dec + product(kept.mT, error, sae.precision)
    found = {"W_dec": g_dec, "b": g_codes.sum(dim=1)}
    if "b_dec" in stack.params:
        found["b_dec"] = scaled.sum(dim=1)
    if skipped is not None:
        found["W_skip"] = product(scaled.mT, x, sae.precision)
    if "log_threshold" in stack.params:
        threshold = stack.params["log_threshold"].exp()[:, None]  # (n, 1, dict_size)
        near = (z - threshold).abs() < c["bandwidth"] / 2
        pull = (threshold * g_recon + c["l0"] / batch) * near
        # d/d log t = t d/dt
        found["log_threshold"] = -pull.sum(dim=1) * (threshold / c["bandwidth"])[:, 0]
    g_enc = product(g_codes.mT, x, sae.precision)
    if sae.tied:
        found["W_dec"] = g_dec + g_enc
    else:
        found["W_enc"] = g_enc
    sums = residual.square().sum(dim=-1), codes.sum(dim=-1), on.sum(dim=-1)
    return Gradients(found, sums, on.any(dim=1), encoded.floors)


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> None:
    """Kingma and Ba (2015), algorithm 1, with eps where `torch.optim.Adam` has it."""
    each = numbers.view(len(numbers), -1, *[1] * (w.dim() - 1))
    lr, root, eps, first, second = each.unbind()  # corrected for bias; 1 - beta1, 1 - beta2
    m.lerp_(g, first)
    v.lerp_(g.square(), second)
    w -= lr * m / (v.sqrt() * root + eps)
