"""What a norm does to a direction."""

import copy

import torch
from torch import Tensor, nn

SMALL = 1e-3  # RMS of the rows that a norm is tried on, in units of its sqrt(eps)


def without_division(norm: nn.Module, rows: Tensor) -> Tensor:
    """What a norm of any kind does to `rows` (n, d_model), but for its division.

    That is its gain, and its centring if it has any. It is applied to rows so small that the norm
    divides by sqrt(eps) alone.
    """
    norm = copy.deepcopy(norm).double().cpu()
    eps = next(getattr(norm, name) for name in ("eps", "variance_epsilon") if hasattr(norm, name))
    wide = rows.double().cpu()
    unit = wide.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30) / SMALL
    small = wide / unit * eps**0.5
    return ((norm(small) - norm(torch.zeros_like(small))) * unit).to(rows)
