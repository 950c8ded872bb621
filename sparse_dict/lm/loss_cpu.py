"""The cross-entropy of `loss.py` by a compiled loop (`loss.c`)."""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from sparse_dict.machine import compiled, threads

SOURCE = Path(__file__).with_name("loss.c")
MAX_WIDTH = 128  # of wider rows the products take most of the time, and BLAS is best at those
TILE = 64  # classes, as in loss.c
CHUNK = 64  # rows, as in loss.c
LANES = 16


@cache
def load(width: int, bf16: bool) -> ctypes.CDLL | None:
    """The kernel for rows of `width` numbers, or None where there is no C compiler."""
    flags = [*compiled.EXACT, f"-DD={width}", f"-DBF16={int(bf16)}"]
    functions = {"pack": "pnnnpp", "cross_entropy": "pppppnnnnpppp", "add_parts": "pnnnnp"}
    return compiled.library(SOURCE, flags, **functions)


@cache
def _bf16_products() -> bool:
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def kernel_for(hidden: Tensor, bf16: bool) -> ctypes.CDLL | None:
    """The kernel that takes `hidden` (n, d), or None where torch has to do it.

    Without bfloat16 products in the processor, `bf16` is computed in float32, which is no slower.
    """
    fits = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    if not fits or hidden.shape[1] > MAX_WIDTH:
        return None
    return load(hidden.shape[1], bf16 and _bf16_products())


def cross_entropy(
    kernel: ctypes.CDLL,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Losses (n,), and the gradients of their mean for hidden (n, d) and weight (n_vocab, d).

    As many threads as torch would use, each with rows and a sum of its own: the results depend on
    that number alone, in the last digits.
    """
    (n, d), v = hidden.shape, len(weight)
    if n and not 0 <= int(targets.min()) <= int(targets.max()) < v:
        raise IndexError(f"a target is not one of the {v} classes")
    hidden, weight, targets = hidden.contiguous(), weight.contiguous(), targets.contiguous()
    tiles, padded = -(-v // TILE), -(-d // LANES) * LANES
    count = threads.number(-(-n // CHUNK))
    by_class = torch.empty(tiles * TILE * padded)  # half of it is used by bfloat16
    by_column = torch.empty_like(by_class)
    losses = torch.empty(n)
    d_hidden = torch.empty_like(hidden) if wants_hidden else None
    d_weight = torch.empty_like(weight) if wants_weight else None
    parts = torch.empty(count, tiles * TILE * padded) if wants_weight else None
    kept = torch.empty(count, tiles * TILE * CHUNK) if wants_weight else None

    def share(things: int, part: int) -> tuple[int, int]:
        return threads.share(things, part, count)

    def pack(part: int) -> None:
        kernel.pack(
            weight.data_ptr(), v, *share(tiles, part), by_class.data_ptr(), by_column.data_ptr()
        )
        if parts is not None:
            parts[part].zero_()

    def rows(part: int) -> None:
        first, last = (min(CHUNK * at, n) for at in share(-(-n // CHUNK), part))
        kernel.cross_entropy(
            hidden.data_ptr(), targets.data_ptr(), weight.data_ptr(), by_class.data_ptr(),
            by_column.data_ptr(), v, n, first, last, losses.data_ptr(),
            None if d_hidden is None else d_hidden.data_ptr(),
            None if parts is None else parts[part].data_ptr(),
            None if kept is None else kept[part].data_ptr(),
        )  # fmt: skip

    def add(part: int) -> None:
        if parts is not None and d_weight is not None:
            kernel.add_parts(parts.data_ptr(), count, v, *share(v, part), d_weight.data_ptr())

    threads.each(pack, count)
    threads.each(rows, count)
    threads.each(add, count)
    return losses, d_hidden, d_weight
