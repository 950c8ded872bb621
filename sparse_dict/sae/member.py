"""One dictionary of an ensemble, and its checkpoint."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sparse_dict.config import TrainSAEConfig
from sparse_dict.errors import UserError, malformed
from sparse_dict.sae import folder as folders
from sparse_dict.sae.schedule import total_steps
from sparse_dict.sae.selection import Selection
from sparse_dict.sae.sides import Sides
from sparse_dict.sae.state import State, Stats
from sparse_dict.sae.strategy import FreezePerturb
from sparse_dict.storage import tensor_files
from sparse_dict.tracking import Run

# Columns of a dictionary's history. `inactive` counts features that the last `dead_window` training
# rows did not activate; "dead" are those that no evaluation row activates, in metrics.json.
HISTORY = (
    "activations", "mse", "fvu", "l0", "l1_norm", "inactive", "lr", "activations_per_second",
)  # fmt: skip


@dataclass
class Member:
    """One dictionary of an ensemble, with its config, folder, run, sides, state and history."""

    config: TrainSAEConfig
    folder: Path
    record: dict[str, Any]  # what identifies its result
    run: Run
    sides: Sides
    state: State
    strategy: FreezePerturb | None = None
    selection: Selection | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    error: UserError | None = None
    seconds: float = 0.0  # of all passes that trained it, including its companions' share
    saved_step: int = 0  # of the checkpoint in `folder`; 0: there is none

    def is_finite(self) -> bool:
        """Whether its state is finite, and its companion's, from which NaN would spread to it."""
        pair = self.strategy.pair if self.strategy else (self.state,)
        return all(state.is_finite() for state in pair)

    def save_checkpoint(self, step: int) -> None:
        """Write all that it needs to go on after `step` optimiser steps.

        Tensors: parameters, Adam's moments, when each feature was last active, BatchTopK's running
        threshold, the companion and masks of freeze_perturb. Beside them: step, record, history,
        the sums since its last line, seconds. Which rows come next follows from the step.
        """
        tensors = self.state.tensors() | (self.strategy.tensors() if self.strategy else {})
        meta = {
            "step": step,
            "record": self.record,
            "history": self.history,
            "sums": asdict(self.state.stats()),  # since the last line of the history
            "seconds": self.seconds,
        }
        arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        tensor_files.write_checkpoint(self.folder / folders.CHECKPOINT, arrays, meta)
        self.saved_step = step

    def load_checkpoint(self) -> int:
        """Take its state from its folder; returns the optimiser steps done (0: none)."""
        meta = folders.read_checkpoint_meta(self.folder)
        if meta is None:
            return 0
        arrays = tensor_files.read_checkpoint(self.folder / folders.CHECKPOINT)
        try:
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            self.state.load(tensors)
            if self.strategy is not None:
                self.strategy.load(tensors)
            self.state.add_stats(Stats(**meta["sums"]))
            if not 0 <= meta["step"] <= total_steps(self.config):
                raise ValueError(f"step {meta['step']}")
            self.history = [_row(row) for row in meta["history"]]
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{self.folder / folders.CHECKPOINT} is malformed ({malformed(error)}): "
                "remove it to start again"
            ) from None
        self.seconds = meta["seconds"]
        self.saved_step = int(meta["step"])
        return self.saved_step


def _row(row: dict[str, float]) -> dict[str, float]:
    """A line of the history in today's format: older checkpoints named two columns otherwise."""
    row = {{"dead": "inactive", "l1": "l1_norm"}.get(name, name): v for name, v in row.items()}
    if tuple(row) != HISTORY:
        raise ValueError("a malformed history")
    return row
