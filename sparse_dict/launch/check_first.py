"""Hydra's callback that checks a launch before anything is written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from sparse_dict.errors import UserError
from sparse_dict.launch import jobs, script
from sparse_dict.machine import distributed
from sparse_dict.storage import lock
from sparse_dict.storage.untrusted import refuse_links

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SHARED = ("train_lm", "harvest")  # what several processes can do together, see `distributed`


class CheckFirst(Callback):
    """Checks all jobs before Hydra makes the first one's folder: wrong input leaves no trace."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending_on_errors(config):
            name = config.hydra.job.name
            HydraConfig.instance().set_config(config)  # what ${hydra:...} is read from
            # first: the folder's name is made of its keys
            task = jobs.typed(jobs.task_config(config))
            folder = Path(str(config.hydra.run.dir)).absolute()
            if distributed.size() > 1 and name not in SHARED:
                raise UserError(f"{name}.py runs as one process: start it without torchrun")
            jobs.check_job(jobs.Job(0, (), config, folder), task)
            _refuse_links(config, folder)
            if distributed.main():
                lock.hold_until_exit([folder])  # Hydra writes there before the stage begins
            else:
                distributed.hush(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending_on_errors(config):
            if distributed.size() > 1:
                raise UserError("torchrun starts one job at a time: no -m with it")
            if os.environ.get("WANDB_SWEEP_ID") and config.tracking.mode != "disabled":
                raise UserError("wandb's agent starts one job at a time: no -m with it")
            if jobs.has_grid(config):
                found = jobs.check_grid(config)
                # Hydra writes multirun.yaml there: it must be a folder of these jobs' study
                with read_write(config.hydra):
                    config.hydra.sweep.dir = found[0].config.hydra.sweep.dir
                if config.hydra.launcher._target_ == BASIC_LAUNCHER:
                    lock.hold_until_exit(job.folder for job in found)
            _refuse_links(config, Path(str(config.hydra.sweep.dir)).absolute() / "multirun.yaml")


@contextmanager
def _ending_on_errors(config: DictConfig) -> Iterator[None]:
    """End the process with one line on any error, which Hydra would turn into a warning."""
    try:
        if config.hydra.job.chdir:
            raise UserError("hydra.job.chdir must be false: paths count from where you stand")
        yield
    except Exception as error:
        script.fail(error, OmegaConf.select(config, "hydra.job.name"))


def _refuse_links(config: DictConfig, path: Path) -> None:
    study = Path(str(config.study_dir)).absolute()
    refuse_links(path, study)
    refuse_links(study / "wandb")
