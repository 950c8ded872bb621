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
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from sparse_dict.sae.codes import keep_largest, product
from sparse_dict.sae.loss import Numbers, Params
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
        self,
        states: list[State],
        *,
        compiled: bool = False,
        max_features: int | None = None,
    ) -> None:
        """Stack `states`, all on one device; their tensors become parts of the stacks'.

        `compiled` uses `torch.compile`, tens of seconds for each stack, which has at most
        `max_features` unless a single dictionary has more.
        """
        self.states = states
        if max_features is None:
            on_cpu = states[0].b.device.type == "cpu"
            max_features = MAX_FEATURES_CPU if on_cpu else MAX_FEATURES
        self.groups = [
            (indices, _Group([states[i] for i in indices], compiled))
            for indices in _grouped(states, max_features)
        ]
        self._steps = 0
        self._captured: _Captured | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held open; the method makes both steps interchangeable."""

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, hypers: Sequence[Hyper | None], seen: int) -> None:
        """As `SparseStep.__call__`; where the hyper is None, finite values stay what they are."""
        given = _Given.of(x, y, self.groups, hypers, seen)
        self._steps += 1
        if x.is_cuda and self._steps == BEFORE_CAPTURE + 1:
            self._captured = _Captured.of(self.groups, given)
        if self._captured is not None:
            self._captured.replay(given)
        else:
            for (_, group), numbers in zip(self.groups, given.by_group(self.groups), strict=True):
                group.train(given.x, given.y, numbers, given.counts)


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


class _Group:
    """Dictionaries of one kind, stacked."""

    def __init__(self, states: list[State], compiled: bool) -> None:
        self.states = states
        self.stack = _stacked(states)
        self._train: Any = train
        self._unproven = compiled and self.stack.is_fast
        if self._unproven:
            # torch counts compilations for each function, and gives up after a few
            torch._dynamo.config.recompile_limit += 1
            # A whole graph or an error; exact shapes. Not in the mode that makes CUDA graphs: it
            # does not allow parameters to be written in place, as `_Captured` does.
            self._train = torch.compile(train, fullgraph=True, dynamic=False)

    def train(self, x: Tensor, y: Tensor, numbers: Tensor, counts: Tensor) -> None:
        """One step, as the function `train`."""
        given = (self.stack, x, y, numbers, counts)
        try:
            self._train(*given)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not self._unproven:
                raise
            log.warning("torch.compile failed, training without it: %s", str(error).split("\n")[0])
            self._train = train
            self._train(*given)
        self._unproven = False


@dataclass
class _Given:
    """What a step is given, on the device."""

    x: Tensor  # (batch, d_in), scaled
    y: Tensor  # (batch, d_out) what is reconstructed; the same one, but for transcoders
    numbers: Tensor  # float32, flat: `_numbers` of all dictionaries, stack after stack
    counts: Tensor  # (2,) int64, as `train` takes them

    @classmethod
    def of(
        cls,
        x: Tensor,
        y: Tensor,
        groups: list[tuple[list[int], _Group]],
        hypers: Sequence[Hyper | None],
        seen: int,
    ) -> Self:
        """Send the numbers of a step, two small copies in all, to the device of `x`."""
        numbers: list[float] = []
        for indices, group in groups:
            own = [_numbers(s, hypers[i]) for i, s in zip(indices, group.states, strict=True)]
            numbers += [value for values in zip(*own, strict=True) for value in values]
        counts = [seen, min(groups[0][1].stack.dead_window, seen)]
        device = x.device
        return cls(x, y, _sent(numbers, torch.float32, device), _sent(counts, torch.int64, device))

    def by_group(self, groups: list[tuple[list[int], _Group]]) -> list[Tensor]:
        """The numbers of each stack, (numbers, n)."""
        counts = [len(indices) for indices, _ in groups]
        lengths = [ADAM + len(group.stack.architecture.numbers) for _, group in groups]
        sizes = [count * length for count, length in zip(counts, lengths, strict=True)]
        parts = self.numbers.split(sizes)
        return [part.view(-1, count) for part, count in zip(parts, counts, strict=True)]


class _Captured:
    """A step of all stacks as one CUDA graph, which reads its inputs at fixed places.

    The stacks are branches of it, so that the kernels of small dictionaries share the device.
    """

    def __init__(self, graph: torch.cuda.CUDAGraph, inputs: _Given) -> None:
        self._graph, self._inputs = graph, inputs

    @classmethod
    def of(cls, groups: list[tuple[list[int], _Group]], given: _Given) -> Self | None:
        """Record a step without making it, or say in a line why that cannot be done."""
        x = given.x.clone()
        y = x if given.y is given.x else given.y.clone()
        inputs = _Given(x, y, given.numbers.clone(), given.counts.clone())
        graph = torch.cuda.CUDAGraph()
        branches = [torch.cuda.Stream(given.x.device) for _ in groups]
        try:
            # thread_local: the thread that reads ahead may go on copying and allocating
            with (
                torch.cuda.device(given.x.device),
                torch.cuda.graph(graph, capture_error_mode="thread_local"),
            ):
                main = torch.cuda.current_stream()
                by_group = zip(groups, inputs.by_group(groups), branches, strict=True)
                for (_, group), numbers, branch in by_group:
                    branch.wait_stream(main)
                    with torch.cuda.stream(branch):
                        group.train(inputs.x, inputs.y, numbers, inputs.counts)
                for branch in branches:
                    main.wait_stream(branch)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning("no CUDA graph, steps are slower: %s", str(error).split("\n")[0])
            return None
        return cls(graph, inputs)

    def replay(self, given: _Given) -> None:
        """Make the step."""
        self._inputs.x.copy_(given.x)
        if given.y is not given.x:
            self._inputs.y.copy_(given.y)
        self._inputs.numbers.copy_(given.numbers)
        self._inputs.counts.copy_(given.counts)
        self._graph.replay()


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
    """What `train` needs to know of one dictionary: Adam's numbers, then those of its loss."""
    if hyper is None:  # nothing moves
        return [0.0, 1.0, 1.0, 0.0, 0.0, *([1.0] * len(state.architecture.numbers))]
    own = [hyper.numbers[name] for name in state.architecture.numbers]
    return [*hyper.corrected, hyper.eps, 1 - hyper.beta1, 1 - hyper.beta2, *own]


def _sent(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` on `device`, without waiting for what it is busy with."""
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
