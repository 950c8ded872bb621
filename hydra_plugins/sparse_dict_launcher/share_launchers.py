"""`hydra/launcher=` joblib, submitit_local, submitit_slurm, ray: the grid in shares, one a worker.

The jobs of a launch are composed and checked here, split into ``hydra.launcher.n_shares`` shares of
about equal work (the batch module's ``weight(config)``, if it has one), and each share is trained
as an ensemble by a worker, which sees the same folders as this process. The ready values lie in
``conf/hydra/launcher/``.

Hydra imports this file at every start of every script, hence the imports inside functions.
"""

import importlib.util
import logging
import os
import shutil
import signal
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import MISSING, DictConfig, OmegaConf

from hydra_plugins.sparse_dict_launcher.ensemble_launcher import EnsembleLauncher, Nest, one_line
from sparse_dict.config import CONF_DIR
from sparse_dict.errors import UserError
from sparse_dict.launch.jobs import Job
from sparse_dict.machine.balance import balanced
from sparse_dict.machine.interrupt import Interrupted

log = logging.getLogger(__name__)

Result = list[JobReturn] | UserError  # of a share; the error ended all its jobs

GRACE = 60.0  # seconds that interrupted workers have for their checkpoints
HERE = "hydra_plugins.sparse_dict_launcher.share_launchers."


@dataclass
class ShareConf:
    """What all of them have under ``hydra.launcher``."""

    _target_: str = MISSING
    n_shares: int = MISSING  # at most; each is trained as one ensemble
    batch: str = "sparse_dict.sae.stage"  # the module that holds check and train_many


@dataclass
class JoblibConf(ShareConf):
    """Processes of this machine."""

    _target_: str = HERE + "JoblibLauncher"
    gpus: int = MISSING  # share i sees GPU i modulo this number only; 0: all see all


@dataclass
class RayConf(ShareConf):
    """Tasks of a Ray cluster."""

    _target_: str = HERE + "RayLauncher"
    address: str | None = MISSING  # of the cluster; null starts one on this machine
    num_cpus: float | None = MISSING  # of a share; null, for this machine: its part of the cores
    num_gpus: float = MISSING  # of a share


@dataclass
class SubmititConf(ShareConf):
    """What submitit's executors share."""

    folder: str = MISSING  # where submitit keeps what it sends, and the workers' output
    timeout_min: int = MISSING


@dataclass
class SubmititLocalConf(SubmititConf):
    """Processes of this machine, as Slurm would run them."""

    _target_: str = HERE + "SubmititLocalLauncher"
    gpus: int = MISSING  # share i sees GPU i modulo this number only; 0: all see all


@dataclass
class SubmititSlurmConf(SubmititConf):
    """Slurm jobs: the options of sbatch, null where the cluster's own default holds."""

    _target_: str = HERE + "SubmititSlurmLauncher"
    max_num_timeout: int = MISSING  # how often a share that ran out of time is queued again
    partition: str | None = MISSING
    account: str | None = MISSING
    qos: str | None = MISSING
    constraint: str | None = MISSING
    gpus_per_node: int | None = MISSING
    cpus_per_task: int | None = MISSING
    mem_gb: float | None = MISSING
    setup: list[str] = MISSING  # shell commands before the worker starts
    additional_parameters: dict[str, Any] = MISSING  # any other option of sbatch


for _name, _node in {
    "joblib": JoblibConf,
    "ray": RayConf,
    "submitit_local": SubmititLocalConf,
    "submitit_slurm": SubmititSlurmConf,
}.items():
    ConfigStore.instance().store(
        group="schema/launcher", name=_name, node=_node, provider="sparse_dict"
    )


class OwnConfigs(SearchPathPlugin):
    """Lets the files in ``conf/hydra/`` stand for themselves.

    hydra-joblib-launcher and its kin store configs of the same names, which Hydra would take for
    the schemas of ours.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Drop what other plugins stored; all plugins are imported by now."""
        stored = ConfigStore.instance().repo["hydra"]
        for file in (CONF_DIR / "hydra").glob("*/*.yaml"):
            stored.get(file.parent.name, {}).pop(file.name, None)


@dataclass
class Share:
    """The jobs of one worker: travels there and is called."""

    jobs: list[Job]
    batch: str
    callbacks: Callbacks
    environment: dict[str, str | None]
    cores: list[int] | None  # None leaves them to whoever started the worker

    def __call__(self) -> Result:
        """Train the jobs in this process, which does nothing else."""
        from sparse_dict.launch import stage  # noqa: F401  the resolvers

        for key, value in self.environment.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        if self.cores is not None:
            # torch, which is not imported yet, makes so many threads; ours count the affinity
            limit = int(os.environ.get("OMP_NUM_THREADS", len(self.cores)))
            os.environ["OMP_NUM_THREADS"] = str(min(limit, len(self.cores)))
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, self.cores)
        hydra = self.jobs[0].config.hydra
        os.chdir(hydra.runtime.cwd)
        version.setbase(hydra.runtime.version_base)
        setup_globals()
        JobRuntime.instance().set("name", hydra.job.name)
        configure_log(hydra.hydra_logging, hydra.verbose)
        try:
            returns = Nest(self.callbacks, self.batch, self.jobs).run()
        except (KeyboardInterrupt, Interrupted):  # not submitit's exit from a job queued again
            return UserError("interrupted: the same command goes on from the last checkpoint")
        except Exception as error:
            log.debug("share failed", exc_info=True)
            return UserError(one_line(error))
        return portable(returns)

    def checkpoint(self) -> Any:
        """What submitit queues again when the time is up: training goes on by itself."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def portable(returns: list[JobReturn]) -> list[JobReturn]:
    """The same with every error as a `UserError`: others need not survive the way back."""
    told: dict[int, UserError] = {}  # one error may have ended several jobs
    for ret in returns:
        error = ret._return_value
        if isinstance(error, Exception):
            ret._return_value = told.setdefault(id(error), UserError(one_line(error)))
    return returns


def failed(job: Job, error: Exception) -> JobReturn:
    """What a job returns whose worker came to grief."""
    ret = JobReturn(overrides=list(job.overrides), cfg=job.config, status=JobStatus.FAILED)
    ret.return_value = error
    return ret


def split(jobs: list[Job], n_shares: int) -> list[list[Job]]:
    """Shares of about equal weight, each in the order given."""
    shares = sorted(balanced([job.weight for job in jobs], n_shares))
    return [[jobs[i] for i in share] for share in shares]


def cores_of(n_shares: int) -> list[list[int]]:
    """This process' cores, split among the shares; a core serves several if there are too few."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    if len(cores) < n_shares:
        return [[cores[i % len(cores)]] for i in range(n_shares)]
    bounds = [i * len(cores) // n_shares for i in range(n_shares + 1)]
    return [cores[start:stop] for start, stop in pairwise(bounds)]


@contextmanager
def set_for_workers(key: str, value: str) -> Iterator[None]:
    """An environment variable for the processes that are started inside."""
    before = os.environ.get(key)
    os.environ[key] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


class ShareLauncher(EnsembleLauncher):
    """Splits a launch among workers; each backend is a subclass."""

    package = ""  # what must be installed
    extra = ""  # the extra of this project that installs it

    def __init__(self, n_shares: int, batch: str) -> None:
        super().__init__(batch)
        self.n_shares = n_shares

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """As `EnsembleLauncher.setup`; a missing package ends the process with one line."""
        wrong = self.trouble()
        if wrong:
            launcher = config.hydra.runtime.choices["hydra/launcher"]
            sys.stderr.write(f"{config.hydra.job.name}.py: hydra/launcher={launcher} {wrong}\n")
            raise SystemExit(2)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def trouble(self) -> str | None:
        """Why this launcher cannot work here, if it cannot."""
        if importlib.util.find_spec(self.package) is None:
            return f"needs {self.package}: pip install 'sparse-dict[{self.extra}]'"
        if self.n_shares < 1:
            return f"needs hydra.launcher.n_shares of at least 1, not {self.n_shares}"
        return None

    def _shares(self, jobs: list[Job]) -> list[list[Job]]:
        return split(jobs, self.n_shares)

    def _run(self, shares: list[list[Job]]) -> list[list[JobReturn]]:
        # workers find the stages and this plugin where this process does
        python_path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with set_for_workers("PYTHONPATH", python_path):
            results = self._results(self._workers(shares))
        return [
            [failed(job, result) for job in share] if isinstance(result, Exception) else result
            for share, result in zip(shares, results, strict=True)
        ]

    def _workers(self, shares: list[list[Job]]) -> list[Share]:
        """The shares as they travel; here to workers whose cores are told by their machine."""
        callbacks = self.hydra_context.callbacks
        return [Share(jobs, self.batch, callbacks, {}, None) for jobs in shares]

    @abstractmethod
    def _results(self, workers: list[Share]) -> Sequence[list[JobReturn] | Exception]:
        """Call each share in a process of its own, all at once."""


class LocalShareLauncher(ShareLauncher):
    """Splits this machine's cores and GPUs as well.

    Two busy processes on the same cores slow each other down tenfold.
    """

    def __init__(self, n_shares: int, batch: str, gpus: int) -> None:
        super().__init__(n_shares, batch)
        self.gpus = gpus

    def _workers(self, shares: list[list[Job]]) -> list[Share]:
        workers = super()._workers(shares)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        for i, (worker, cores) in enumerate(zip(workers, cores_of(len(shares)), strict=True)):
            worker.cores = cores
            seen = visible
            if self.gpus:
                numbers = visible.split(",") if visible else [str(n) for n in range(self.gpus)]
                seen = numbers[i % min(self.gpus, len(numbers))]
            worker.environment = {"CUDA_VISIBLE_DEVICES": seen}
        return workers


class JoblibLauncher(LocalShareLauncher):
    """`hydra/launcher=joblib`: processes of this machine, of joblib's own pool."""

    package = "joblib"
    extra = "joblib"

    def _results(self, workers: list[Share]) -> list[Result | Exception]:
        from concurrent.futures import wait

        # not joblib.Parallel: it loses all results with one worker, and kills at the first Ctrl-C
        from joblib.externals.loky import ProcessPoolExecutor

        pool = ProcessPoolExecutor(len(workers))
        futures = [pool.submit(worker) for worker in workers]
        try:
            return [gathered(future.result) for future in futures]
        except KeyboardInterrupt:  # which the workers have got, too
            wait(futures, timeout=GRACE)
            raise
        except Interrupted:  # SIGTERM, which they have not
            for pid in list(pool._processes):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            wait(futures, timeout=GRACE)
            raise
        finally:
            pool.shutdown(kill_workers=True)


class RayLauncher(ShareLauncher):
    """`hydra/launcher=ray`: tasks of a Ray cluster, or of one started on this machine."""

    package = "ray"
    extra = "ray"

    def __init__(
        self,
        n_shares: int,
        batch: str,
        address: str | None,
        num_cpus: float | None,
        num_gpus: float,
    ) -> None:
        super().__init__(n_shares, batch)
        self.address = address
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus

    def trouble(self) -> str | None:
        """As for all; on a cluster, the cores of a share cannot be guessed."""
        if self.address is not None and self.num_cpus is None:
            return "on a cluster needs hydra.launcher.num_cpus"
        return super().trouble()

    def _workers(self, shares: list[list[Job]]) -> list[Share]:
        workers = super()._workers(shares)
        if self.address is None:
            for worker, cores in zip(workers, cores_of(len(shares)), strict=True):
                worker.cores = cores
        return workers

    def _results(self, workers: list[Share]) -> list[Result | Exception]:
        import ray

        if not ray.is_initialized():
            path = {"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}
            local: dict[str, Any] = {}
            if self.address is None:
                local = {"num_cpus": self.n_shares, "include_dashboard": False}
            ray.init(address=self.address, runtime_env=path, **local)
        # on this machine a share counts as one of `n_shares` cores, and pins itself to its own
        cores = self.num_cpus if self.address is not None else 1
        remote = ray.remote(
            num_cpus=cores,
            num_gpus=self.num_gpus,
            max_retries=0,
            max_calls=1,  # each in a fresh process, whose threads stay on its cores
        )
        tasks = [remote(call).remote(worker) for worker in workers]
        try:
            return [gathered(partial(ray.get, sent)) for sent in tasks]
        except (KeyboardInterrupt, Interrupted):
            for sent in tasks:
                ray.cancel(sent, force=False)
            ray.wait(tasks, num_returns=len(tasks), timeout=GRACE)
            raise


class SubmititLocalLauncher(LocalShareLauncher):
    """`hydra/launcher=submitit_local`: processes of this machine, as Slurm would run them."""

    package = "submitit"
    extra = "slurm"

    def __init__(self, n_shares: int, batch: str, gpus: int, folder: str, timeout_min: int) -> None:
        super().__init__(n_shares, batch, gpus)
        self.folder = folder
        self.timeout_min = timeout_min

    def _results(self, workers: list[Share]) -> list[Result | Exception]:
        import submitit

        executor = submitit.LocalExecutor(self.folder)
        executor.update_parameters(timeout_min=self.timeout_min)
        return submitted(executor, workers)


class SubmititSlurmLauncher(ShareLauncher):
    """`hydra/launcher=submitit_slurm`: an array of Slurm jobs, one a share."""

    package = "submitit"
    extra = "slurm"

    def __init__(
        self,
        n_shares: int,
        batch: str,
        folder: str,
        timeout_min: int,
        max_num_timeout: int,
        **options: Any,
    ) -> None:
        super().__init__(n_shares, batch)
        self.folder = folder
        self.timeout_min = timeout_min
        self.max_num_timeout = max_num_timeout
        self.options = options

    def trouble(self) -> str | None:
        """As for all, and no Slurm here."""
        wrong = super().trouble()
        if wrong is None and shutil.which("sbatch") is None:
            wrong = "needs Slurm's sbatch on the PATH: start it on a login node"
        return wrong

    def _results(self, workers: list[Share]) -> list[Result | Exception]:
        import submitit

        executor = submitit.SlurmExecutor(self.folder, max_num_timeout=self.max_num_timeout)
        options = {k: plain(v) for k, v in self.options.items() if v is not None}
        if "mem_gb" in options:
            options["mem"] = f"{int(options.pop('mem_gb') * 1024)}M"
        executor.update_parameters(
            time=self.timeout_min, job_name=self.config.hydra.job.name, **options
        )
        return submitted(executor, workers)


def call(share: Share) -> Result:
    """A share's call as a function, which is what Ray takes."""
    return share()


def plain(value: Any) -> Any:
    """A value of a config without OmegaConf."""
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def gathered(result: Callable[[], Result]) -> Result | Exception:
    """A worker's result, or why there is none."""
    try:
        return result()
    except Exception as error:
        log.debug("no result", exc_info=True)
        return UserError(f"its worker ended: {one_line(error)}")


def submitted(executor: Any, workers: list[Share]) -> list[Result | Exception]:
    """The results of submitit jobs; an interrupt cancels them."""
    with executor.batch():
        jobs = [executor.submit(worker) for worker in workers]
    for i, job in enumerate(jobs):
        log.info(
            "share %d of %d: job %s, output %s", i + 1, len(jobs), job.job_id, job.paths.stdout
        )
    try:
        return [gathered(job.result) for job in jobs]
    except (KeyboardInterrupt, Interrupted):
        for job in jobs:
            job.cancel(check=False)
        raise
