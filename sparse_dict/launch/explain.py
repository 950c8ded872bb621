"""One line on what is wrong with a config or a command line, with what was probably meant."""

import difflib
import re
import shlex
import sys
import traceback
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from sparse_dict.config import choices
from sparse_dict.errors import UserError, lacking, one_line
from sparse_dict.sae import interventions

GROUPS = ("experiment", "hydra/launcher", "hydra/sweeper")  # overridden like keys
BESIDE = ("Config search path:", "To append to your")  # these begin what Hydra adds to an error
FULL_KEY = "\n    full_key: "  # OmegaConf adds it to errors of any class
SAMPLER = "hydra/sweeper/sampler/"  # configs that come with Optuna's sweeper


# What to lower where memory runs out, the likeliest first.
LOWER = {
    "train_lm": "training.batch_size (training.accumulate=2 makes up for half of it), model.n_ctx",
    "harvest": "harvest.batch_size, harvest.shard_rows",
    "train_sae": (
        "training.batch_size, sae.dict_size, or with -m the dictionaries trained at a time, "
        "hydra.sweeper.max_batch_size"
    ),
    "analyze": "comparison.block_rows, comparison.match_limit, or the parts of analysis=[...]",
}


def is_foreseen(error: Exception) -> bool:
    """Whether an error is of the input or of what the machine lacks: else it is a bug of ours."""
    return isinstance(error, UserError) or _is_hydras(error) or lacking(error) is not None


def _is_hydras(error: Exception) -> bool:
    known = isinstance(error, HydraException | OmegaConfBaseException)
    return known or FULL_KEY in str(error) or _raised_by_hydra(error)


def _raised_by_hydra(error: Exception) -> bool:
    """Whether it is one of the plain ValueErrors by which Hydra refuses a command line."""
    if type(error) is not ValueError or error.__traceback__ is None:
        return False
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals["__name__"]).startswith("hydra.")


def in_one_line(error: Exception, stage: str = "") -> str:
    """One line on any error: what is wrong, and what to do; `stage` has met it."""
    if _is_hydras(error):
        return _of_hydra(error)
    return lacking(error, LOWER.get(stage)) or one_line(error, named=True)


def _of_hydra(error: Exception) -> str:
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    if type(error) is AttributeError or isinstance(cause, MissingMandatoryValue):
        # a key of a section that is missing: OmegaConf fails in one of these two ways
        said = text.partition(FULL_KEY)[2] or lines[0].removeprefix("Error merging override ")
        typed = re.split("[=\n]", said)[0]
        return f"{typed}: {typed.split('.')[0]} is off; analysis=[...] says what is on"
    if isinstance(error, OverrideParseException):
        key, equals, value = error.override.partition("=")
        if equals and '"' not in value:
            quoted = shlex.quote(f'{key}="{value}"')
            return f"cannot read {error.override!r}: type {quoted}"
        return (
            f"cannot read {error.override!r}: an override is key=value, "
            "in quotes for the shell if it holds spaces, brackets or quotes"
        )
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        path = str(error.missing_cfg_file)
        group, _, choice = path.rpartition("/")
        if path.startswith(SAMPLER) and not error.options:
            return "hydra/sweeper=optuna needs Optuna: pip install -e '.[optuna]'"
        # Hydra gives no options where a list names several choices of a group.
        folder = f"{Path(sys.argv[0]).stem}/{group}" if group == "experiment" else group
        there = sorted(error.options or choices(folder))
        return f"no {group}={choice}{_did_you_mean(choice, there)} (choices: {', '.join(there)})"
    if isinstance(error, OmegaConfBaseException):
        return wrong_value(error)
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        if (file := re.match("In '(experiment/.*)'", text)) and cause.full_key == "experiment":
            return f"{file[1]}.yaml must begin with the line # @package _global_"
        where = f"{lines[0].split(':')[0]}: " if text.startswith("In '") else ""
        root = cause.parent_node._get_root() if cause.parent_node is not None else None
        typed = f"Could not override '{cause.full_key}."  # `full_key` is then only the known part
        key = text.split("'")[1] if text.startswith(typed) else cause.full_key
        return where + no_key(key, root)
    if isinstance(cause, OmegaConfBaseException):
        what = lines[0].removeprefix("Error merging override ") if lines else "config"
        return f"{what}: {_first_line(cause)}"
    return " ".join(takewhile(lambda line: not line.startswith(BESIDE), lines))


def no_key(key: str, root: DictConfig | None) -> str:
    """One line on a key that the config `root` does not have."""
    for name, own in interventions.keys().items():
        if key.removeprefix("sae.") in own:
            return f"no key {key}: it comes with intervention={name}"
    kind = "hydra" if key.startswith("hydra.") else "job"
    names = [] if root is None else [*_keys(root, kind == "hydra"), *GROUPS]
    meant = _did_you_mean(key, [name for name in names if name != key])
    return f"no key {key}{meant} (--cfg {kind} shows all keys)"


def wrong_value(error: OmegaConfBaseException) -> str:
    """One line on a value, which names the key."""
    line = _first_line(error)
    if ours := line.partition("UserError raised while resolving interpolation: ")[2]:
        return ours
    return f"{error.full_key}: {line}" if error.full_key else line


def _first_line(error: OmegaConfBaseException) -> str:
    line = str(error).splitlines()[0]
    if "missing mandatory value" in line:
        return f"no value: give {error.full_key}=..."
    return line


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    found = nearest(name, names)
    return f": did you mean {found}?" if found else ""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names`, dotted or not, that `name` was most likely meant to be."""
    leaves: dict[str, list[str]] = {}
    for candidate in names:
        leaves.setdefault(candidate.rpartition(".")[2], []).append(candidate)
    everything = [candidate for candidates in leaves.values() for candidate in candidates]
    leaf = name.rpartition(".")[2]
    if leaf in leaves:  # the right name in the wrong section, or in none
        return max(leaves[leaf], key=lambda c: difflib.SequenceMatcher(None, name, c).ratio())
    if close := difflib.get_close_matches(name, everything, n=1):
        return close[0]
    close = difflib.get_close_matches(leaf, list(leaves), n=1)
    return leaves[close[0]][0] if close else None


def _keys(node: DictConfig, hydra: bool, path: str = "") -> Iterator[str]:
    for key in map(str, node):
        if path == "" and (key == "hydra") != hydra:
            continue
        yield f"{path}{key}"
        if (child := _section(node, key)) is not None:
            yield from _keys(child, hydra, f"{path}{key}.")


def unknown_keys(node: DictConfig, path: str = "") -> Iterator[str]:
    """Keys that a dataclass in `node` does not have: ``+sae.foo=1`` gets them past the schema."""
    fields = getattr(OmegaConf.get_type(node), "__dataclass_fields__", None)
    for key in map(str, node):
        if fields is not None and key not in fields:
            yield f"{path}{key}"
        elif (child := _section(node, key)) is not None:
            yield from unknown_keys(child, f"{path}{key}.")


def _section(node: DictConfig, key: str) -> DictConfig | None:
    child = node._get_node(key)
    if not isinstance(child, DictConfig) or child._is_none() or child._is_missing():
        return None
    return child
