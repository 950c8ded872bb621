"""Dictionaries that are to be trained, and which of them together."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae import interventions
from sparse_dict.storage.files import fingerprint


@dataclass(eq=False)
class Job:
    """A dictionary that is to be trained."""

    config: TrainSAEConfig  # settled: see `scaling.settled`
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
