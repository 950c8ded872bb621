"""GELU (tanh form): torch's, or on a CPU a compiled loop (`gelu.c`): tanh is slow there."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dict import compiled
from sparse_dict.lm import threads

SOURCE = Path(__file__).with_name("gelu.c")
LEAST = 1 << 16  # elements worth a thread

_ARRAY: Any = ctypes.c_void_p
_INT: Any = ctypes.c_int64


@cache
def _kernel() -> ctypes.CDLL | None:
    kernel = compiled.library(SOURCE, compiled.EXACT)
    if kernel is not None:
        kernel.forward.argtypes = [_ARRAY, _INT, _INT, _ARRAY]
        kernel.forward.restype = None
        kernel.backward.argtypes = [_ARRAY, _ARRAY, _INT, _INT, _ARRAY]
        kernel.backward.restype = None
    return kernel


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: ctypes.CDLL) -> Tensor:
        y = torch.empty_like(x)
        parts = threads.number(-(-x.numel() // LEAST))

        def task(part: int) -> None:
            span = threads.share(x.numel(), part, parts)
            kernel.forward(x.data_ptr(), *span, y.data_ptr())

        threads.each(task, parts)
        ctx.kernel = kernel
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        dy = dy.contiguous()
        dx = torch.empty_like(x)
        parts = threads.number(-(-x.numel() // LEAST))

        def task(part: int) -> None:
            span = threads.share(x.numel(), part, parts)
            ctx.kernel.backward(x.data_ptr(), dy.data_ptr(), *span, dx.data_ptr())

        threads.each(task, parts)
        return dx, None


def gelu(x: Tensor) -> Tensor:
    """Element by element."""
    kernel = _kernel() if x.device.type == "cpu" and x.dtype == torch.float32 else None
    if kernel is None:
        return F.gelu(x, approximate="tanh")
    y: Tensor = _Gelu.apply(x.contiguous(), kernel)
    return y
