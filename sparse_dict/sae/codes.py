"""Codes by dense products, for every activation function, on any device.

All tensors may have a leading axis for several dictionaries of one kind, as `step_torch` stacks
them; the axes named here are the last ones.
"""

import torch
from torch import Tensor

from sparse_dict.sae.state import State

SELECTION = 256  # rows over which BatchTopK shares its budget; `step_cpu`'s chunk


def product(a: Tensor, b: Tensor, precision: str) -> Tensor:
    """The matrix product a @ b, of factors rounded to bfloat16 if `precision` is bf16.

    A GPU gives it in float32; the CPU, which has no such product, rounds it to bfloat16 as well.
    """
    if precision != "bf16":
        return a @ b
    a, b = a.bfloat16(), b.bfloat16()
    if not a.is_cuda:
        return (a @ b).float()
    multiply = torch.mm if a.dim() == 2 else torch.bmm
    return multiply(a, b, out_dtype=torch.float32)


def codes_of(state: State, x: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Encode a batch as training does.

    TopK keeps the k largest codes of each row (Makhzani and Frey 2013, arXiv 1312.5663; Gao et al.
    2024, arXiv 2406.04093). BatchTopK keeps the k * rows largest of several rows (Bussmann et al.
    2024, arXiv 2412.06410): of each 256 here, in place of the whole batch.

    Args:
        state: the dictionary.
        x: (batch, width), scaled.

    Returns:
        Pre-activations and codes, (batch, dict_size) each, and BatchTopK's smallest code (a
        scalar) of each 256 rows.
    """
    z = product(x, state.W_enc.mT, state.sae.precision) + state.b[..., None, :]
    codes = z.relu()
    floors: list[Tensor] = []
    if state.sae.activation == "topk":
        codes = keep_largest(codes, state.sae.k)
    elif state.sae.activation == "batch_topk":
        parts = []
        for part in codes.split(SELECTION, dim=-2):
            everything = part.flatten(-2)
            keep = min(state.sae.k * part.shape[-2], everything.shape[-1])
            floor = everything.kthvalue(everything.shape[-1] - keep + 1).values
            floors.append(floor)
            parts.append(part * (part >= floor[..., None, None]))
        codes = torch.cat(parts, dim=-2)
    elif state.log_threshold is not None:
        codes = codes * (z > state.log_threshold.exp()[..., None, :])
    return z, codes, floors


def keep_largest(codes: Tensor, k: int) -> Tensor:
    """`codes` with all but the `k` largest of each row zero; ties are all kept."""
    if k >= codes.shape[-1]:
        return codes
    return codes * (codes >= codes.topk(k, dim=-1).values[..., -1:])
