"""Keeping the features that act most and beginning the others anew: `sae.guide=select`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae.guidance import Guide
from sparse_dict.sae.loss import gain
from sparse_dict.sae.schedule import total_steps
from sparse_dict.sae.state import State, drawn_from

ROWS = 1 << 16  # the last ones seen, over which codes are averaged


@dataclass
class Selection:
    """What is chosen of a dictionary, once: the share `sae.guide_keep` of its features.

    A feature's effect is its mean code times the gain of its decoder row.
    """

    state: State
    metric: Tensor  # (d_in, d_in), of its guide
    step: int  # optimiser step after which

    @classmethod
    def of(cls, state: State, config: TrainSAEConfig, guide: Guide) -> Self | None:
        """The selection that a config asks for, if any."""
        if config.sae.guide != "select":
            return None
        assert guide.metric is not None
        return cls(state, guide.metric, max(1, round(config.sae.guide_at * total_steps(config))))

    def effects(self, batches: Iterable[Tensor]) -> Tensor:
        """Of each feature, (dict_size,), on batches (batch, width)."""
        state, d_in = self.state, len(self.metric)
        p = state.whole()
        codes, rows = torch.zeros_like(state.b), 0
        for x in batches:
            codes += state.architecture.encode(p, x).codes.sum(0)
            rows += len(x)
        return codes / rows * gain(state.W_dec[:, :d_in], self.metric.to(codes.device))

    @torch.no_grad()
    def make(self, batches: Iterable[Tensor]) -> None:
        """Choose by what the features do on `batches`, and draw all others anew."""
        state, sae = self.state, self.state.architecture.sae
        keep = max(1, round(sae.guide_keep * sae.dict_size))
        loose = torch.ones(sae.dict_size, dtype=torch.bool, device=state.b.device)
        loose[self.effects(batches).topk(keep).indices] = False
        seed = int(np.random.SeedSequence([state.seed, self.step]).generate_state(1)[0])
        drawn = drawn_from(seed, state.architecture, len(self.metric))
        for name in state.per_feature:
            state.params[name][loose] = drawn[name].to(loose.device)[loose]
        state.begin_anew(loose)
