"""Codes by dense products, for every activation function, on any device."""

import torch
from torch import Tensor

from sparse_dict.sae.state import State

SELECTION = 256  # rows over which BatchTopK shares its budget; `step_cpu`'s chunk


def codes_of(state: State, x: Tensor) -> tuple[Tensor, Tensor, list[float]]:
    """Encode a batch as training does.

    Args:
        state: the dictionary.
        x: (batch, width), scaled.

    Returns:
        Pre-activations and codes, (batch, dict_size) each, and BatchTopK's smallest code of each
        256 rows.
    """
    if state.sae.precision == "bf16":
        z = (x.bfloat16() @ state.W_enc.T.bfloat16()).float() + state.b
    else:
        z = x @ state.W_enc.T + state.b
    codes = z.relu()
    floors: list[float] = []
    if state.sae.activation == "topk":
        kth = codes.topk(state.sae.k, dim=1).values[:, -1:]
        codes = codes * (codes >= kth)
    elif state.sae.activation == "batch_topk":
        parts = []
        for part in codes.split(SELECTION):
            keep = min(state.sae.k * len(part), part.numel())
            floor = part.flatten().kthvalue(part.numel() - keep + 1).values
            floors.append(float(floor))
            parts.append(part * (part >= floor))
        codes = torch.cat(parts)
    elif state.log_threshold is not None:
        codes = codes * (z > state.log_threshold.exp())
    return z, codes, floors
