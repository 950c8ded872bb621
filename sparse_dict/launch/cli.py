"""How a script starts: what Hydra cannot make of the command line costs one line, not ten."""

import difflib
import io
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from itertools import takewhile
from pathlib import Path
from types import TracebackType

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sparse_dict.config import choices
from sparse_dict.errors import explained
from sparse_dict.machine import distributed, interrupt

FULL = "HYDRA_FULL_ERROR"  # set to 1, it gets the whole traceback of any error
GROUPS = ("experiment", "hydra/launcher", "hydra/sweeper")  # overridden like keys
SAMPLER = "hydra/sweeper/sampler/"  # configs that come with Optuna's sweeper
MULTIRUN = ("-m", "--multirun")
KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``.

    An error in the config ends it with one line and exit code 1, SIGTERM and Ctrl-C with one line
    and 128 + the signal's number.
    """
    script = Path(sys.argv[0]).name
    sys.argv[1:] = _sorted(sys.argv[1:])
    _check_flags(script, sys.argv[1:])
    if os.environ.get(FULL) == "1":
        return main()
    os.environ[FULL] = "1"  # otherwise Hydra prints an error and exits by itself
    try:
        with interrupt.ending():
            main()
    except Exception as error:
        line = explanation(error) or explained(error)  # of us, or of the machine
        if line is None:
            raise
        sys.stderr.write(f"{script}: {line}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write(f"{script}: stopped by Ctrl-C: the same command goes on\n")
        raise SystemExit(130) from None
    except interrupt.Interrupted as ended:
        if distributed.main():
            sys.stderr.write(f"{script}: stopped by {ended.name}: the same command goes on\n")
        raise
    finally:
        del os.environ[FULL]


def _sorted(arguments: list[str]) -> list[str]:
    """``-m`` first, wherever it was typed: argparse takes overrides in one piece only."""
    return sorted(arguments, key=lambda argument: argument not in MULTIRUN)


def _check_flags(script: str, arguments: list[str]) -> None:
    """End with one line, without argparse's usage, if a flag of Hydra's is wrong."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            get_args_parser().parse_args(arguments)
    except SystemExit as ended:
        if ended.code:
            what = said.getvalue().rpartition("error: ")[2].strip()
            sys.stderr.write(f"{script}: {what}: --help shows what it takes\n")
        raise


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
        typed = f"Could not override '{cause.full_key}."  # more than Hydra calls unknown
        key = lines[0].split("'")[1] if lines[0].startswith(typed) else cause.full_key
        return where + no_key(key, root)
    if text.startswith("Could not append to config.") and len(quoted := text.split("'")) > 3:
        return f"{quoted[1]} is there already: {quoted[3]}, without the +"
    if text.startswith("Could not delete from config."):
        return (
            f"{text.split(chr(39))[1]} is not there: nothing to delete (--cfg job shows all keys)"
        )
    if text.startswith("Cannot find primary config"):
        return (
            f"no config {text.split(chr(39))[1]}: leave out --config-name; experiment=NAME chooses"
        )
    if isinstance(cause, OmegaConfBaseException):
        what = lines[0].removeprefix("Error merging override ") if lines else "config"
        return f"{what}: {plainly(cause)}"
    if isinstance(error, AssertionError) and (below := _below_null(error.__traceback__)):
        return f"{below}: {below.partition('.')[0]} is off; analysis=[...] says what is on"
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


def plainly(error: OmegaConfBaseException) -> str:
    """OmegaConf's first line on a wrong value, without its own words for types."""
    line = str(error).splitlines()[0]
    if found := re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", line):
        return f"{found[1]!r} is not {KINDS.get(found[2], found[2])}"
    if found := re.match(r"Value '(.*)' is not a valid bool", line):
        return f"{found[1]!r} is not {KINDS['Boolean']}"
    if found := re.match(r"field '(.*)' is not Optional", line):
        return "null is not allowed"
    if "is not a ListConfig, list or tuple" in line:
        return "a list is wanted: '[first,second]'"
    if "missing mandatory value" in line:
        return f"no value: give {error.full_key}=..."
    return line


def _missing(path: str, options: Iterable[str] | None) -> str:
    """One line on a config file that does not exist."""
    group, _, choice = path.rpartition("/")
    if path.startswith(SAMPLER) and not options:
        return "hydra/sweeper=optuna needs Optuna: pip install 'sparse-dict[optuna]'"
    # Hydra gives no options where a list names several choices of a group.
    there = sorted(options or choices(group))
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


def _below_null(trace: TracebackType | None) -> str | None:
    """The key of an override below a section that is null, on which OmegaConf trips."""
    for frame, _ in traceback.walk_tb(trace):
        if frame.f_code.co_name == "_apply_overrides_to_config":
            return str(frame.f_locals["override"].key_or_group)
    return None


def _is_hydras(trace: TracebackType | None) -> bool:
    """Whether Hydra itself raised, before a job began."""
    module = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "run_job":
            return False
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module.startswith("hydra.")
