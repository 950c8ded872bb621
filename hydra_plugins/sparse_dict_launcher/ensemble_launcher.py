"""`hydra/launcher=ensemble`: all jobs of a launch are trained by one call.

Hydra imports this file at every start of every script, so it imports nothing heavy.
"""

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, filter_overrides, setup_globals
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sparse_dict.errors import UserError
from sparse_dict.launch.jobs import MODULES, Job, compose_jobs, has_grid
from sparse_dict.launch.multirun import train_together

log = logging.getLogger(__name__)


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
        self.hydra_context = hydra_context
        self.config = config
        self.stage = MODULES[config.hydra.job.name]
        if not hasattr(importlib.import_module(self.stage), "train_many"):
            raise UserError("hydra/launcher must be basic here: only train_sae.py has others")

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Train the jobs; the results are in their order.

        Hydra's own sweeper is not given failed ones: it would not launch the batches that follow.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = compose_jobs(self.config, job_overrides, initial_job_idx)
        shares = self._split(list({job.folder: job for job in jobs}.values()))
        for i, share in enumerate(shares):
            where = f", share {i + 1} of {len(shares)}" if len(shares) > 1 else ""
            log.info("Launching %d jobs together%s", len(share), where)
            for job in share:
                log.info("\t#%d : %s", job.number, " ".join(filter_overrides(job.overrides)))
        try:
            results = self._train(shares)
        finally:
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        returns: dict[Path, JobReturn] = {}
        for share, result in zip(shares, results, strict=True):
            _log_failures(share, result)
            returns.update(zip((job.folder for job in share), result, strict=True))
        if show := getattr(importlib.import_module(self.stage), "show", None):
            values = {folder: ret._return_value for folder, ret in returns.items()}
            failed = {at: value for at, value in values.items() if isinstance(value, Exception)}
            show({job.folder: job.config for job in jobs}, failed)
        good = [returns[job.folder] for job in jobs]
        if has_grid(self.config):
            good = [ret for ret in good if not isinstance(ret._return_value, Exception)]
            if len(good) < len(jobs) and not self.failed:
                self.failed = True
                self.hydra_context.callbacks.callbacks.insert(0, ExitCode())  # called last
        return good

    def _split(self, jobs: list[Job]) -> list[list[Job]]:
        return [jobs]

    def _train(self, shares: list[list[Job]]) -> list[list[JobReturn]]:
        callbacks = self.hydra_context.callbacks
        return [train_together(share, self.stage, callbacks) for share in shares]


def _log_failures(jobs: list[Job], returns: list[JobReturn]) -> None:
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
