"""Which tokens a feature writes: the direct path from where it is read to the logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import OpenLM

Floats = NDArray[np.float32]
Effects = list[list[tuple[int, float]]]  # of each direction: tokens with their logits

EFFECTS = 10  # tokens listed at each end
ROWS = 64  # directions whose effects on the whole vocabulary are held at a time


@dataclass(frozen=True)
class LogitEffects:
    """Tokens whose logits each of several directions raises and lowers most."""

    promoted: Effects
    demoted: Effects
    sites: tuple[Site, ...]  # whose part of a direction has a direct path to the logits
    missing: tuple[str, ...]  # why the others' has none


@torch.no_grad()
def logit_effects(
    rows: Floats, lm: OpenLM, sites: Sequence[Site], columns: Sequence[tuple[int, int]]
) -> LogitEffects:
    """The effects of each of `rows` (n, d_in), of which each site has `columns`.

    By the direct path, as `LanguageModel.direct` has it, and relative to the mean over the
    vocabulary. Without a site that has such a path no tokens are listed.
    """
    direct, missing = [], []

    def part(start: int, stop: int, i: int) -> Tensor:
        x = torch.from_numpy(rows[start:stop, slice(*columns[i])])
        return lm.model.direct(sites[i], x.to(lm.model.device))

    for i in range(len(sites)):
        try:
            part(0, 1, i)
        except UserError as error:
            missing.append(str(error))
        else:
            direct.append(i)
    ends: tuple[Effects, Effects] = ([], [])
    for start in range(0, len(rows), ROWS):
        stop = min(start + ROWS, len(rows))
        if not direct:
            for end in ends:
                end += [[] for _ in range(start, stop)]
            continue
        # Some models have more rows in the unembedding than tokens.
        logits = torch.stack([part(start, stop, i)[:, : lm.tokenizer.n_vocab] for i in direct]).sum(
            0
        )
        logits -= logits.mean(1, keepdim=True)
        for end, largest in zip(ends, (True, False), strict=True):
            values, tokens = logits.topk(min(EFFECTS, logits.shape[1]), largest=largest)
            for ids, effects in zip(tokens.tolist(), values.tolist(), strict=True):
                end.append(list(zip(ids, effects, strict=True)))
    return LogitEffects(*ends, tuple(sites[i] for i in direct), tuple(missing))
