"""One optimiser step of many dictionaries with dense products, on any device.

What a GPU uses, and a CPU without a C compiler. Same interface and same numbers, within rounding,
as `step_cpu`.
"""

from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sparse_dict.sae.state import Hyper, State, Stats


class DenseStep:
    """Computes steps for a fixed list of dictionaries with closed-form gradients."""

    def __init__(self, states: list[State], d_in: int, bf16: list[bool]) -> None:
        self.states = states
        self.d_in = d_in
        self.bf16 = bf16

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    @torch.no_grad()
    def __call__(
        self, x: Tensor, hypers: list[Hyper | None], seen: int, project: list[bool]
    ) -> list[Stats]:
        """As `SparseStep.__call__`."""
        low = x.bfloat16() if any(self.bf16) else None
        return [
            Stats() if hyper is None else self._one(i, x, low, hyper, seen, project[i])
            for i, hyper in enumerate(hypers)
        ]

    def _one(
        self, i: int, x: Tensor, low: Tensor | None, hyper: Hyper, seen: int, project: bool
    ) -> Stats:
        state = self.states[i]
        if low is not None and self.bf16[i]:
            # Only the encoder's product is rounded: it decides most of who is active.
            z = (low @ state.W_enc.T.bfloat16()).float() + state.b
        else:
            z = x @ state.W_enc.T + state.b  # (batch, dict_size)
        codes = z.relu()
        residual = codes @ state.W_dec - x  # (batch, width)
        on = codes > 0
        scaled = residual * (2 / (len(x) * self.d_in))
        g_codes = (scaled @ state.W_dec.T + hyper.penalty / len(x)) * on
        g_dec = codes.T @ scaled
        g_enc = g_codes.T @ x
        sums = Stats(float(residual.square().sum()), float(codes.sum()), int(on.sum()), len(x))
        if state.tied:
            g_dec += g_enc
        else:
            _adam(state.W_enc, g_enc, state.m_enc, state.v_enc, hyper)
        if project:
            g_dec -= (g_dec * state.W_dec).sum(dim=1, keepdim=True) * state.W_dec
        _adam(state.W_dec, g_dec, state.m_dec, state.v_dec, hyper)
        _adam(state.b, g_codes.sum(dim=0), state.m_b, state.v_b, hyper)
        state.W_dec /= state.W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)
        state.last_fired[on.any(dim=0)] = seen
        return sums


def _adam(w: Tensor, g: Tensor, m: Tensor, v: Tensor, hyper: Hyper) -> None:
    """Kingma and Ba (2015), algorithm 1, with eps where `torch.optim.Adam` has it."""
    m.lerp_(g, 1 - hyper.beta1)
    v.mul_(hyper.beta2).addcmul_(g, g, value=1 - hyper.beta2)
    root = v.sqrt().div_((1 - hyper.beta2**hyper.step) ** 0.5).add_(hyper.eps)
    w.addcdiv_(m, root, value=-hyper.lr / (1 - hyper.beta1**hyper.step))
