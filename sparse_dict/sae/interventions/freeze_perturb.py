"""Freezing what has converged and perturbing the rest: the post's untried idea.

A dictionary is trained beside a companion of its own that differs in the initial values alone.
Features that both have found count as converged and are frozen; noise is added to all other
features of both. The companion doubles the cost.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sparse_dict.annotations import State, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.config.ranges import not_negative, one_of, positive
from sparse_dict.errors import UserError
from sparse_dict.sae.interventions.base import Intervention, Moment

COMPANION_SEED = 1_000_003  # added to the seed


@dataclass
class FreezePerturbConfig(SAEConfig):
    """What counts as converged, and the noise."""

    # freeze what a companion has found too, perturb the rest
    strategy: str = one_of("plain", "freeze_perturb", default="plain")
    freeze_above: float = 0.9  # MCS with the companion above which to freeze
    perturb_every: int = positive(500)  # optimiser steps between perturbations
    perturb_noise: float = not_negative(0.5)  # length of the noise added to unit rows
    perturb_share: float = not_negative(0.75)  # share of the training in which it is done

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy == "freeze_perturb" and self.precision == "bf16":
            raise UserError("sae.strategy=freeze_perturb needs sae.precision=fp32")


class FreezePerturb(Intervention[FreezePerturbConfig]):
    """A pair of dictionaries and which of their features are frozen, (dict_size,) bool each."""

    Config = FreezePerturbConfig
    others = 1
    last = True  # it undoes on frozen features what the others do to them

    @staticmethod
    def asked(sae: FreezePerturbConfig) -> bool:
        return sae.strategy == "freeze_perturb"

    def beside(self, state: State, begun: Callable[[int], State]) -> list[State]:
        self.pair = [state, begun(state.seed + COMPANION_SEED)]
        self.frozen = [(s.last_fired < 0) for s in self.pair]
        self._keep()
        return self.pair[1:]

    def _keep(self) -> None:
        self.kept = [{n: s.params[n].clone() for n in s.per_feature} for s in self.pair]

    def tensors(self) -> dict[str, Tensor]:
        companion = {f"companion.{k}": v for k, v in self.pair[1].tensors().items()}
        return companion | {f"frozen.{i}": mask for i, mask in enumerate(self.frozen)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        prefix = "companion."
        self.pair[1].load(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        for i, mask in enumerate(self.frozen):
            mask.copy_(tensors[f"frozen.{i}"])
        self._keep()

    def after_step(self, states: list[State], at: Moment) -> None:
        """Undo the step on frozen features; now and then, freeze and perturb anew."""
        import torch

        for state, frozen, kept in zip(self.pair, self.frozen, self.kept, strict=True):
            for name, then in kept.items():
                # not by an index, for whose length a GPU would be waited for
                now, mask = state.params[name], frozen.view(-1, *[1] * (then.dim() - 1))
                now.copy_(torch.where(mask, then, now))
        early = at.step <= self.sae.perturb_share * at.last_step
        if early and at.step % self.sae.perturb_every == 0:
            self._freeze_and_perturb(at.step)

    def _freeze_and_perturb(self, step: int) -> None:
        import numpy as np
        import torch

        cosines = self.pair[0].W_dec @ self.pair[1].W_dec.T  # (dict_size, dict_size)
        for side, (state, frozen) in enumerate(zip(self.pair, self.frozen, strict=True)):
            frozen.copy_(cosines.amax(dim=1 - side) > self.sae.freeze_above)
            # torch's CPU generator looks at the lower 32 bits of a seed only
            seed = int(np.random.SeedSequence([state.seed, side, step]).generate_state(1)[0])
            generator = torch.Generator().manual_seed(seed)
            loose = ~frozen
            for weights in (state.W_dec,) if self.sae.tied else (state.W_dec, state.W_enc):
                noise = torch.randn(weights.shape, generator=generator).to(weights.device)
                length = self.sae.perturb_noise * weights.norm(dim=1, keepdim=True)
                noise *= length / noise.norm(dim=1, keepdim=True).clamp(min=1e-12)
                weights[loose] += noise[loose]
            state.W_dec[loose] = torch.nn.functional.normalize(state.W_dec[loose], dim=1)
            state.begin_anew(loose)
        self._keep()
