"""Freezing what has converged and perturbing the rest: the post's untried idea.

A dictionary is trained beside a companion of its own that differs in the initial values alone.
Features that both have found count as converged and are frozen; noise is added to all other
features of both. The companion doubles the cost.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae.state import State

COMPANION_SEED = 1_000_003  # added to the seed


@dataclass
class FreezePerturb:
    """A pair of dictionaries and which of their features are frozen, (dict_size,) bool each."""

    pair: tuple[State, State]
    frozen: tuple[Tensor, Tensor]
    kept: list[dict[str, Tensor]]  # parameters with an entry per feature, when last frozen

    @classmethod
    def beside(cls, state: State, config: TrainSAEConfig) -> "FreezePerturb":
        """A companion for `state`, with nothing frozen."""
        other = replace(config, seed=config.seed + COMPANION_SEED)
        companion = State.initial(other, state.d_in, state.b.device, state.d_out)
        none = torch.zeros(state.dict_size, dtype=torch.bool, device=state.b.device)
        made = cls((state, companion), (none, none.clone()), [])
        made._keep()
        return made

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the member's own state."""
        companion = {f"companion.{k}": v for k, v in self.pair[1].tensors().items()}
        frozen = {f"frozen.{i}": mask for i, mask in enumerate(self.frozen)}
        return companion | frozen

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors()` gave; the member's state must be loaded before."""
        prefix = "companion."
        self.pair[1].load(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        for i, mask in enumerate(self.frozen):
            mask.copy_(tensors[f"frozen.{i}"])
        self._keep()

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        for state in self.pair:
            state.move(device)
        self.frozen = self.frozen[0].to(device), self.frozen[1].to(device)
        self._keep()

    def _keep(self) -> None:
        self.kept = [{n: s.params[n].clone() for n in s.per_feature} for s in self.pair]

    @torch.no_grad()
    def after_step(self, step: int, last_step: int) -> None:
        """Undo the step on frozen features; now and then, freeze and perturb anew."""
        for state, frozen, kept in zip(self.pair, self.frozen, self.kept, strict=True):
            for name, then in kept.items():
                # not by an index, for whose length a GPU would be waited for
                now, mask = state.params[name], frozen.view(-1, *[1] * (then.dim() - 1))
                now.copy_(torch.where(mask, then, now))
        sae = self.pair[0].architecture.sae
        if step % sae.perturb_every == 0 and step <= sae.perturb_share * last_step:
            self._freeze_and_perturb(step)

    def _freeze_and_perturb(self, step: int) -> None:
        cosines = self.pair[0].W_dec @ self.pair[1].W_dec.T  # (dict_size, dict_size)
        for side, (state, frozen) in enumerate(zip(self.pair, self.frozen, strict=True)):
            sae = state.architecture.sae
            frozen.copy_(cosines.amax(dim=1 - side) > sae.freeze_above)
            # torch's CPU generator looks at the lower 32 bits of a seed only
            seed = int(np.random.SeedSequence([state.seed, side, step]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(seed)
            loose = ~frozen
            for weights in (state.W_dec,) if sae.tied else (state.W_dec, state.W_enc):
                noise = torch.randn(weights.shape, generator=generator).to(weights.device)
                noise *= weights != 0  # columns of padding stay zero
                length = sae.perturb_noise * weights.norm(dim=1, keepdim=True)
                noise *= length / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)
                weights[loose] += noise[loose]
            state.W_dec[loose] = torch.nn.functional.normalize(state.W_dec[loose], dim=1)
            state.begin_anew(loose)
        self._keep()
