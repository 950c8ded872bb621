"""`hydra/launcher=ensemble`: all jobs of a launch are trained by one call.

Hydra's own `run_job` makes each job's folder, ``.hydra/``, log file, callbacks and `JobReturn`; the
calls are nested, job i's task being the `run_job` of job i + 1, and the innermost task calls the
stage's ``train_many(configs, folders)``. Its ``objective(outcome)``, if there is one, gives the
value that a sweeper optimises (``hydra/sweeper=optuna``).

A log record made with ``extra={"folder": str(folder)}`` goes to that job's log file only, any
other one to the log files of all jobs.

Hydra imports this file at every start of every script, so it imports nothing heavy.
"""

import copy
import importlib
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sparse_dict.errors import UserError, escape_logs, explained
from sparse_dict.launch.checks import one_line_errors, typed
from sparse_dict.launch.explain import in_one_line
from sparse_dict.launch.jobs import MODULES, Job, checked, has_grid
from sparse_dict.storage import lock

log = logging.getLogger(__name__)

FRAMES_PER_JOB = 10  # of Python's stack, for one level of nested run_job; measured: 3


class ExitCode(Callback):
    """Ends a multirun in which jobs failed with exit code 1; the log holds their errors by then."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit, which Hydra does not turn into a warning as it would an exception."""
        raise SystemExit(1)


class EnsembleLauncher(Launcher):
    """Trains all jobs of a launch in one call."""

    def __init__(self) -> None:
        self.failed = False

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what Hydra gives.

        Raises:
            UserError: the stage trains no jobs together.
        """
        self.hydra_context = hydra_context
        self.config = config
        self.stage = MODULES[config.hydra.job.name]
        if not hasattr(importlib.import_module(self.stage), "train_many"):
            raise UserError("hydra/launcher must be basic here: only train_sae.py has others")

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; the results are in their order.

        Hydra's own sweeper is not given failed ones: it would not launch the batches that follow.

        Raises:
            UserError: a job's input is wrong.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = checked(self.config, job_overrides, initial_job_idx)
        shares = self._shares(list({job.folder: job for job in jobs}.values()))
        for i, share in enumerate(shares):
            where = f", share {i + 1} of {len(shares)}" if len(shares) > 1 else ""
            log.info("Launching %d jobs together%s", len(share), where)
            for job in share:
                log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))
        try:
            results = self._run(shares)
        finally:
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        returns: dict[Path, JobReturn] = {}
        for share, result in zip(shares, results, strict=True):
            self._log_failures(share, result)
            returns.update(zip((job.folder for job in share), result, strict=True))
        good = [returns[job.folder] for job in jobs]
        if has_grid(self.config):
            good = [ret for ret in good if not isinstance(ret._return_value, Exception)]
            if len(good) < len(jobs) and not self.failed:
                self.failed = True
                self.hydra_context.callbacks.callbacks.insert(0, ExitCode())  # called last
        return good

    def _shares(self, jobs: list[Job]) -> list[list[Job]]:
        """The jobs that are trained by one call each."""
        return [jobs]

    def _run(self, shares: list[list[Job]]) -> list[list[JobReturn]]:
        """Train each share; results in the same order."""
        return [Nest(self.hydra_context.callbacks, self.stage, share).run() for share in shares]

    def _log_failures(self, jobs: list[Job], returns: list[JobReturn]) -> None:
        """One line for each failed job, or a single one if all failed alike."""
        failed = [
            (job, str(ret._return_value))
            for job, ret in zip(jobs, returns, strict=True)
            if isinstance(ret._return_value, Exception)
        ]
        if 1 < len(failed) == len(jobs) and len({line for _, line in failed}) == 1:
            log.error("All %d jobs failed: %s", len(failed), failed[0][1])
        else:
            for job, line in failed:
                log.error("#%d %s failed: %s", job.number, job, line)


class Nest:
    """The nested `run_job` calls of one launch."""

    def __init__(self, callbacks: Callbacks, stage: str, jobs: list[Job]) -> None:
        self.callbacks = callbacks
        self.stage = importlib.import_module(stage)
        self.jobs = jobs
        self.configs: list[Any] = []
        self.consoles: list[logging.Handler] = []
        self.own_files: list[list[logging.FileHandler]] = []  # of each job
        self.outcomes: list[Any] = []
        self.returns: list[JobReturn] = []  # the innermost job's first
        self.broken: CompactHydraException | None = None

    def run(self) -> list[JobReturn]:
        """Run all jobs.

        Raises:
            CompactHydraException: Hydra itself could not set a job up, or another process works in
                a job's folder, so that none was trained.
        """
        recursion_limit = sys.getrecursionlimit()
        sys.setrecursionlimit(recursion_limit + FRAMES_PER_JOB * len(self.jobs))
        escape_logs()  # in the workers of a grid that was split, too
        logging.raiseExceptions = False  # a log file on a full disk: no traceback for each line
        try:
            with ExitStack() as locks:  # before Hydra writes there
                for job in self.jobs:
                    try:
                        locks.enter_context(lock.holding(job.folder))
                    except UserError as error:
                        raise CompactHydraException(f"{job}: {error}") from None
                self._enter(0)
        finally:
            sys.setrecursionlimit(recursion_limit)
        if self.broken is not None:
            raise self.broken
        return self.returns[::-1]

    def _enter(self, position: int) -> None:
        """Run the job at `position` and, inside it, those after it; past the last, train."""
        if position == len(self.jobs):
            self.outcomes = self._train()
            return
        job = self.jobs[position]
        context = HydraContext(
            config_loader=None,  # type: ignore[arg-type]  # run_job uses the callbacks only
            # callbacks keep state from a job's start to its end, and these jobs overlap
            callbacks=copy.deepcopy(self.callbacks),
        )
        try:
            ret = run_job(
                hydra_context=context,
                task_function=lambda config: self._task(position, config),
                config=job.config,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
        except Exception as error:  # not the task's, which run_job keeps: a full disk, say
            if self.broken is None:
                self.broken = CompactHydraException(f"{job}: {in_one_line(error)}")
                self.broken.__cause__ = error
        else:
            self.returns.append(ret)

    def _task(self, position: int, config: DictConfig) -> Any:
        self.configs.append(typed(config))  # here, where ${hydra:...} means this job
        root = logging.getLogger()
        self.own_files.append([h for h in root.handlers if isinstance(h, logging.FileHandler)])
        self.consoles = [h for h in root.handlers if not isinstance(h, logging.FileHandler)]
        self._enter(position + 1)
        if self.broken is not None:
            return None
        outcome = self.outcomes[position]
        root.handlers[:] = self.own_files[position]
        if isinstance(outcome, Exception):
            line = in_one_line(outcome)
            trace = None if isinstance(outcome, UserError) or explained(outcome) else outcome
            log.error("failed: %s", line, exc_info=trace)
        root.handlers[:] = [*self.consoles, *self.own_files[position]]
        if isinstance(outcome, Exception):
            raise UserError(line)  # any other class need not survive the way back from a worker
        objective = getattr(self.stage, "objective", None)
        return objective(outcome) if objective else outcome

    def _train(self) -> list[Any]:
        """The result or the exception of each job."""
        # each run_job has closed the log files of those before it
        self.own_files = [
            [reopened(file, str(job.folder)) for file in files]
            for job, files in zip(self.jobs, self.own_files, strict=True)
        ]
        all_files = [file for own in self.own_files for file in own]
        logging.getLogger().handlers[:] = [*self.consoles, *all_files]
        try:
            folders = [job.folder for job in self.jobs]
            name = self.jobs[0].config.hydra.job.name
            return list(one_line_errors(name, self.stage.train_many, self.configs, folders))
        except Exception as error:
            return [error] * len(self.jobs)


class Reopened(logging.FileHandler):
    """A log file that is open only while a record is written: there may be hundreds of them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; where that fails, the job goes on."""
        try:
            super().emit(record)
        except OSError:  # it could not be opened
            self.handleError(record)
        self.close()


def reopened(file: logging.FileHandler, folder: str) -> logging.FileHandler:
    """The same log file again, for records of the job in `folder` and those of all jobs."""
    again = Reopened(file.baseFilename, encoding=file.encoding, delay=True)
    again.setLevel(file.level)
    again.setFormatter(file.formatter)
    again.addFilter(lambda record: getattr(record, "folder", folder) == folder)
    return again
