"""Causal self-attention: torch's, or on a CPU with narrow heads a compiled loop (`attention.c`)."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dict.machine import compiled, threads

SOURCE = Path(__file__).with_name("attention.c")
MAX_WIDTH = 16  # of a head; columns of wider ones do not fit into registers


@cache
def _kernel(width: int) -> ctypes.CDLL | None:
    functions = {"forward": "pnnnnpp", "backward": "ppppnnnnpp"}
    return compiled.library(SOURCE, [*compiled.EXACT, f"-DD={width}"], **functions)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, kernel: ctypes.CDLL) -> Tensor:
        b, n, _, heads, width = qkv.shape
        y = qkv.new_empty(b, n, heads, width)
        norm = qkv.new_empty(b, heads, n)
        parts = threads.number(b * heads)

        def task(part: int) -> None:
            kernel.forward(qkv, n, heads, *threads.share(b * heads, part, parts), y, norm)

        threads.each(task, parts)
        ctx.kernel = kernel
        ctx.save_for_backward(qkv, y, norm)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        qkv, y, norm = ctx.saved_tensors
        b, n, _, heads, _ = qkv.shape
        dy = dy.contiguous()
        dqkv = torch.empty_like(qkv)
        parts = threads.number(b * heads)
        scratch = qkv.new_empty(parts, n)

        def task(part: int) -> None:
            own = threads.share(b * heads, part, parts)
            ctx.kernel.backward(qkv, y, norm, dy, n, heads, *own, scratch[part], dqkv)

        threads.each(task, parts)
        return dqkv, None


def causal(qkv: Tensor) -> Tensor:
    """What each head reads from the positions up to its own, (batch, n_ctx, heads, d_head).

    Of queries, keys and values: `qkv` (batch, n_ctx, 3, heads, d_head).
    """
    fits = qkv.device.type == "cpu" and qkv.dtype == torch.float32 and qkv.shape[-1] <= MAX_WIDTH
    kernel = _kernel(qkv.shape[-1]) if fits else None
    if kernel is not None:
        return _Attention.apply(qkv.contiguous(), kernel)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, n_ctx, d_head)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
