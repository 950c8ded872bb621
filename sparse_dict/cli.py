"""How a script starts: what Hydra cannot make of the command line costs one line, not ten."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from types import TracebackType

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

FULL = "HYDRA_FULL_ERROR"  # set to 1, it gets the whole traceback of any error
GROUPS = ("experiment", "hydra/launcher", "hydra/sweeper")  # overridden like keys
SAMPLER = "hydra/sweeper/sampler/"  # configs that come with Optuna's sweeper


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``; an error in the config ends it with one line and exit code 1."""
    if os.environ.get(FULL) == "1":
        return main()
    os.environ[FULL] = "1"  # otherwise Hydra prints an error and exits by itself
    try:
        main()
    except Exception as error:
        line = explanation(error)
        if line is None:
            raise
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)  # noqa: T201  no logging yet
        raise SystemExit(1) from None
    finally:
        del os.environ[FULL]


def explanation(error: Exception) -> str | None:
    """One line on an error in the config or the overrides, None for any other error."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read {error.override!r}: an override is key=value, "
            "in quotes for the shell if it holds spaces, brackets or quotes"
        )
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        return _missing(str(error.missing_cfg_file), error.options)
    if "No match in the defaults list" in text:
        return f"{lines[0].split(chr(39))[1]} is no group of this script: --help lists those it has"
    if text.startswith("Ambiguous value") or text.endswith("requires --multirun"):
        override = text.split("'")[1]
        return f"{override} holds several values: add -m to try each, or brackets for a list"
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        where = f"{lines[0].split(':')[0]}: " if text.startswith("In '") else ""
        root = cause.parent_node._get_root() if cause.parent_node is not None else None
        return where + no_key(cause.full_key, root)
    if isinstance(cause, OmegaConfBaseException):
        what = lines[0].removeprefix("Error merging override ") if lines else "config"
        return f"{what}: {str(cause).splitlines()[0]}"
    if isinstance(error, HydraException) or _is_hydras(error.__traceback__):
        kept = takewhile(lambda line: line != "Config search path:", lines)
        return " ".join(line for line in kept if not line.startswith("To append to your"))
    return None


def no_key(key: str, root: DictConfig | None) -> str:
    """One line on a key that the config `root` does not have."""
    kind = "hydra" if key.startswith("hydra.") else "job"
    names = [] if root is None else [*_keys(root, kind == "hydra"), *GROUPS]
    meant = _did_you_mean(key, [name for name in names if name != key])
    return f"no key {key}{meant} (--cfg {kind} shows all keys)"


def _missing(path: str, options: Iterable[str] | None) -> str:
    """One line on a config file that does not exist."""
    group, _, choice = path.rpartition("/")
    if path.startswith(SAMPLER) and not options:
        return "hydra/sweeper=optuna needs Optuna: pip install 'sparse-dict[optuna]'"
    there = sorted(options or [])
    return f"no {group}={choice}{_did_you_mean(choice, there)} (there is {', '.join(there)})"


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
    """Dotted names of all keys: of Hydra's own, or of all others."""
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
            continue
        if (child := _section(node, key)) is not None:
            yield from unknown_keys(child, f"{path}{key}.")


def _section(node: DictConfig, key: str) -> DictConfig | None:
    child = node._get_node(key)
    if not isinstance(child, DictConfig) or child._is_none() or child._is_missing():
        return None
    return child


def _is_hydras(trace: TracebackType | None) -> bool:
    """Whether Hydra itself raised, before a job began."""
    module = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "run_job":
            return False
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.startswith("hydra.")
