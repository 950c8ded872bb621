"""`hydra/launcher=ensemble`: all jobs of a launch are trained by one call.

Hydra's own `run_job` makes each job's folder, ``.hydra/``, log file, callbacks and `JobReturn`; the
calls are nested, job i's task being the `run_job` of job i + 1, and the innermost task calls
``train_many(configs, folders)`` of the module that ``hydra.launcher.batch`` names. That module's
``check(config, folder)`` sees every job before anything is written.

A log record made with ``extra={"folder": str(folder)}`` goes to that job's log file only, any
other one to the log files of all jobs.

Hydra imports this file at every start of every script, hence the imports inside functions.
"""

import copy
import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

log = logging.getLogger(__name__)

BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
FRAMES_PER_JOB = 10  # of Python's stack, for one level of nested run_job; measured: 3


@dataclass
class EnsembleLauncherConf:
    """What may be set under ``hydra.launcher``."""

    _target_: str = "hydra_plugins.sparse_dict_launcher.ensemble_launcher.EnsembleLauncher"
    batch: str = "sparse_dict.sae.stage"  # the module that holds check and train_many


ConfigStore.instance().store(
    group="hydra/launcher", name="ensemble", node=EnsembleLauncherConf, provider="sparse_dict"
)


@dataclass
class Job:
    """A composed job, before it has a folder."""

    number: int
    overrides: tuple[str, ...]
    config: DictConfig
    folder: Path

    def __str__(self) -> str:
        return " ".join(filter_overrides(self.overrides)) or f"job {self.number}"


class FailedJob(JobReturn):
    """A failed job whose error lies in `return_value` instead of being raised from there.

    Hydra's own sweeper would give up the batches to come (``hydra.sweeper.max_batch_size``).
    """

    @property  # type: ignore[misc]  # nobody sets it
    def return_value(self) -> Any:
        """The exception."""
        return self._return_value


class ExitCode(Callback):
    """Ends a multirun some of whose jobs failed with exit code 1; their errors are told by then."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit, which Hydra does not turn into a warning as it would an exception."""
        raise SystemExit(1)


class EnsembleLauncher(Launcher):
    """Trains all jobs of a launch in one call."""

    def __init__(self, batch: str) -> None:
        self.batch = batch
        self.checked: dict[tuple[int, tuple[str, ...]], Job] = {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Check the whole grid, before the sweeper writes ``multirun.yaml``, if it is known."""
        self.hydra_context = hydra_context
        self.config = config
        self.failed = False
        self.basic_sweeper = config.hydra.sweeper._target_ == BASIC_SWEEPER
        if self.basic_sweeper:
            jobs = self._composed(self._grid(), 0)
            self.checked = {(job.number, job.overrides): job for job in jobs}

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run the jobs; the order of what comes back is theirs."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        keys = [(initial_job_idx + i, tuple(o)) for i, o in enumerate(job_overrides)]
        if all(key in self.checked for key in keys):
            jobs = [self.checked.pop(key) for key in keys]
        else:
            jobs = self._composed(job_overrides, initial_job_idx)
        log.info("Launching %d jobs together", len(jobs))
        for job in jobs:
            log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))

        recursion_limit = sys.getrecursionlimit()
        sys.setrecursionlimit(recursion_limit + FRAMES_PER_JOB * len(jobs))
        try:
            returns = Nest(self.hydra_context, self.batch, jobs).run()
        except KeyboardInterrupt:  # the traceback would show every level of the nest
            sys.stderr.write(f"{self.config.hydra.job.name}.py: interrupted\n")
            raise SystemExit(130) from None
        finally:
            sys.setrecursionlimit(recursion_limit)
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        self._tell_failures(jobs, returns)
        return returns

    def _grid(self) -> list[list[str]]:
        """The overrides of all jobs, as Hydra's own sweeper will make them."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        params = self.config.hydra.sweeper.params or {}
        arguments = [f"{key}={value}" for key, value in params.items()]
        arguments += self.config.hydra.overrides.task
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (grid,) = BasicSweeper.split_arguments(parser.parse_overrides(arguments), None)
        return grid

    def _composed(self, grid: Sequence[Sequence[str]], first_number: int) -> list[Job]:
        """Compose and check every job; wrong input ends the process with one line."""
        from sparse_dict.errors import UserError
        from sparse_dict.stage import task_config, typed

        check = importlib.import_module(self.batch).check
        program = f"{self.config.hydra.job.name}.py"
        hydra_config = HydraConfig.instance()
        before = hydra_config.cfg
        jobs: dict[Path, Job] = {}
        try:
            for number, overrides in enumerate(grid, first_number):
                job = self._compose(number, overrides)
                try:
                    check(typed(task_config(job.config)), job.folder)
                    if job.folder in jobs:
                        raise UserError(
                            f"job {jobs[job.folder].number} and job {number} have the same "
                            f"folder, {job.folder}"
                        )
                except UserError as error:
                    sys.stderr.write(f"{program}: {job}: {error}\n")
                    raise SystemExit(2) from None
                jobs[job.folder] = job
        finally:
            hydra_config.cfg = before
        return list(jobs.values())

    def _compose(self, number: int, overrides: Sequence[str]) -> Job:
        loader = self.hydra_context.config_loader
        config = loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = number
            config.hydra.job.num = number
        HydraConfig.instance().set_config(config)  # what ${hydra:job.num} is read from
        with read_write(config.hydra), open_dict(config.hydra):
            # absolute, because with hydra.job.chdir each job's run_job starts in another's folder
            sweep_dir = Path(str(config.hydra.sweep.dir)).absolute()
            folder = sweep_dir / str(config.hydra.sweep.subdir)
            config.hydra.sweep.dir = str(sweep_dir)
            config.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(config)  # it copies, hence once more
        return Job(number, tuple(overrides), config, folder)

    def _tell_failures(self, jobs: list[Job], returns: list[JobReturn]) -> None:
        """One line for each failed job, or a single one if one error ended them all."""
        failed = [
            (job, ret._return_value)
            for job, ret in zip(jobs, returns, strict=True)
            if isinstance(ret._return_value, Exception)
        ]
        if len(failed) > 1 and len({id(error) for _, error in failed}) == 1:
            log.error("All %d jobs failed: %s", len(failed), one_line(failed[0][1]))
        else:
            for job, error in failed:
                log.error("#%d %s failed: %s", job.number, job, one_line(error))
        if failed and not self.failed and self.basic_sweeper:
            self.failed = True
            self.hydra_context.callbacks.callbacks.insert(0, ExitCode())  # the last to be called
        if self.basic_sweeper:
            for position, ret in enumerate(returns):
                if isinstance(ret._return_value, Exception):
                    returns[position] = FailedJob(**vars(ret))


class Nest:
    """The nested `run_job` calls of one launch."""

    def __init__(self, hydra_context: HydraContext, batch: str, jobs: list[Job]) -> None:
        self.hydra_context = hydra_context
        self.batch = batch
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
            CompactHydraException: Hydra itself could not set a job up, so that none was trained.
        """
        self._enter(0)
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
            config_loader=self.hydra_context.config_loader,
            # callbacks keep state from a job's start to its end, and these jobs overlap
            callbacks=copy.deepcopy(self.hydra_context.callbacks),
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
                self.broken = CompactHydraException(f"{job}: {one_line(error)}")
                self.broken.__cause__ = error
        else:
            self.returns.append(ret)

    def _task(self, position: int, config: DictConfig) -> Any:
        from sparse_dict.errors import UserError
        from sparse_dict.stage import typed

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
            trace = None if isinstance(outcome, UserError) else outcome
            log.error("failed: %s", one_line(outcome), exc_info=trace)
        root.handlers[:] = [*self.consoles, *self.own_files[position]]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _train(self) -> list[Any]:
        """The result or the exception of each job."""
        root = logging.getLogger()
        # each run_job has closed the log files of those before it
        self.own_files = [
            [reopened(file, str(job.folder)) for file in files]
            for job, files in zip(self.jobs, self.own_files, strict=True)
        ]
        root.handlers[:] = [*self.consoles, *(file for own in self.own_files for file in own)]
        try:
            train_many = importlib.import_module(self.batch).train_many
            outcomes = list(train_many(self.configs, [job.folder for job in self.jobs]))
            if len(outcomes) != len(self.jobs):
                raise RuntimeError(
                    f"{self.batch}.train_many gave {len(outcomes)} results "
                    f"for {len(self.jobs)} jobs"
                )
            return outcomes
        except Exception as error:
            return [error] * len(self.jobs)


def reopened(file: logging.FileHandler, folder: str) -> logging.FileHandler:
    """The same log file again, for records of the job in `folder` and those of all jobs."""
    again = logging.FileHandler(file.baseFilename, encoding=file.encoding, delay=True)
    again.setLevel(file.level)
    again.setFormatter(file.formatter)
    again.addFilter(lambda record: getattr(record, "folder", folder) == folder)
    return again


def one_line(error: BaseException) -> str:
    """An error's message, with its type unless it is meant for users."""
    from sparse_dict.errors import UserError

    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
