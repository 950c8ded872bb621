"""A job's config as its dataclass, and a stage's errors as one line."""

import copy
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sparse_dict import config as _config  # noqa: F401  registers the schemas with Hydra
from sparse_dict.errors import UserError, explained, memory
from sparse_dict.launch.explain import no_key, unknown_keys, wrong_value
from sparse_dict.sae import schema

schema.register()

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


def typed(cfg: DictConfig) -> Any:
    """The config as its dataclass, ranges checked.

    Raises:
        UserError: a value is missing or out of range, or a key means nothing.
    """
    for key in unknown_keys(cfg):
        raise UserError(no_key(key, cfg))
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(wrong_value(error)) from None


def task_config(config: DictConfig) -> DictConfig:
    """What a script is given of a composed config: all but Hydra's own part, still typed."""
    task = copy.deepcopy(config)
    with read_write(task), open_dict(task):
        del task["hydra"]
    return task


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
