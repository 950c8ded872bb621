"""Cross-entropy of a linear layer's outputs without ever holding all the logits.

The gradients of a mean are known up to one factor as soon as the softmax is: they are computed in
the forward pass, by chunks of rows, on a CPU by a compiled loop (`loss_cpu.py`), elsewhere by
torch. `torch.nn.functional.linear_cross_entropy` does the same; on two cores, 4,096 rows of 32, it
takes 71 ms with 4,096 classes and 4.1 s with GPT-2's, this 60 ms and 1.6 s, the compiled loop 17 ms
and .6 s.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sparse_dict.lm import loss_cpu

CPU_ROWS = 512
GPU_ROWS = 2048  # fewer kernel launches; 400 MB of logits with GPT-2's vocabulary


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bf16: bool, rows: int | None
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        kernel = loss_cpu.kernel_for(hidden, bf16) if rows is None else None
        if kernel is not None:
            losses, d_hidden, d_weight = loss_cpu.cross_entropy(
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
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, bf16, rows)
    return loss
