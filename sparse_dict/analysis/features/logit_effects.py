"""Which tokens a feature writes: the direct path from where it is read to the logits."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.config.sites import Site
from sparse_dict.lm.interface import OpenLM
from sparse_dict.lm.norm import without_division

Floats = NDArray[np.float32]
Effects = list[list[tuple[int, float]]]  # of each direction: tokens with their logits

EFFECTS = 10  # tokens listed at each end
ROWS = 64  # directions whose effects on the whole vocabulary are held at a time


@torch.no_grad()
def logit_effects(
    rows: Floats, lm: OpenLM, sites: Sequence[Site], columns: Sequence[tuple[int, int]]
) -> tuple[Effects, Effects, tuple[Site, ...]]:
    """Tokens whose logits each of `rows` (n, d_in) raises and lowers most, by the direct path.

    That is: of each site's `columns` what they add to the residual stream, then the final norm's
    centring (if it has any) and gain, then the unembedding. The norm's division is left out, as is
    everything that later blocks do. Logits are relative to their mean over the vocabulary.

    Returns:
        Tokens raised, tokens lowered, and the sites that have such a path; without one, no tokens.
    """
    model = lm.model

    def written(part: Floats) -> dict[Site, Tensor]:
        x = torch.from_numpy(part).to(model.device)
        found: dict[Site, Tensor] = {}
        for site, (start, stop) in zip(sites, columns, strict=True):
            if (value := model.written(site, x[:, start:stop])) is not None:
                found[site] = value
        return found

    direct = tuple(written(rows[:1]))
    ends: tuple[Effects, Effects] = ([], [])
    if not direct:
        return ([[] for _ in rows], [[] for _ in rows], direct)
    unembed = model.unembedding[: lm.tokenizer.n_vocab].float()  # some have more rows than tokens
    k = min(EFFECTS, len(unembed))
    for start in range(0, len(rows), ROWS):
        parts = written(rows[start : start + ROWS])
        logits = (
            without_division(model.final_norm, torch.stack([*parts.values()]).sum(0)) @ unembed.T
        )
        logits -= logits.mean(1, keepdim=True)
        for end, largest in zip(ends, (True, False), strict=True):
            values, tokens = logits.topk(k, largest=largest)
            for ids, effects in zip(tokens.tolist(), values.tolist(), strict=True):
                end.append(list(zip(ids, effects, strict=True)))
    return ends[0], ends[1], direct
