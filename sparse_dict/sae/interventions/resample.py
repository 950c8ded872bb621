"""Features that are no longer active get new directions: `sae.dead=resample`."""

from sparse_dict.annotations import State, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.sae.interventions.base import Intervention, Moment
from sparse_dict.sae.loss import SELECTION


class Resample(Intervention[SAEConfig]):
    """Inactive features take the directions of inputs that are reconstructed badly."""

    Config = SAEConfig

    @staticmethod
    def asked(sae: SAEConfig) -> bool:
        return sae.dead == "resample"

    def after_step(self, states: list[State], at: Moment) -> None:
        if at.step % self.sae.resample_every == 0:
            for state in states:
                resample(state, state.inactive(at.seen), at.x, at.y, at.step)


def resample(state: State, inactive: Tensor, x: Tensor, y: Tensor, step: int) -> None:
    """Give inactive features, (dict_size,) bool, new directions, in place.

    Rows of the batch x, y are drawn with probability proportional to their squared loss; the
    decoder row becomes the row's direction, the encoder row the same at a fifth of the living ones'
    mean norm, the bias and the moments zero (Bricken et al. 2023, "Towards Monosemanticity",
    appendix on resampling). A transcoder's decoder row becomes the direction of what the row is to
    be mapped to. `step` decides the draw, with the seed.
    """
    import torch

    count = int(inactive.sum())
    if count == 0:
        return
    p, architecture = state.whole, state.architecture
    errors = [  # a batch's codes may be too large
        (architecture.reconstruct(p, rows) - wanted).square().sum(dim=1)
        for rows, wanted in zip(x.split(SELECTION), y.split(SELECTION), strict=True)
    ]
    weights = torch.cat(errors).square().double().cpu()
    if not 0 < float(weights.sum()) < float("inf"):
        return  # the error is zero on every row, or not finite
    generator = torch.Generator().manual_seed(hash((state.seed, state.dict_size, step)) % 2**63)
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    directions, wanted = (
        torch.nn.functional.normalize(rows[drawn.to(rows.device)], dim=1) for rows in (x, y)
    )
    living = state.W_enc[~inactive].norm(dim=1)
    state.W_dec[inactive] = wanted
    if not architecture.sae.tied:
        norm = 0.2 * living.mean() if len(living) else 1.0
        state.W_enc[inactive] = directions * norm
    for name in architecture.biases:
        state.params[name][inactive] = 0.0
    state.begin_anew(inactive)
