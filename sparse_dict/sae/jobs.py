"""Dictionaries that are to be trained, and which of them together."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_dict.config import TrainSAEConfig
from sparse_dict.machine import runtime
from sparse_dict.machine.threads import balanced
from sparse_dict.sae import interventions
from sparse_dict.storage.files import fingerprint

if TYPE_CHECKING:
    import torch


@dataclass(eq=False)
class Job:
    """A dictionary that is to be trained."""

    config: TrainSAEConfig  # settled: see `data.settled`
    folder: Path
    record: dict[str, Any]  # what decides its result
    step: int = 0  # optimiser steps that its checkpoint has behind it


def weight(config: TrainSAEConfig) -> int:
    """A dictionary's part of the work of a pass: features that are trained for it."""
    return config.sae.dict_size * (1 + sum(kind.others for kind in interventions.asked(config.sae)))


def passes(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that can be trained together: at one time they are at the same batch."""
    together: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        config = job.config
        training = replace(config.training, rows="all", rows_seed=0)
        shared = [config.activations_dir, asdict(training), config.device, job.step]
        together[fingerprint(shared)].append(job)
    return list(together.values())


def parts(jobs: list[Job]) -> list[tuple["torch.device", list[Job]]]:
    """Jobs of a pass by device, about the same work on each, and by what they see."""
    devices = training_devices(jobs[0].config.device)
    loads = [weight(job.config) for job in jobs]
    seen: dict[tuple[torch.device, str], list[Job]] = defaultdict(list)
    for device, share in zip(devices, balanced(loads, len(devices)), strict=False):
        for job in (jobs[i] for i in share):
            training, sae = job.config.training, job.config.sae
            rows, columns = [training.rows, training.rows_seed], [sae.site, sae.target]
            sees = fingerprint([rows, columns, asdict(job.config.activations)])
            seen[device, sees].append(job)
    return [(device, own) for (device, _), own in seen.items()]


def training_devices(name: str) -> list["torch.device"]:
    """Every GPU for ``cuda``, and for ``auto`` if that chooses cuda; else the device named."""
    import torch

    device = runtime.device(name)
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]
