"""A dictionary in training with all that is its own."""

from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from sparse_dict.config import TrainSAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae import folder as folders
from sparse_dict.sae import interventions
from sparse_dict.sae.interventions import Intervention
from sparse_dict.sae.scaling import Data
from sparse_dict.sae.schedule import Hyper, hyper
from sparse_dict.sae.stage import Job
from sparse_dict.sae.state import State, Stats
from sparse_dict.storage import tensor_files
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
        """As its checkpoint has it, if there is one."""
        config, x, y = job.config, data.x, data.y
        asked = interventions.of(config.sae, Path(config.lm_dir), x)
        changes = [intervention.begin for intervention in asked]
        terms = tuple(term for intervention in asked if (term := intervention.term) is not None)

        def begin(seed: int) -> State:
            other = replace(config, seed=seed)
            return State.initial(other, x.d_in, y.d_in, device, changes, terms)

        own = begin(config.seed)
        beside = [other for intervention in asked for other in intervention.beside(own, begin)]
        begun = cls(job, run, data, asked, [own, *beside])
        try:
            begun.load()
        except UserError as error:
            begun.error = error
        return begun

    @property
    def config(self) -> TrainSAEConfig:
        return self.job.config

    @property
    def state(self) -> State:
        return self.states[0]

    def hypers(self, step: int) -> list[Hyper | None]:
        """The numbers of an optimiser step, for each of its states; None: it is over."""
        numbers = None if self.error else hyper(self.config, step, self.data.y.d_in)
        return [numbers] * len(self.states)

    def is_finite(self) -> bool:
        """Whether all its states are: NaN would spread from one to another."""
        return all(state.is_finite() for state in self.states)

    def save(self, step: int) -> None:
        """Write what it takes to go on after `step` steps, to the same bits."""
        tensors = self.state.tensors()
        for intervention in self.interventions:
            tensors |= intervention.tensors()
        meta = {
            "step": step,
            "record": self.job.record,
            "history": self.history,
            "sums": asdict(self.state.stats()),
            "seconds": self.seconds,
        }
        arrays = {name: tensor.contiguous().cpu().numpy() for name, tensor in tensors.items()}
        tensor_files.write_checkpoint(self.job.folder / folders.CHECKPOINT, arrays, meta)
        self.saved_step = step

    def load(self) -> None:
        """Put a dictionary where the checkpoint in its folder was, if there is one."""
        meta = folders.read_checkpoint_meta(self.job.folder)
        if meta is None:
            return
        path = self.job.folder / folders.CHECKPOINT
        arrays = tensor_files.read_checkpoint(path)
        try:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            self.state.load(tensors)
            for intervention in self.interventions:
                intervention.load(tensors)
            sums = torch.tensor(astuple(Stats(**meta["sums"])), dtype=torch.float64)
            self.state.sums += sums.to(self.state.sums.device)
            self.history = meta["history"]
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise tensor_files.damaged(path, error) from None
        self.seconds, self.saved_step = meta["seconds"], int(meta["step"])
