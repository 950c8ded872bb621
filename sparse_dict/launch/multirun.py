"""How a multirun becomes one pass: each job gets its folder, then one call trains them all.

`jobs.py` has composed and checked the jobs. Each gets what Hydra's own launcher would give it: its
folder with ``.hydra/`` and a log file, the callbacks, a `JobReturn`. In between, one call of the
stage's ``train_many(configs, folders)`` trains all; what it logs goes to the log files of all.
"""

import copy
import importlib
import logging
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, env_override
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from sparse_dict.errors import UserError, escape_logs
from sparse_dict.launch.explain import in_one_line, is_foreseen
from sparse_dict.launch.jobs import Job, task_config, typed
from sparse_dict.storage import files, lock

log = logging.getLogger(__name__)


def train_together(jobs: list[Job], stage: str, callbacks: Callbacks) -> list[JobReturn]:
    """Train all jobs by one call of the module `stage`; the results are in their order.

    Raises `CompactHydraException`, and trains none, if one cannot be set up or its folder is in
    use.
    """
    escape_logs()  # in the workers of a grid that was split, too
    logging.raiseExceptions = False  # a log file on a full disk: no traceback for each line
    module, before = importlib.import_module(stage), HydraConfig.instance().cfg
    begun = []
    try:
        with ExitStack() as stack:  # locks, and what jobs set in the environment
            for job in jobs:
                try:
                    stack.enter_context(lock.holding(job.folder))
                    stack.enter_context(env_override(job.config.hydra.job.env_set))
                    begun.append(BegunJob(job, copy.deepcopy(callbacks)))
                except Exception as error:
                    raise CompactHydraException(f"{job}: {in_one_line(error)}") from error
            logs = [file for job in begun for file in job.logs]
            logging.getLogger().handlers[:] = [*begun[0].consoles, *logs]
            configs, folders = [job.config for job in begun], [job.folder for job in jobs]
            outcomes: list[Any]
            try:
                outcomes = module.train_many(configs, folders)
            except Exception as error:
                outcomes = [error] * len(begun)
            return [job.end(found, module) for job, found in zip(begun, outcomes, strict=True)]
    finally:
        HydraConfig.instance().cfg = before


class BegunJob:
    """A job that has its folder, ``.hydra/``, log file and callbacks, as by Hydra's `run_job`."""

    def __init__(self, job: Job, callbacks: Callbacks) -> None:
        self._hydra_config = job.config
        self._callbacks = callbacks  # its own: they keep state from a job's start to its end
        HydraConfig.instance().set_config(job.config)  # what ${hydra:...} is read from
        task, hydra = task_config(job.config), OmegaConf.create({"hydra": job.config.hydra})
        self._return = JobReturn(
            overrides=list(job.config.hydra.overrides.task),
            cfg=task,
            hydra_cfg=hydra,
            working_dir=str(Path.cwd()),
            task_name=JobRuntime.instance().get("name"),
        )
        if (subdir := job.config.hydra.output_subdir) is not None:
            notes = {"config": task, "hydra": hydra, "overrides": job.config.hydra.overrides.task}
            for name, note in notes.items():
                files.write_text(job.folder / subdir / f"{name}.yaml", OmegaConf.to_yaml(note))
        configure_log(job.config.hydra.job_logging, job.config.hydra.verbose)
        handlers = logging.getLogger().handlers
        self.consoles = [h for h in handlers if not isinstance(h, logging.FileHandler)]
        # configuring the log of the next job closes these
        logs = [h for h in handlers if isinstance(h, logging.FileHandler)]
        self.logs = [_reopened(file) for file in logs]
        callbacks.on_job_start(config=job.config, task_function=lambda _: None)
        self.config = typed(copy.deepcopy(task))

    def end(self, outcome: Any, stage: ModuleType) -> JobReturn:
        """What Hydra gets of `outcome`, a result or an exception; the callbacks are told of it."""
        HydraConfig.instance().set_config(self._hydra_config)
        root = logging.getLogger()
        if isinstance(outcome, Exception):
            line = in_one_line(outcome, self._hydra_config.hydra.job.name)
            root.handlers[:] = self.logs
            log.error("failed: %s", line, exc_info=None if is_foreseen(outcome) else outcome)
            # any other class need not survive the way back from a worker
            self._return.return_value, self._return.status = UserError(line), JobStatus.FAILED
        else:
            objective = getattr(stage, "objective", None)
            self._return.return_value = objective(outcome) if objective else outcome
            self._return.status = JobStatus.COMPLETED
        root.handlers[:] = [*self.consoles, *self.logs]
        self._callbacks.on_job_end(config=self._hydra_config, job_return=self._return)
        return self._return


def _reopened(file: logging.FileHandler) -> logging.FileHandler:
    again = logging.FileHandler(file.baseFilename, encoding=file.encoding, delay=True)
    again.setLevel(file.level)
    again.setFormatter(file.formatter)
    return again
