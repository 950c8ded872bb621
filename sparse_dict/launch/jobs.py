"""The jobs of a multirun: composed by Hydra's own rules and checked before one of them runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import filter_overrides
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from sparse_dict.errors import UserError
from sparse_dict.launch.checks import one_line_errors, task_config, typed
from sparse_dict.sae.naming import labels

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@dataclass
class Job:
    """A composed job, before it has a folder."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path
    weight: float = 1.0  # of its work, in units of the stage's own

    def __str__(self) -> str:
        return " ".join(filter_overrides(self.overrides)) or f"job {self.number}"


def has_grid(config: DictConfig) -> bool:
    """Whether Hydra's own sweeper makes the jobs, so that all are known beforehand."""
    return bool(config.hydra.sweeper._target_ == BASIC_SWEEPER)


def grid(config: DictConfig, loader: ConfigLoader) -> list[list[str]]:
    """The overrides of all jobs, as Hydra's own sweeper will make them."""
    params = config.hydra.sweeper.params or {}
    arguments = [f"{key}={value}" for key, value in params.items()]
    # unresolved: what names another key is each job's to resolve
    task = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    arguments += map(str, task or [])
    parser = OverridesParser.create(config_loader=loader)
    (jobs,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
    return jobs


def composed(
    config: DictConfig,
    loader: ConfigLoader,
    overrides: Sequence[Sequence[str]],
    first_number: int,
    stage: ModuleType,
) -> list[Job]:
    """Compose the job of each list of overrides and let `stage` check and weigh it.

    Only Hydra's own sweeper promises jobs that differ; others may come with the same folder.

    Raises:
        UserError: a job's input is wrong, two jobs have the same folder, or there is no job.
    """
    if not overrides:
        raise UserError("the grid is empty: a swept key has no value")
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    jobs: list[Job] = []
    numbers: dict[Path, int] = {}
    try:
        for number, job_overrides in enumerate(overrides, first_number):
            job = _compose(config, loader, number, job_overrides)
            try:
                _check(job, stage)
            except UserError as error:
                raise UserError(f"{job}: {error}") from None
            if job.folder in numbers and has_grid(config):
                raise UserError(
                    f"{job}: job {numbers[job.folder]} and job {number} have the same folder, "
                    f"{job.folder}"
                )
            numbers[job.folder] = number
            jobs.append(job)
        for job, label in zip(jobs, labels([job.overrides for job in jobs]), strict=True):
            if "tracking" in job.config and job.config.tracking.label is None:
                with read_write(job.config):
                    job.config.tracking.label = label
    finally:
        hydra_config.cfg = before
    return jobs


def _compose(
    config: DictConfig, loader: ConfigLoader, number: int, overrides: Sequence[str]
) -> Job:
    job = loader.load_sweep_config(config, list(overrides))
    with open_dict(job):
        job.hydra.job.id = number
        job.hydra.job.num = number
    HydraConfig.instance().set_config(job)  # what ${hydra:job.num} is read from
    with read_write(job.hydra), open_dict(job.hydra):
        # absolute, because with hydra.job.chdir each job's run_job starts in another's folder
        sweep_dir = Path(str(job.hydra.sweep.dir)).absolute()
        folder = sweep_dir / str(job.hydra.sweep.subdir)
        job.hydra.sweep.dir = str(sweep_dir)
        job.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(job)  # it copies, hence once more
    return Job(number, tuple(overrides), job, folder)


def _check(job: Job, stage: ModuleType) -> None:
    config = typed(task_config(job.config))
    one_line_errors(job.config.hydra.job.name, stage.check, config, job.folder)
    if hasattr(stage, "weight"):
        job.weight = stage.weight(config)
