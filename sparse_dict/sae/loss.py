"""The terms of the loss that training minimises.

For a batch x of activations, codes c = encode(x) and the reconstruction x_hat = c W_dec + b_dec,

    loss = mean (x_hat - y)^2  +  l1 * mean_rows sum_k |c_k|  +  what the architecture adds,

where y is x, or for a transcoder what another site computes on the same token (with `sae.skip`,
less x W_skip). Each kind's `loss` puts it together from the terms below; `Architecture.objective`
is the whole: it adds the auxiliary loss that `sae.dead=auxk` asks for, and the terms of
interventions. The coefficients of each step come from `schedule.hyper`, and x is what
`scaling.Scaling` makes of the activations.

All is differentiable, for dictionaries stacked along leading axes too. The fast steps (`update.h`,
where L1's coefficient is the `penalty`, and `step_torch.closed_form`) compute the same gradients by
hand. It is imported while Hydra composes the config, so it imports no torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sparse_dict.annotations import Tensor

SELECTION = 256  # rows over which BatchTopK shares its budget


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """The matrix product a @ b, of factors rounded to bfloat16 if `precision` is bf16.

    A GPU gives it in float32; the CPU, which has no such product, rounds it to bfloat16 as well.
    """
    if precision != "bf16":
        return a @ b
    a, b = a.bfloat16(), b.bfloat16()
    if not a.is_cuda or a.requires_grad or b.requires_grad:  # autograd has no rule for out_dtype
        return (a @ b).float()
    import torch

    multiply = torch.mm if a.dim() == 2 else torch.bmm
    return multiply(a, b, out_dtype=torch.float32)


def keep_largest(codes: Tensor, k: int) -> Tensor:
    """`codes` with all but the `k` largest of each row zero; ties are all kept."""
    if k >= codes.shape[-1]:
        return codes
    return codes * (codes >= codes.topk(k, dim=-1).values[..., -1:])


def keep_largest_of_all(codes: Tensor, k: int) -> tuple[Tensor, list[Tensor]]:
    """The k * rows largest of `SELECTION` rows of codes (..., rows, dict_size) at a time.

    All others are zero; with them the smallest one kept of each selection, (...,).
    """
    import torch

    parts, floors = [], []
    for part in codes.split(SELECTION, dim=-2):
        everything = part.flatten(-2)
        keep = min(k * part.shape[-2], everything.shape[-1])
        floor = everything.kthvalue(everything.shape[-1] - keep + 1).values.detach()
        floors.append(floor)
        parts.append(part * (part >= floor[..., None, None]))
    return torch.cat(parts, dim=-2), floors


Params = dict[str, Tensor]  # W_enc, W_dec (..., dict_size, d_in), b (..., dict_size) ...
Numbers = dict[str, Tensor]  # l1, aux_coefficient ..., (...,) each: one for each dictionary


@dataclass
class Encoded:
    """What an encoder makes of a batch."""

    z: Tensor  # (..., batch, dict_size) pre-activations
    codes: Tensor  # (..., batch, dict_size)
    floors: list[Tensor] = field(default_factory=list)  # BatchTopK: the smallest code it kept


@dataclass
class Fit:
    """A batch, its reconstruction and the loss."""

    loss: Tensor  # (...,) of each dictionary
    encoded: Encoded
    x_hat: Tensor  # (..., batch, d_out)


# What an intervention adds to the loss, (...,), given the parameters and what they made of a batch.
Term = Callable[[Params, Fit, Numbers], Tensor]


def squared_error(x_hat: Tensor, x: Tensor) -> Tensor:
    """Mean over rows and dimensions, (...,)."""
    return (x_hat - x).square().mean(dim=(-2, -1))


def l1(codes: Tensor) -> Tensor:
    """The sum of a row's codes, none of which is negative; mean over rows, (...,)."""
    return codes.sum(dim=-1).mean(dim=-1)


def _through(threshold: Tensor, near: Tensor) -> Tensor:
    return near * (threshold - threshold.detach())


def _near(z: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    bandwidth = bandwidth[..., None, None]
    return (((z - threshold).abs() < bandwidth / 2) / bandwidth).detach()


def jump(z: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """JumpReLU: z where it exceeds the threshold, else zero (arXiv 2407.14435, equations 1, 11).

    `z` (..., batch, dict_size), `threshold` (..., 1, dict_size); `bandwidth` (...,) is the width of
    the kernel by which the threshold gets a gradient.
    """
    near = threshold.detach() * _near(z, threshold, bandwidth)
    return z.relu() * (z > threshold) - _through(threshold, near)


def l0(z: Tensor, threshold: Tensor, bandwidth: Tensor) -> Tensor:
    """How many of a row's features are active; mean over rows (arXiv 2407.14435, equation 12)."""
    on = (z > threshold).to(z.dtype) - _through(threshold, _near(z, threshold, bandwidth))
    return on.sum(dim=-1).mean(dim=-1)


def auxiliary(p: Params, fit: Fit, y: Tensor, inactive: Tensor, k: int) -> Tensor:
    """The error of reconstructing the residual from inactive features alone, (...,).

    The mean squared error with which the `k` largest codes of a row among the `inactive`, (...,
    dict_size) bool, reconstruct what `fit` leaves of y (batch, d_out), which is detached (Gao et
    al. 2024, arXiv 2406.04093, appendix A.2).
    """
    codes = keep_largest(fit.encoded.z.relu() * inactive[..., None, :], k)
    return squared_error(codes @ p["W_dec"], (y - fit.x_hat).detach())
