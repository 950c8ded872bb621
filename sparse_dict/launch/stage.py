"""What the four scripts share: check before anything is written, run, one line on error.

Each stage is a module with ``check(config, folder)``, which raises `UserError` while nothing has
been written yet and must be quick, and ``run(config)``, which does the work. `folder` is the one
into which Hydra will write the job's config and log.
"""

import copy
import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sparse_dict import config as _config  # noqa: F401  registers the schemas with Hydra
from sparse_dict.errors import UserError, explained, memory
from sparse_dict.launch import cli, jobs
from sparse_dict.machine import distributed
from sparse_dict.sae import architectures
from sparse_dict.storage import links, lock

log = logging.getLogger(__name__)
architectures.register()

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

MODULES = {
    "train_lm": "sparse_dict.lm.stage",
    "harvest": "sparse_dict.activations.stage",
    "train_sae": "sparse_dict.sae.stage",
    "analyze": "sparse_dict.analysis.stage",
}
SHARED = ("train_lm", "harvest")  # what several processes can do together, see `distributed`

# What to lower where memory runs out, the likeliest first.
APPETITE = {
    "train_lm": "training.batch_size (training.accumulate=2 makes up for half of it), model.n_ctx",
    "harvest": "harvest.batch_size, harvest.shard_rows",
    "train_sae": (
        "training.batch_size, sae.dict_size, or with -m the dictionaries trained at a time, "
        "hydra.sweeper.max_batch_size"
    ),
    "analyze": "comparison.block_rows, comparison.match_limit, or the parts of analysis=[...]",
}


def _module(name: str) -> ModuleType:
    return importlib.import_module(MODULES[name])


def typed(cfg: DictConfig) -> Any:
    """The config as its dataclass, ranges checked.

    Raises:
        UserError: a value is missing or out of range, or a key means nothing.
    """
    for key in cli.unknown_keys(cfg):
        raise UserError(cli.no_key(key, cfg))
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{where}{cli.plainly(error)}") from None


def task_config(config: DictConfig) -> DictConfig:
    """What a script is given of a composed config: all but Hydra's own part, still typed."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def run(name: str, cfg: DictConfig) -> Any:
    """Run stage `name`; a `UserError` ends a single run with one line and exit code 1.

    Returns:
        What a sweeper may optimise: the stage's ``objective`` of its outcome, if it has one.
    """
    stage = _module(name)
    logging.raiseExceptions = False  # a log file on a full disk: no traceback for each line
    try:
        outcome = one_line_errors(name, stage.run, typed(cfg))
        return stage.objective(outcome) if hasattr(stage, "objective") else outcome
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # one of Hydra's own, which it prints without a traceback
            raise CompactHydraException(str(error)) from None
        log.error("%s", error)
        raise SystemExit(1) from None


def one_line_errors(name: str, run: Callable[..., Any], *arguments: Any) -> Any:
    """`run(*arguments)` of stage `name`: what its machine lacks becomes a `UserError`.

    That is room on the disk, permission, or memory.
    """
    try:
        return run(*arguments)
    except Exception as error:
        if line := explained(error):
            raise UserError(line) from error
        if name in APPETITE and (lacking := memory(error)):
            raise UserError(f"out of memory ({lacking}): lower {APPETITE[name]}") from error
        raise


class CheckFirst(Callback):
    """Checks all jobs before Hydra makes the first one's folder: wrong input leaves no trace.

    Hydra turns exceptions in callbacks into warnings, hence the `SystemExit`. Our own launchers
    check their jobs themselves.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 and one line if the stage's `check` finds something wrong."""
        name = config.hydra.job.name
        HydraConfig.instance().set_config(config)  # what ${hydra:...} is read from
        try:
            task = typed(task_config(config))
            folder = _run_dir(config)
            if distributed.size() > 1 and name not in SHARED:
                raise UserError(f"{name}.py runs as one process: start it without torchrun")
            one_line_errors(name, _module(name).check, task, folder)
            if distributed.main():
                lock.hold_until_exit([folder])  # Hydra writes there before the stage begins
            else:
                distributed.hush(config)
        except UserError as error:
            if distributed.main():  # all others find the same
                print(f"{name}.py: {error}", file=sys.stderr)  # noqa: T201  before any logging
            raise SystemExit(2) from None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """The same for each job that Hydra's own launcher will run."""
        if distributed.size() > 1:
            print("torchrun starts one job at a time: no -m with it", file=sys.stderr)  # noqa: T201
            raise SystemExit(2)
        name = config.hydra.job.name
        try:
            links.refuse(Path(str(config.hydra.sweep.dir)))  # Hydra writes multirun.yaml there
        except UserError as error:
            print(f"{name}.py: {error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None
        if config.hydra.launcher._target_ != BASIC_LAUNCHER or not jobs.has_grid(config):
            return
        loader = GlobalHydra.instance().config_loader()
        try:
            grid = jobs.composed(config, loader, jobs.grid(config, loader), 0, _module(name))
            lock.hold_until_exit(job.folder for job in grid)
        except UserError as error:
            print(f"{name}.py: {error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None
        except (HydraException, AssertionError) as error:
            line = cli.explanation(error)
            if line is None:
                raise
            print(f"{name}.py: {line}", file=sys.stderr)  # noqa: T201
            raise SystemExit(1) from None


def _run_dir(config: DictConfig) -> Path:
    try:
        return Path(str(config.hydra.run.dir)).absolute()
    except OmegaConfBaseException as error:
        raise UserError(f"hydra.run.dir: {str(error).splitlines()[0]}") from None
