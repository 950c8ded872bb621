"""The state of a training run in one file: tensors, and the rest as JSON in its header."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from sparse_dict.annotations import GPT, Optimizer, Parameter
from sparse_dict.storage import tensor_files
from sparse_dict.storage.records import Amount, Count, Number

ADAMW = ("exp_avg", "exp_avg_sq")  # what a step leaves for the next one, besides its number
MUON = ("momentum",)


@dataclass
class State:
    """Where a run is; which data come next follows from the step alone."""

    step: int = 0  # optimiser steps done
    seconds: float = 0.0  # spent in them
    loss_sum: float = 0.0  # of the steps since the last row of `history`
    loss_steps: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def validated(self) -> bool:
        """Whether the history has the validation loss of this very step."""
        return bool(self.history) and self.history[-1]["step"] == self.step


class _StateRecord(TypedDict):
    step: Count
    seconds: Amount
    loss_sum: Number
    loss_steps: Count
    history: list[dict[str, Number]]


class _Record(TypedDict):  # what a checkpoint holds besides tensors
    state: _StateRecord
    identity: dict[str, Any]  # of what run it is


def identity(path: Path) -> dict[str, Any] | None:
    """What the checkpoint at `path` is a checkpoint of, or None if there is none."""
    return tensor_files.read_record(path, _Record)["identity"] if path.exists() else None


def save(
    path: Path,
    model: GPT,
    optimizer: Optimizer,
    state: State,
    identity: dict[str, Any],
) -> None:
    """Replace the checkpoint at `path`."""
    arrays = {}
    for name, parameter, moments in _parameters(model, optimizer):
        arrays[f"model.{name}"] = parameter.detach().cpu().numpy()
        for moment in moments:
            arrays[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().numpy()
    record = {"state": asdict(state), "identity": identity}
    tensor_files.write_checkpoint(path, arrays, record)


def load(path: Path, model: GPT, optimizer: Optimizer) -> State:
    """Put `model` and `optimizer` where the checkpoint at `path` was."""
    import torch

    arrays = tensor_files.read_checkpoint(path)
    state = State(**tensor_files.read_record(path, _Record)["state"])
    try:
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        kept = [(name, moments) for name, _, moments in _parameters(model, optimizer)]
        model.load_state_dict({name: tensors[f"model.{name}"] for name, _ in kept})
        step = torch.tensor(float(state.step))
        moments = {
            i: {"step": step.clone()} | {m: tensors[f"{m}.{name}"] for m in moments}
            for i, (name, moments) in enumerate(kept)
        }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    except (KeyError, ValueError, RuntimeError) as error:
        raise tensor_files.damaged(path, error) from None
    return state


def _parameters(
    model: GPT, optimizer: Optimizer
) -> Iterator[tuple[str, Parameter, tuple[str, ...]]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names[parameter], parameter, MUON if "momentum" in group else ADAMW
