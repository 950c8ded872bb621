from dataclasses import replace
from pathlib import Path

import torch
from sae_helpers import begun, sae_config

from sparse_dict.sae.interventions import Moment
from sparse_dict.sae.interventions.freeze_perturb import FreezePerturb
from sparse_dict.sae.state import State

CPU = torch.device("cpu")


def test_dictionaries_of_one_seed_and_different_sizes_begin_with_different_features():
    small, large = (State.initial(sae_config(dict_size=n), 32, 32, CPU) for n in (64, 128))
    assert (small.W_dec @ large.W_dec.T).amax(dim=1).mean() < 0.6  # random: 0.43; prefix: 1
    again = State.initial(sae_config(dict_size=64), 32, 32, CPU)
    assert torch.equal(small.W_dec, again.W_dec)


def test_each_perturbation_and_either_side_of_a_pair_has_noise_of_its_own():
    config = sae_config(dict_size=16, strategy="freeze_perturb", freeze_above=2.0)

    def pushed(step: int) -> torch.Tensor:
        pair = FreezePerturb(config.sae, Path(), None)
        state = State.initial(config, 32, 32, CPU)
        states = [state, *pair.beside(state, lambda seed: begun(replace(config, seed=seed), 32))]
        before = [s.W_enc.clone() for s in states]
        pair.after_step(states, Moment(step, 100, 0, None, None, None))
        moved = [s.W_enc - b for s, b in zip(states, before, strict=True)]
        return torch.nn.functional.normalize(torch.cat(moved), dim=1)

    first, second = pushed(2), pushed(4)
    assert (first * second).sum(dim=1).abs().max() < 0.9
    assert (first[:16] * first[16:]).sum(dim=1).abs().max() < 0.9
    assert torch.equal(first, pushed(2))
