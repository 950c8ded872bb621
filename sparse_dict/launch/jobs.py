"""All jobs of a launch: composed by Hydra's own rules and checked before one of them runs.

A stage has ``check(config, folder)``, quick, which raises `UserError` while nothing has been
written yet, ``run(config)``, and ``OUTPUT``, the folder it writes. `folder` is Hydra's of the job.
"""

import copy
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sparse_dict.config import ANALYSES
from sparse_dict.errors import DamagedOutput, UserError
from sparse_dict.launch import explain
from sparse_dict.sae import schema
from sparse_dict.sae.run_names import labels
from sparse_dict.storage import untrusted
from sparse_dict.storage.output import MARK

schema.register()

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"

MODULES = {
    "train_lm": "sparse_dict.lm.stage",
    "harvest": "sparse_dict.activations.stage",
    "train_sae": "sparse_dict.sae.stage",
    "analyze": "sparse_dict.analysis.stage",
}


@dataclass
class Job:
    """A composed job, before it has a folder."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path  # where Hydra logs it
    weight: float = 1.0  # of its work, in units of the stage's own
    output: Path | None = None  # what its stage writes, unless that is `folder`

    def __str__(self) -> str:
        return " ".join(filter_overrides(self.overrides)) or f"job {self.number}"


def module(name: str) -> ModuleType:
    """The stage that a script runs."""
    return importlib.import_module(MODULES[name])


def task_config(config: DictConfig) -> DictConfig:
    """What a script is given of a composed config: all but Hydra's own part."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def typed(config: DictConfig) -> Any:
    """The config as its dataclass, ranges checked."""
    for key in explain.unknown_keys(config):
        raise UserError(explain.no_key(key, config))
    off = [name for name in ANALYSES if OmegaConf.is_missing(config, name)]
    with read_write(config):
        for name in off:
            config[name] = None
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(explain.wrong_value(error)) from None


def has_grid(config: DictConfig) -> bool:
    """Whether Hydra's own sweeper makes the jobs, so that all are known beforehand."""
    return bool(config.hydra.sweeper._target_ == BASIC_SWEEPER)


def grid(config: DictConfig) -> list[list[str]]:
    """The overrides of all jobs, as Hydra's own sweeper will make them."""
    params = config.hydra.sweeper.params or {}
    arguments = [f"{key}={value}" for key, value in params.items()]
    # unresolved: what names another key is each job's to resolve
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    arguments += map(str, task or [])
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
    return jobs


_checked: dict[tuple[int, tuple[str, ...]], Job] = {}  # by `check_grid`, for the launcher to take


def check_grid(config: DictConfig) -> list[Job]:
    """The jobs of a whole grid."""
    overrides = grid(config)
    if not overrides:
        raise UserError("the grid is empty: a swept key has no value")
    jobs = compose_jobs(config, overrides, 0)
    owners: dict[str, Job] = {}
    for job in jobs:
        for folder in (job.output or job.folder, job.folder):
            other = owners.setdefault(os.path.realpath(folder), job)
            if other is not job:
                key, there = module(config.hydra.job.name).OUTPUT.key, os.path.relpath(folder)
                own = f"name={job.config.name}" if key is None else f"{key}={there}"
                raise UserError(
                    f"job {other.number} and job {job.number} would both write to {there}: "
                    f"type '{own}-${{hydra:job.num}}'"
                )
    for job, label in zip(jobs, labels([job.overrides for job in jobs]), strict=True):
        if "tracking" in job.config and job.config.tracking.label is None:
            with read_write(job.config):
                job.config.tracking.label = label
    _checked.update({(job.number, job.overrides): job for job in jobs})
    return jobs


def compose_jobs(config: DictConfig, overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
    """The job of each list of overrides, composed and checked unless `check_grid` has done so."""
    before = HydraConfig.instance().cfg
    jobs = []
    try:
        for number, of_job in enumerate(overrides, first):
            job = _checked.pop((number, tuple(of_job)), None)
            if job is None:
                job = _compose(config, number, of_job)
                try:
                    check_job(job, typed(task_config(job.config)))
                except DamagedOutput:
                    pass  # the job will tell, and the others run
                except Exception as error:
                    if not explain.is_foreseen(error):
                        raise
                    line = explain.in_one_line(error, config.hydra.job.name)
                    raise UserError(f"{job}: {line}") from None
            jobs.append(job)
    finally:
        HydraConfig.instance().cfg = before
    return jobs


def check_job(job: Job, task: Any) -> None:
    """Let the stage check and weigh a job, whose config Hydra holds; `task` is the stage's part."""
    stage = module(job.config.hydra.job.name)
    noted = job.folder / ".hydra" / "hydra.yaml"
    ours = (job.folder / MARK).exists() or not noted.exists()
    if not ours and b"sparse_dict." not in untrusted.read_bytes(noted):
        raise UserError(f"{noted.parent} is another program's: choose another hydra.run.dir=")
    if stage.OUTPUT.key is not None:
        job.output = Path(getattr(task, stage.OUTPUT.key))
    stage.check(task, job.folder)
    if hasattr(stage, "weight"):
        job.weight = stage.weight(task)


def _compose(config: DictConfig, number: int, overrides: Sequence[str]) -> Job:
    loader = GlobalHydra.instance().config_loader()
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id = number
        job.hydra.job.num = number
    HydraConfig.instance().set_config(job)  # what ${hydra:job.num} is read from
    with read_write(job.hydra), open_dict(job.hydra):
        job.hydra.sweep.dir, job.hydra.sweep.subdir = job.hydra.sweep.dir, job.hydra.sweep.subdir
        folder = Path(job.hydra.sweep.dir).absolute() / job.hydra.sweep.subdir
        job.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(job)  # again, since it holds a copy
    return Job(number, tuple(overrides), job, folder)
