"""Cross-entropy of a linear layer's outputs without ever holding all the logits.

The gradients of a mean are known up to one factor as soon as the softmax is: they are computed in
the forward pass, by chunks of rows, on a CPU by a compiled loop (`loss.c`), elsewhere by
torch. `torch.nn.functional.linear_cross_entropy` does the same; on two cores, 4,096 rows of 32, it
takes 71 ms with 4,096 classes and 4.1 s with GPT-2's, this 60 ms and 1.6 s, the compiled loop 17 ms
and .6 s.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def kernel_for(hidden: Tensor, bf16: bool) -> ctypes.CDLL | None:
    """The kernel that takes `hidden` (n, d), or None where torch has to do it."""
    fits = hidden.device.type == "cpu" and hidden.dtype == torch.float32
    if not fits or hidden.shape[1] > MAX_WIDTH:
        return None
    # without products of the processor's own, float32 is no slower
    return load(hidden.shape[1], bf16 and "avx512_bf16" in compiled.cpu())


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
    parts: Any = torch.empty(count, tiles * TILE * padded) if wants_weight else [None] * count
    kept: Any = torch.empty(count, tiles * TILE * CHUNK) if wants_weight else [None] * count

    def share(things: int, part: int) -> tuple[int, int]:
        return threads.share(things, part, count)

    def pack(part: int) -> None:
        kernel.pack(weight, v, *share(tiles, part), by_class, by_column)
        if wants_weight:
            parts[part].zero_()

    def rows(part: int) -> None:
        first, last = (min(CHUNK * at, n) for at in share(-(-n // CHUNK), part))
        kernel.cross_entropy(
            hidden, targets, weight, by_class, by_column, v, n, first, last, losses, d_hidden,
            parts[part], kept[part],
        )  # fmt: skip

    def add(part: int) -> None:
        kernel.add_parts(parts, count, v, *share(v, part), d_weight)

    for work in (pack, rows, *([add] if wants_weight else [])):
        threads.each(work, count)
    return losses, d_hidden, d_weight


CPU_ROWS = 512
GPU_ROWS = 2048  # fewer kernel launches; 400 MB of logits with GPT-2's vocabulary


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bf16: bool, rows: int | None
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        kernel = kernel_for(hidden, bf16) if rows is None else None
        if kernel is not None:
            losses, d_hidden, d_weight = cross_entropy(
                kernel, hidden.detach(), weight.detach(), targets, wants_hidden, wants_weight
            )
            ctx.save_for_backward(d_hidden, d_weight)
            return losses.mean()
        if rows is None:
            rows = CPU_ROWS if hidden.device.type == "cpu" else GPU_ROWS
        n, v = len(hidden), len(weight)
        product = torch.bfloat16 if bf16 else hidden.dtype
        h = hidden.detach().to(product)  # (n, d)
        w = weight.detach().to(product)  # (v, d)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight) if wants_weight else None
        losses = hidden.new_empty(n)
        buffer = hidden.new_empty(min(rows, n), v)
        for start in range(0, n, rows):
            chunk = slice(start, min(start + rows, n))
            h_c, t_c = h[chunk], targets[chunk]
            logits = buffer[: len(h_c)]  # (rows, v)
            if bf16:
                logits.copy_(h_c @ w.T)
            else:
                torch.mm(h_c, w.T, out=logits)
            of_target = logits.gather(1, t_c[:, None])  # (rows, 1)
            top = logits.amax(1, keepdim=True)
            exp = logits.sub_(top).exp_()
            total = exp.sum(1, keepdim=True)
            losses[chunk] = (total.log() + top - of_target).squeeze(1)
            # d loss / d logits = exp / total - onehot(target): the division goes to the narrow
            # factor of each product and the one-hot becomes a row lookup, which spares two passes.
            scale = 1 / (n * total)
            exp = exp.to(product)
            if d_hidden is not None:
                d_hidden[chunk] = (exp @ w) * scale - weight.detach()[t_c] / n
            if d_weight is not None:
                h_full = hidden.detach()[chunk]
                d_weight += exp.T @ (h_full * scale).to(product)
                d_weight.index_add_(0, t_c, h_full, alpha=-1 / n)
        ctx.save_for_backward(d_hidden, d_weight)
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * d_loss,
            None if d_weight is None else d_weight * d_loss,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bf16: bool = False, rows: int | None = None
) -> Tensor:
    """Mean cross-entropy in nats of ``softmax(hidden @ weight.T)``.

    Of hidden (n, d), weight (n_vocab, d) and targets (n,) int64. `bf16` takes the three products in
    bfloat16, but not sums. torch computes it in chunks of `rows`; None takes what suits the device.
    """
    if not torch.is_grad_enabled():
        hidden, weight = hidden.detach(), weight.detach()  # else `forward` would compute gradients
    return _LinearCrossEntropy.apply(hidden, weight, targets, bf16, rows)


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of each row in nats, (n,), of which no gradient is taken."""
    if (kernel := kernel_for(hidden, False)) is not None:
        return cross_entropy(kernel, hidden, weight, targets, False, False)[0]
    rows = CPU_ROWS if hidden.device.type == "cpu" else GPU_ROWS
    parts = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([F.cross_entropy(h @ weight.T, t, reduction="none") for h, t in parts])
