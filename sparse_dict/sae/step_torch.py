"""One optimiser step of many dictionaries with dense products, on any device.

What a GPU uses, and a CPU without a C compiler. Same interface and same numbers, within rounding,
as `step_cpu`. Dictionaries of one kind are stacked: each product is one batched product and Adam a
few operations on whole stacks, with what differs between members (learning rate, penalty ...) as
vectors. Other sizes are other stacks, so nothing is padded.

A step does not wait for the device (a resampling does), so that one thread keeps several GPUs
busy; sums stay there until they are asked for.
"""

import copy
import logging
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from sparse_dict.sae import dead_features
from sparse_dict.sae.codes import codes_of, product
from sparse_dict.sae.state import FLOOR_DECAY, Hyper, State

log = logging.getLogger(__name__)

# Features of one stack. Each of several intermediate results takes 4 bytes for each feature and
# row: 512 MiB with 65,536 and 2,048 (a guess, never tried on a GPU). On a CPU stacks of more
# features gain nothing and leave the cache.
MAX_FEATURES = 65_536
MAX_FEATURES_CPU = 1024

IDLE = [0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]  # `_numbers` with which nothing moves


class DenseStep:
    """Computes steps for a fixed list of dictionaries with closed-form gradients."""

    def __init__(
        self,
        states: list[State],
        d_in: int,
        *,
        compiled: bool = False,
        max_features: int | None = None,
    ) -> None:
        """Stack `states`; their tensors become parts of the stacks'.

        Args:
            states: dictionaries on one device.
            d_in: columns that are not padding.
            compiled: use `torch.compile`, which takes tens of seconds for each stack.
            max_features: of one stack, unless a single dictionary has more.
        """
        self.states = states
        if max_features is None:
            on_cpu = states[0].b.device.type == "cpu"
            max_features = MAX_FEATURES_CPU if on_cpu else MAX_FEATURES
        self.groups = [
            (indices, _Group([states[i] for i in indices], d_in, compiled))
            for indices in _grouped(states, max_features)
        ]

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
    def __call__(self, x: Tensor, hypers: list[Hyper | None], seen: int) -> None:
        """As `SparseStep.__call__`, but a dictionary without a hyper may change, if not finite."""
        for indices, group in self.groups:
            own = [hypers[i] for i in indices]
            if any(own):
                group.step(x, own, seen)


def _grouped(states: list[State], max_features: int) -> list[list[int]]:
    """Indices of dictionaries that one stack can hold."""
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, state in enumerate(states):
        s = state.sae
        kind = s.activation, s.k, s.tied, s.dead, s.aux_k, s.precision, s.project_gradient
        alike[state.dict_size, *kind].append(i)
    groups = []
    for (dict_size, *_), indices in alike.items():
        parts = -(-len(indices) // max(1, max_features // dict_size))
        size = -(-len(indices) // parts)  # even ones: fewer shapes to compile
        groups += [indices[start : start + size] for start in range(0, len(indices), size)]
    return groups


class _Group:
    """Dictionaries of one kind, stacked."""

    def __init__(self, states: list[State], d_in: int, compiled: bool) -> None:
        self.states = states
        self.stack = _stacked(states)
        self.d_in = d_in
        self._train: Any = train
        self._unproven = compiled
        if compiled:
            # torch counts compilations for each function, and gives up after a few
            torch._dynamo.config.recompile_limit += 1
            # A whole graph or an error; exact shapes. No CUDA graphs: the parameters are written
            # to in place, and only torch's private functions can promise that they stay put.
            self._train = torch.compile(train, fullgraph=True, dynamic=False)

    def step(self, x: Tensor, hypers: list[Hyper | None], seen: int) -> None:
        """As `DenseStep.__call__`."""
        device = x.device
        numbers = [_numbers(s, h) for s, h in zip(self.states, hypers, strict=True)]
        counts = [seen, min(self.states[0].dead_window, seen)]
        given = (
            self.stack, x, _sent(numbers, torch.float32, device).T.contiguous(),
            _sent(counts, torch.int64, device), self.d_in,
        )  # fmt: skip
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
        for state, hyper in zip(self.states, hypers, strict=True):
            every = state.sae.resample_every
            if hyper and state.sae.dead == "resample" and hyper.step % every == 0:
                dead_features.resample(state, x, state.dead(seen), hyper.step)


def _stacked(states: list[State]) -> State:
    """A state whose tensors have a leading axis of `states`, whose own become views of them."""
    stack = copy.copy(states[0])
    for name in [*stack.tensors(), "sums"]:
        whole = torch.stack([getattr(state, name) for state in states])
        for holder, tensor in zip([stack, *states], [whole, *whole], strict=True):
            holder.hold({name: tensor})
    return stack


def _numbers(state: State, hyper: Hyper | None) -> list[float]:
    """What `train` needs to know of one dictionary."""
    if hyper is None:
        return IDLE
    lr = hyper.lr / (1 - hyper.beta1**hyper.step)
    root = (1 - hyper.beta2**hyper.step) ** -0.5
    sae = state.sae
    return [
        lr, root, hyper.eps, 1 - hyper.beta1, 1 - hyper.beta2,
        hyper.penalty, hyper.l0, sae.bandwidth, sae.aux_coefficient,
    ]  # fmt: skip


def _sent(values: list[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values` on `device`, without waiting for what it is busy with."""
    host = torch.tensor(values, dtype=dtype)
    if device.type == "cuda":
        host = host.pin_memory()  # a copy from other memory would wait
    return host.to(device, non_blocking=True)


def train(stack: State, x: Tensor, numbers: Tensor, counts: Tensor, d_in: int) -> None:
    """One step of n stacked dictionaries, in place.

    With `project_gradient` the decoder's gradient first loses its part along each feature
    (Bricken et al. 2023, "Towards Monosemanticity", appendix on the autoencoder's training).

    Args:
        stack: as `_stacked` gives it.
        x: (batch, width), scaled.
        numbers: (9, n) float32, `_numbers` of each.
        counts: (2,) int64: rows seen with this batch, and after how many a feature is dead.
        d_in: columns of `x` that are not padding.
    """
    adam = numbers[:5]
    penalty, l0, bandwidth, aux = numbers[5:, :, None, None].unbind()  # (n, 1, 1) each
    seen, window = counts.unbind()
    batch, precision = len(x), stack.sae.precision
    x = x.expand(len(stack.b), -1, -1)  # (n, batch, width)
    z, codes, floors = codes_of(stack, x)
    on = codes > 0
    residual = product(codes, stack.W_dec, precision) - x
    sums = residual.square().sum(dim=-1), codes.sum(dim=-1), on.sum(dim=-1)  # (n, batch) each
    for i, rows in enumerate(sums):
        stack.sums[:, i].add_(rows.sum(dim=-1, dtype=stack.sums.dtype))
    stack.sums[:, 3].add_(batch)
    scaled = residual * (2 / (batch * d_in))
    g_recon = product(scaled, stack.W_dec.mT, precision)  # (n, batch, dict_size)
    g_codes = (g_recon + penalty / batch) * on
    g_dec = product(codes.mT, scaled, precision)
    if stack.sae.dead == "auxk":
        dead = seen - stack.last_fired >= window
        weight = aux * (2 / (batch * d_in))
        aux_codes, g_aux, g_out = dead_features.auxiliary_codes(stack, z, residual, dead, weight)
        g_codes = g_codes + g_aux
        g_dec = g_dec + product(aux_codes.mT, g_out, precision)
    if stack.log_threshold is not None:
        assert stack.m_threshold is not None
        assert stack.v_threshold is not None
        threshold = stack.log_threshold.exp()[:, None]  # (n, 1, dict_size)
        near = (z - threshold).abs() < bandwidth / 2
        pull = (threshold * g_recon + l0 / batch) * near
        g = -pull.sum(dim=1) * (threshold / bandwidth)[:, 0]  # d/d log t = t d/dt
        _adam(stack.log_threshold, g, stack.m_threshold, stack.v_threshold, adam)
    g_enc = product(g_codes.mT, x, precision)
    if stack.sae.tied:
        g_dec = g_dec + g_enc
    else:
        _adam(stack.W_enc, g_enc, stack.m_enc, stack.v_enc, adam)
    if stack.sae.project_gradient:
        g_dec = g_dec - (g_dec * stack.W_dec).sum(dim=-1, keepdim=True) * stack.W_dec
    _adam(stack.W_dec, g_dec, stack.m_dec, stack.v_dec, adam)
    _adam(stack.b, g_codes.sum(dim=1), stack.m_b, stack.v_b, adam)
    stack.W_dec.div_(stack.W_dec.norm(dim=-1, keepdim=True).clamp(min=1e-12))
    if stack.batch_floor is not None:
        for floor in floors:
            floor = floor[:, None]  # (n, 1)
            pace = torch.where(stack.batch_floor == 0, 1.0, 1 - FLOOR_DECAY)
            stack.batch_floor.add_((floor - stack.batch_floor) * pace)
    # not by masked_fill_, which fetches its value from a GPU
    stack.last_fired.copy_(torch.where(on.any(dim=1), seen, stack.last_fired))


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, numbers: Tensor) -> None:
    """Kingma and Ba (2015), algorithm 1, with eps where `torch.optim.Adam` has it."""
    each = numbers.view(len(numbers), -1, *[1] * (w.dim() - 1))
    lr, root, eps, first, second = each.unbind()  # corrected for bias; one less beta1, beta2
    m.lerp_(g, first)
    v.lerp_(g.square(), second)
    w -= lr * m / (v.sqrt() * root + eps)
