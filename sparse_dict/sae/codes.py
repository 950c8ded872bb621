"""Products and selections of codes, for tensors with leading axes too. Imports no torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SELECTION = 256  # rows over which BatchTopK shares its budget


def product(a: "Tensor", b: "Tensor", precision: str) -> "Tensor":
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


def keep_largest(codes: "Tensor", k: int) -> "Tensor":
    """`codes` with all but the `k` largest of each row zero; ties are all kept."""
    if k >= codes.shape[-1]:
        return codes
    return codes * (codes >= codes.topk(k, dim=-1).values[..., -1:])


def keep_largest_of_all(codes: "Tensor", k: int) -> "tuple[Tensor, list[Tensor]]":
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
