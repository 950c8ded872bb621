"""What a checkpoint of a dictionary holds: all that it needs to go on to the same bits.

Tensors: parameters, Adam's moments, when each feature was last active, BatchTopK's running
threshold (`State.tensors`), what interventions keep. Beside them: the step, the record that
identifies the result, the history, the sums since its last line, seconds. Which rows come next
follows from the step.
"""

from dataclasses import asdict, astuple

import torch

from sparse_dict.sae import folder as folders
from sparse_dict.sae.schedule import total_steps
from sparse_dict.sae.state import Stats
from sparse_dict.sae.trainee import Trainee
from sparse_dict.storage import tensor_files

# Columns of a dictionary's history. `inactive` counts features that the last `dead_window` training
# rows did not activate; "dead" are those that no evaluation row activates, in metrics.json.
HISTORY = (
    "activations", "mse", "fvu", "l0", "l1_norm", "inactive", "lr", "activations_per_second",
)  # fmt: skip


def save(trainee: Trainee, step: int) -> None:
    """Write the state after `step` optimiser steps."""
    tensors = trainee.state.tensors()
    for intervention in trainee.interventions:
        tensors |= intervention.tensors()
    meta = {
        "step": step,
        "record": trainee.job.record,
        "history": trainee.history,
        "sums": asdict(trainee.state.stats()),
        "seconds": trainee.seconds,
    }
    arrays = {name: tensor.contiguous().cpu().numpy() for name, tensor in tensors.items()}
    tensor_files.write_checkpoint(trainee.job.folder / folders.CHECKPOINT, arrays, meta)
    trainee.saved_step = step


def load(trainee: Trainee) -> None:
    """Put a dictionary where the checkpoint in its folder was, if there is one."""
    meta = folders.read_checkpoint_meta(trainee.job.folder)
    if meta is None:
        return
    path = trainee.job.folder / folders.CHECKPOINT
    arrays = tensor_files.read_checkpoint(path)
    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        trainee.state.load(tensors)
        for intervention in trainee.interventions:
            intervention.load(tensors)
        sums = torch.tensor(astuple(Stats(**meta["sums"])), dtype=torch.float64)
        trainee.state.sums += sums.to(trainee.state.sums.device)
        if not 0 <= meta["step"] <= total_steps(trainee.config):
            raise ValueError(f"step {meta['step']}")
        if any(tuple(row) != HISTORY for row in meta["history"]):
            raise ValueError("a malformed history")
        trainee.history = meta["history"]
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise tensor_files.damaged(path, error) from None
    trainee.seconds, trainee.saved_step = meta["seconds"], int(meta["step"])
