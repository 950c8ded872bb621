"""What a norm does to a direction."""

import copy

import torch
from torch import Tensor, nn

from sparse_dict.errors import UserError

LARGE = 1e6  # RMS of the rows that a norm is tried on: its epsilon is nothing beside that


def without_division(norm: nn.Module, rows: Tensor) -> Tensor:
    """What a norm of any kind does to `rows` (n, d_model), but for its division.

    Its gain, and its centring if any. Of rows of RMS LARGE it gives them divided by their RMS (that
    of what centring leaves), times its gain, and its bias, which is what it gives of zero.
    """
    norm, exact = copy.deepcopy(norm).double().cpu(), rows.double().cpu()
    bias = norm(torch.zeros_like(exact))
    large = LARGE * exact / _rms(exact).clamp(min=1e-30)
    given, twice, shifted = (norm(x) - bias for x in (large, 2 * large, large + LARGE))
    if not _near(twice, given):
        raise UserError(f"{type(norm).__name__} is no norm")
    centred = exact - exact.mean(1, keepdim=True) if _near(shifted, given) else exact
    return (given * _rms(centred)).to(rows)


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(1, keepdim=True).sqrt()


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-3 * other.norm())
