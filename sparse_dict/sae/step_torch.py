"""One optimiser step of many dictionaries with dense products, on any device.

What a GPU uses, and a CPU without a C compiler. Same interface and same numbers, within rounding,
as `step_cpu`.
"""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sparse_dict.sae import dead_features
from sparse_dict.sae.codes import codes_of
from sparse_dict.sae.state import Hyper, State, Stats


class DenseStep:
    """Computes steps for a fixed list of dictionaries with closed-form gradients."""

    def __init__(self, states: list[State], d_in: int) -> None:
        self.states = states
        self.d_in = d_in

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
    def __call__(self, x: Tensor, hypers: list[Hyper | None], seen: int) -> list[Stats]:
        """As `SparseStep.__call__`."""
        return [
            Stats() if hyper is None else self._one(state, x, hyper, seen)
            for state, hyper in zip(self.states, hypers, strict=True)
        ]

    def _one(self, state: State, x: Tensor, hyper: Hyper, seen: int) -> Stats:
        z, codes, floors = codes_of(state, x)
        residual = codes @ state.W_dec - x  # (batch, width)
        on = codes > 0
        scaled = residual * (2 / (len(x) * self.d_in))
        g_recon = scaled @ state.W_dec.T  # (batch, dict_size)
        g_codes = (g_recon + hyper.penalty / len(x)) * on
        g_dec, g_enc, g_b = codes.T @ scaled, g_codes.T @ x, g_codes.sum(dim=0)
        sums = Stats(float(residual.square().sum()), float(codes.sum()), int(on.sum()), len(x))
        if state.sae.dead == "auxk":
            dead = state.dead(seen)
            aux_enc, aux_dec, aux_b = dead_features.auxiliary_gradients(state, x, dead, self.d_in)
            g_enc[dead] += aux_enc
            g_dec[dead] += aux_dec
            g_b[dead] += aux_b
        if state.log_threshold is not None:
            assert state.m_threshold is not None
            assert state.v_threshold is not None
            threshold = state.log_threshold.exp()
            near = (z - threshold).abs() < state.sae.bandwidth / 2
            pull = (threshold * g_recon + hyper.l0 / len(x)) * near
            g = -pull.sum(dim=0) / state.sae.bandwidth * threshold  # d/d log t = t d/dt
            _adam(state.log_threshold, g, state.m_threshold, state.v_threshold, hyper)
        if state.sae.tied:
            g_dec += g_enc
        else:
            _adam(state.W_enc, g_enc, state.m_enc, state.v_enc, hyper)
        if state.sae.project_gradient:
            g_dec -= (g_dec * state.W_dec).sum(dim=1, keepdim=True) * state.W_dec
        _adam(state.W_dec, g_dec, state.m_dec, state.v_dec, hyper)
        _adam(state.b, g_b, state.m_b, state.v_b, hyper)
        state.W_dec /= state.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
        state.follow_floors(floors)
        state.last_fired[on.any(dim=0)] = seen
        if state.sae.dead == "resample" and hyper.step % state.sae.resample_every == 0:
            dead_features.resample(state, x, state.dead(seen), hyper.step)
        return sums


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, hyper: Hyper) -> None:
    """Kingma and Ba (2015), algorithm 1, with eps where `torch.optim.Adam` has it."""
    m.lerp_(g, 1 - hyper.beta1)
    v.mul_(hyper.beta2).addcmul_(g, g, value=1 - hyper.beta2)
    root = v.sqrt().div_((1 - hyper.beta2**hyper.step) ** 0.5).add_(hyper.eps)
    w.addcdiv_(m, root, value=-hyper.lr / (1 - hyper.beta1**hyper.step))
