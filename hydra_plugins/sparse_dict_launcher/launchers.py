"""`hydra/launcher=`: all jobs of a launch are trained by one call, or in shares, one per worker.

ensemble trains them in this process. joblib, submitit_local, submitit_slurm and ray split them into
``hydra.launcher.n_shares`` shares of about equal ``weight(config)``, which workers, who see the
same folders, train as ensembles. Hydra imports this file at every start of every script, hence the
imports inside functions.
"""

import importlib.util
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import (
    JobReturn,
    JobRuntime,
    JobStatus,
    configure_log,
    filter_overrides,
    setup_globals,
)
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sparse_dict.config import CONF_DIR
from sparse_dict.errors import UserError
from sparse_dict.launch.explain import in_one_line
from sparse_dict.launch.jobs import Job, compose_jobs, has_grid, module
from sparse_dict.launch.multirun import train_together
from sparse_dict.machine import threads
from sparse_dict.machine.interrupt import Interrupted

log = logging.getLogger(__name__)

Result = list[JobReturn] | UserError  # of a share; the error ended all its jobs

GRACE = 60.0  # seconds that interrupted workers have for their checkpoints


class OwnConfigs(SearchPathPlugin):
    """Makes Hydra use ``conf/hydra/`` alone: other plugins store configs of the same names."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Drop what other plugins stored; all plugins are imported by now."""
        stored = ConfigStore.instance().repo["hydra"]
        for file in (CONF_DIR / "hydra").glob("*/*.yaml"):
            stored.get(file.parent.name, {}).pop(file.name, None)


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
        if wrong := self.trouble():
            chosen = config.hydra.runtime.choices["hydra/launcher"]
            raise UserError(f"hydra/launcher={chosen} {wrong}")
        self.hydra_context = hydra_context
        self.config = config
        self.stage = module(config.hydra.job.name)
        if not hasattr(self.stage, "train_many"):
            raise UserError("hydra/launcher must be basic here: only train_sae.py has others")

    def trouble(self) -> str | None:
        """Why this launcher cannot work here, if it cannot."""
        return None

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
        failed = {at: ret._return_value for at, ret in returns.items() if _failed(ret)}
        if hasattr(self.stage, "show"):
            self.stage.show({job.folder: job.config for job in jobs}, failed)
        good = [returns[job.folder] for job in jobs]
        if has_grid(self.config):
            good = [ret for ret in good if not _failed(ret)]
            if failed and not self.failed:
                self.failed = True
                self.hydra_context.callbacks.callbacks.insert(0, ExitCode())  # called last
        return good

    def _split(self, jobs: list[Job]) -> list[list[Job]]:
        return [jobs]

    def _train(self, shares: list[list[Job]]) -> list[list[JobReturn]]:
        callbacks = self.hydra_context.callbacks
        return [train_together(share, self.stage.__name__, callbacks) for share in shares]


def _failed(ret: JobReturn) -> bool:
    return isinstance(ret._return_value, Exception)


def _log_failures(jobs: list[Job], returns: list[JobReturn]) -> None:
    pairs = zip(jobs, returns, strict=True)
    failed = [(job, str(ret._return_value)) for job, ret in pairs if _failed(ret)]
    if 1 < len(failed) == len(jobs) and len({line for _, line in failed}) == 1:
        log.error("All %d jobs failed: %s", len(failed), failed[0][1])
    else:
        for job, line in failed:
            log.error("#%d %s failed: %s", job.number, job, line)


@dataclass
class Share:
    """The jobs of one worker, which is sent this object and calls it."""

    jobs: list[Job]
    stage: str  # its module
    callbacks: Callbacks
    environment: dict[str, str] = field(default_factory=dict)
    cores: list[int] | None = None  # None leaves them to whoever started the worker

    def __call__(self) -> Result:
        """Train the jobs in this process, which does nothing else."""
        os.environ.update(self.environment)
        if self.cores is not None:
            # torch, which is not imported yet, makes so many threads; ours count the affinity
            limit = int(os.environ.get("OMP_NUM_THREADS", len(self.cores)))
            os.environ["OMP_NUM_THREADS"] = str(min(limit, len(self.cores)))
            os.sched_setaffinity(0, self.cores)
        hydra = self.jobs[0].config.hydra
        os.chdir(hydra.runtime.cwd)
        version.setbase(hydra.runtime.version_base)
        setup_globals()
        JobRuntime.instance().set("name", hydra.job.name)
        configure_log(hydra.hydra_logging, hydra.verbose)
        try:
            return train_together(self.jobs, self.stage, self.callbacks)
        except (KeyboardInterrupt, Interrupted):  # not submitit's exit from a job queued again
            return UserError("interrupted: the same command goes on from the last checkpoint")
        except Exception as error:
            log.debug("share failed", exc_info=True)
            return UserError(in_one_line(error))

    def checkpoint(self) -> Any:
        """What submitit queues again when the time is up: training goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def split(jobs: list[Job], n_shares: int) -> list[list[Job]]:
    """Shares of about equal weight, each in the order given."""
    shares = sorted(threads.balanced([job.weight for job in jobs], n_shares))
    return [[jobs[i] for i in share] for share in shares]


def cores_of(n_shares: int) -> list[list[int]]:
    """This process' cores, split among the shares; a core serves several if there are too few."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < n_shares:
        return [[cores[i % len(cores)]] for i in range(n_shares)]
    return [cores[slice(*threads.share(len(cores), i, n_shares))] for i in range(n_shares)]


class ShareLauncher(EnsembleLauncher):
    """Splits a launch among workers; a backend has `_results(workers)`, which calls them at once.

    Workers on this machine get a part of its cores each, because two busy processes on the same
    cores slow each other down tenfold, and of its GPUs, if the launcher has the key ``gpus``.
    """

    package: ClassVar[str]  # what must be installed
    extra: ClassVar[str]  # the extra of this project that installs it
    here = True  # whether the workers share this machine
    _results: Callable[[list[Share]], Sequence[Result]]

    def __init__(self, n_shares: int, **settings: Any) -> None:
        super().__init__()
        self.n_shares = n_shares
        plain = OmegaConf.to_container(OmegaConf.create(settings))
        self.settings = cast("dict[str, Any]", plain)

    def trouble(self) -> str | None:
        if importlib.util.find_spec(self.package) is None:
            return f"needs {self.package}: pip install -e '.[{self.extra}]'"
        if not isinstance(self.n_shares, int) or self.n_shares < 1:
            return f"needs hydra.launcher.n_shares of at least 1, not {self.n_shares}"
        return None

    def _split(self, jobs: list[Job]) -> list[list[Job]]:
        return split(jobs, self.n_shares)

    def _train(self, shares: list[list[Job]]) -> list[list[JobReturn]]:
        # workers find the stages and this plugin where this process does
        os.environ["PYTHONPATH"] = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        callbacks = self.hydra_context.callbacks
        workers = [Share(jobs, self.stage.__name__, callbacks) for jobs in shares]
        for i, cores in enumerate(cores_of(len(shares)) if self.here else ()):
            workers[i].cores = cores
            if gpus := self.settings.get("gpus"):
                visible = os.environ.get("CUDA_VISIBLE_DEVICES")
                numbers = visible.split(",") if visible else [str(n) for n in range(gpus)]
                own = numbers[i % min(gpus, len(numbers))]
                workers[i].environment = {"CUDA_VISIBLE_DEVICES": own}
        returns = []
        for share, result in zip(shares, self._results(workers), strict=True):
            if isinstance(result, Exception):
                failed = [JobReturn(overrides=list(j.overrides), cfg=j.config) for j in share]
                for ret in failed:
                    ret.status, ret.return_value = JobStatus.FAILED, result
                result = failed
            returns.append(result)
        return returns


def _gathered(result: Callable[[], Result]) -> Result:
    """A worker's result, or why there is none."""
    try:
        return result()
    except Exception as error:
        log.debug("no result", exc_info=True)
        return UserError(f"its worker ended: {in_one_line(error)}")


class JoblibLauncher(ShareLauncher):
    """`hydra/launcher=joblib`: processes of this machine, of joblib's own pool."""

    package = extra = "joblib"

    def _results(self, workers: list[Share]) -> list[Result]:
        from concurrent.futures import wait

        # not joblib.Parallel: it loses all results with one worker, and kills at the first Ctrl-C
        from joblib.externals.loky import ProcessPoolExecutor

        # a pool each, because one whose worker dies kills all its others
        pools = [ProcessPoolExecutor(1) for _ in workers]
        futures = [pool.submit(worker) for pool, worker in zip(pools, workers, strict=True)]
        late = False
        try:
            return [_gathered(future.result) for future in futures]
        except (KeyboardInterrupt, Interrupted) as stop:
            late = True  # a second signal does not wait
            if isinstance(stop, Interrupted):  # SIGTERM; Ctrl-C the workers have got themselves
                for pid in [pid for pool in pools for pid in pool._processes]:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
            late = bool(wait(futures, timeout=GRACE).not_done)
            raise
        finally:
            for pool in pools:
                pool.shutdown(kill_workers=late)  # to kill takes pgrep, which containers may lack


class RayLauncher(ShareLauncher):
    """`hydra/launcher=ray`: tasks of a Ray cluster, or of one started on this machine."""

    package = extra = "ray"

    def trouble(self) -> str | None:
        self.here = self.settings["address"] is None
        if not self.here and self.settings["num_cpus"] is None:
            return "on a cluster needs hydra.launcher.num_cpus"
        return super().trouble()

    def _results(self, workers: list[Share]) -> list[Result]:
        import ray

        # on this machine a share counts as one of `n_shares` cores, and pins itself to its own
        local = {"num_cpus": self.n_shares, "include_dashboard": False}
        ray.init(
            address=self.settings["address"],
            runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
            ignore_reinit_error=True,
            **(local if self.here else {}),
        )
        remote = ray.remote(
            num_cpus=1 if self.here else self.settings["num_cpus"],
            num_gpus=self.settings["num_gpus"],
            max_retries=0,
            max_calls=1,  # each in a fresh process, whose threads stay on its cores
        )
        tasks = [remote(lambda share: share()).remote(worker) for worker in workers]
        try:
            return [_gathered(partial(ray.get, sent)) for sent in tasks]
        except (KeyboardInterrupt, Interrupted):
            for sent in tasks:
                ray.cancel(sent, force=False)
            ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
            raise


class SubmititLocalLauncher(ShareLauncher):
    """`hydra/launcher=submitit_local`: processes of this machine, as Slurm would run them."""

    package, extra = "submitit", "slurm"

    def _executor(self) -> Any:
        import submitit

        executor = submitit.LocalExecutor(self.settings["folder"])
        executor.update_parameters(timeout_min=self.settings["timeout_min"])
        return executor

    def _results(self, workers: list[Share]) -> list[Result]:
        executor = self._executor()
        with executor.batch():
            jobs = [executor.submit(worker) for worker in workers]
        for i, job in enumerate(jobs, 1):
            log.info(
                "share %d of %d: job %s, output %s", i, len(jobs), job.job_id, job.paths.stdout
            )
        try:
            return [_gathered(job.result) for job in jobs]
        except (KeyboardInterrupt, Interrupted):
            for job in jobs:
                job.cancel(check=False)
            raise


class SubmititSlurmLauncher(SubmititLocalLauncher):
    """`hydra/launcher=submitit_slurm`: an array of Slurm jobs, one per share."""

    here = False

    def trouble(self) -> str | None:
        if wrong := super().trouble():
            return wrong
        if shutil.which("sbatch") is None:
            return "needs Slurm's sbatch on the PATH: start it on a login node"
        return None

    def _executor(self) -> Any:
        import submitit

        options = {key: value for key, value in self.settings.items() if value is not None}
        executor = submitit.SlurmExecutor(
            options.pop("folder"), max_num_timeout=options.pop("max_num_timeout")
        )
        if "mem_gb" in options:
            options["mem"] = f"{int(options.pop('mem_gb') * 1024)}M"
        name = self.config.hydra.job.name
        executor.update_parameters(time=options.pop("timeout_min"), job_name=name, **options)
        return executor
