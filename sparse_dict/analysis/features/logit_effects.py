"""Which tokens a feature writes: the direct path from the MLP's hidden layer to the logits."""

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dict.lm.model import GPT

Floats = NDArray[np.float32]

EFFECTS = 10  # tokens listed at each end
ROWS = 64  # directions whose effects on the whole vocabulary are held at a time


@torch.inference_mode()
def logit_effects(
    rows: Floats, model: GPT, layer: int
) -> tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]]:
    """Tokens whose logits each of `rows` (n, d_mlp) raises and lowers most, by the direct path.

    That is: down the MLP of `layer`, then the final LayerNorm's centring and gain, then the
    unembedding. The LayerNorm's division by the standard deviation is left out, as is everything
    that later blocks do. Logits are relative to their mean over the vocabulary.
    """
    down = model.get_parameter(f"blocks.{layer}.mlp_out.weight").float().cpu()
    gain, unembed = model.norm.weight.float().cpu(), model.embed.weight.float().cpu()
    k = min(EFFECTS, len(unembed))
    ends: tuple[list[list[tuple[int, float]]], list[list[tuple[int, float]]]] = ([], [])
    for start in range(0, len(rows), ROWS):
        residual = torch.from_numpy(rows[start : start + ROWS]) @ down.T
        logits = ((residual - residual.mean(1, keepdim=True)) * gain) @ unembed.T
        logits -= logits.mean(1, keepdim=True)
        for end, largest in zip(ends, (True, False), strict=True):
            values, tokens = logits.topk(k, largest=largest)
            for pair in zip(tokens.tolist(), values.tolist(), strict=True):
                end.append(list(zip(*pair, strict=True)))
    return ends
