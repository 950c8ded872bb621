"""A dictionary in training with all that is its own."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from sparse_dict.config import TrainSAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae import interventions
from sparse_dict.sae.data import Data
from sparse_dict.sae.interventions import Intervention
from sparse_dict.sae.jobs import Job
from sparse_dict.sae.schedule import Hyper, hyper
from sparse_dict.sae.state import State
from sparse_dict.tracking import Run


@dataclass
class Trainee:
    """A dictionary in training."""

    job: Job
    run: Run
    data: Data
    interventions: list[Intervention[Any]]
    states: list[State]  # its own, and those that interventions train beside it
    history: list[dict[str, float]] = field(default_factory=list)
    error: UserError | None = None
    seconds: float = 0.0  # of all passes that trained it, including the other states' share
    saved_step: int = 0  # of the checkpoint in its folder; 0: there is none

    @classmethod
    def begun(cls, job: Job, run: Run, data: Data, device: torch.device) -> Self:
        """At the beginning."""
        config, x, y = job.config, data.x, data.y
        asked = interventions.of(config.sae, Path(config.lm_dir), x.activations)
        changes = [intervention.begin for intervention in asked]
        terms = tuple(term for intervention in asked if (term := intervention.term) is not None)

        def begin(seed: int) -> State:
            other = replace(config, seed=seed)
            return State.initial(other, x.width, y.width, device, changes, terms)

        own = begin(config.seed)
        beside = [other for intervention in asked for other in intervention.beside(own, begin)]
        return cls(job, run, data, asked, [own, *beside])

    @property
    def config(self) -> TrainSAEConfig:
        """Its settled config."""
        return self.job.config

    @property
    def state(self) -> State:
        """Its own."""
        return self.states[0]

    def hypers(self, step: int) -> list[Hyper | None]:
        """The numbers of an optimiser step, for each of its states; None: it is over."""
        numbers = None if self.error else hyper(self.config, step, self.data.y.width)
        return [numbers] * len(self.states)

    def is_finite(self) -> bool:
        """Whether all its states are: NaN would spread from one to another."""
        return all(state.is_finite() for state in self.states)
