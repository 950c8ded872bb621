"""Command-line overrides as they are meant: read by the type of their key, in one spelling."""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from sparse_dict.errors import UserError
from sparse_dict.storage.records import overrides

# What Hydra reads by rules of its own: quotes, dictionaries, other keys' values, its functions.
HYDRAS = re.compile(
    r"""["'{}\\]|^(choice|range|interval|glob|shuffle|sort|tag|str|int|float|bool)\("""
)
PLAIN = re.compile(r"[A-Za-z0-9_/\-+.$%*@?|:]*")  # Hydra takes it without quotes
COUNT = re.compile(r"0|[1-9]\d*")  # a whole number as Hydra itself would write it
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d[\d_]*)?|[-+]?(inf|nan)", re.I)


def again(arguments: list[str]) -> list[str]:
    """The arguments; in place of ``--config-dir STUDY/.hydra --config-name config``, those of then.

    What Hydra has kept of a config has neither types nor what it is to do, so it is not run itself.
    """
    given = get_args_parser().parse_args(arguments)
    if given.config_name is None:
        return arguments
    try:
        kept = overrides(Path(given.config_dir or "."))
    except UserError as error:
        raise UserError(f"{error}: --config-name runs again what a .hydra has kept") from None
    return [*kept, *given.overrides, *(["--cfg", given.cfg] if given.cfg else [])]


def as_meant(argument: str) -> str:
    """A command line's argument, changed where Hydra would read it otherwise than it is meant."""
    if argument == "experiment=null":
        return "experiment=[]"  # Hydra itself takes no null from a command line
    key, equals, value = argument.partition("=")
    kind = kinds().get(key.lstrip("+"))
    if not equals or kind is None or HYDRAS.search(value):
        return argument
    meant = _text if kind is str else _integer
    brackets = "[]" if value.startswith("[") and value.endswith("]") else ""
    inner = ",".join(
        meant(part.strip())
        for part in value.removeprefix(brackets[:1]).removesuffix(brackets[1:]).split(",")
    )
    return f"{key}={brackets[:1]}{inner}{brackets[1:]}"


def _text(value: str) -> str:
    if value.startswith("~"):
        value = str(Path(value).expanduser())
    number = NUMBER.fullmatch(value) and not COUNT.fullmatch(value)
    if number or value.lower() in ("true", "false") or not PLAIN.fullmatch(value):
        return f'"{value}"'
    return value


def _integer(value: str) -> str:
    if not NUMBER.fullmatch(value) or "n" in value.lower():
        return value
    number = Decimal(value)
    return str(int(number)) if abs(number) < 1e18 and number == int(number) else value


@cache
def kinds() -> dict[str, type]:
    """Which keys of all scripts hold text (`str`), or a list of texts, and which whole numbers."""
    found: dict[str, type] = {}
    for group, tree in ConfigStore.instance().repo["schema"].items():
        prefix = "" if group.endswith(".yaml") else f"{group}."
        for schema in _schemas(tree):
            found |= _leaves(schema, prefix)
    return found


def _schemas(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        for below in tree.values():
            yield from _schemas(below)
    else:
        yield OmegaConf.get_type(tree.node)


def _leaves(schema: Any, prefix: str) -> Iterator[tuple[str, type]]:
    for name, hint in get_type_hints(schema).items():
        while kinds := [kind for kind in get_args(hint) if kind is not NoneType]:
            hint = kinds[0]  # of X | None, of list[X]
        if is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
        elif hint in (str, int):
            yield f"{prefix}{name}", hint
        elif hint is Any and prefix:  # a text or a list of them
            yield f"{prefix}{name}", str
