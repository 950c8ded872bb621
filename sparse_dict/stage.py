"""What the four scripts share: check before anything is written, run, one line on error.

Each stage is a module with ``check(config)``, which raises `UserError` while nothing has been
written yet and must be quick, and ``run(config)``, which does the work.
"""

import copy
import importlib
import logging
import sys
from types import ModuleType
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sparse_dict import config as _config  # noqa: F401  registers the schemas with Hydra
from sparse_dict.errors import UserError

log = logging.getLogger(__name__)

MODULES = {
    "train_lm": "sparse_dict.lm.stage",
    "harvest": "sparse_dict.activations.stage",
    "train_sae": "sparse_dict.sae.stage",
    "analyze": "sparse_dict.analysis.stage",
}


def _module(name: str) -> ModuleType:
    return importlib.import_module(MODULES[name])


def typed(cfg: DictConfig) -> Any:
    """The config as its dataclass, ranges checked.

    Raises:
        UserError: a value is missing or out of range.
    """
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(" ".join(str(error).split())) from None


def task_config(config: DictConfig) -> DictConfig:
    """What a script is given of a composed config: all but Hydra's own part, still typed."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


def run(name: str, cfg: DictConfig) -> Any:
    """Run stage `name`; a `UserError` ends a single run with one line and exit code 1."""
    try:
        return _module(name).run(typed(cfg))
    except UserError as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # one of Hydra's own, which it prints without a traceback
            raise CompactHydraException(str(error)) from None
        log.error("%s", error)
        raise SystemExit(1) from None


class CheckFirst(Callback):
    """Checks a single run before Hydra makes its folder, so that wrong input leaves no trace.

    Hydra turns exceptions in callbacks into warnings, hence the `SystemExit`. A multirun's jobs
    are checked by the launcher that trains them.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exit with code 2 and one line if the stage's `check` finds something wrong."""
        name = config.hydra.job.name
        try:
            _module(name).check(typed(task_config(config)))
        except UserError as error:
            print(f"{name}.py: {error}", file=sys.stderr)  # noqa: T201  logging is not set up yet
            raise SystemExit(2) from None
