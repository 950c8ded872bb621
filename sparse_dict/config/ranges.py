"""Ranges of config values: each stands with its field, and one base class checks them all."""

import hashlib
from collections.abc import Callable
from dataclasses import field, fields
from typing import Any

from omegaconf import MISSING

from sparse_dict.errors import UserError

NAME_BYTES = 255  # of a file's name, in all common file systems

Fits = Callable[[Any], bool]


def _ranged(default: Any, fits: Fits, what: str) -> Any:
    """A field whose values must fit; `what` ends the sentence "KEY must be ..."."""
    return field(default=default, metadata={"fits": fits, "what": what})


def positive(default: Any = MISSING) -> Any:
    """A field above zero."""
    return _ranged(default, lambda value: value > 0, "be positive")


def not_negative(default: Any = MISSING) -> Any:
    """A field of at least zero."""
    return _ranged(default, lambda value: value >= 0, "not be negative")


def coefficient() -> Any:
    """A field of at least zero that the record of a result can hold."""
    return between(0, 1e18, "[)")


def between(low: float, high: float, brackets: str = "()", default: Any = MISSING) -> Any:
    """A field between two numbers; a round bracket leaves that number out."""

    def fits(value: float) -> bool:
        above = value > low if brackets[0] == "(" else value >= low
        return above and (value < high if brackets[1] == ")" else value <= high)

    return _ranged(default, fits, f"lie in {brackets[0]}{low}, {high}{brackets[1]}")


def one_of(*choices: str, default: Any = MISSING) -> Any:
    """A field that is one of some texts."""
    return _ranged(default, choices.__contains__, f"be one of {', '.join(choices)}")


def at_least(low: int, why: str) -> Any:
    """A field from `low` on."""
    return _ranged(MISSING, lambda value: value >= low, f"be at least {low}{why}")


def even() -> Any:
    """A field that is even and above zero."""
    return _ranged(MISSING, lambda value: value > 0 and value % 2 == 0, "be even and positive")


def counts() -> Any:
    """A field that is a list of numbers above zero."""
    return _ranged(MISSING, lambda values: bool(values) and min(values) > 0, "be positive numbers")


def some_of(*choices: str) -> Any:
    """A field that is a list of some texts."""
    what = f"hold none but {', '.join(choices)}"
    return _ranged(MISSING, lambda values: {*values} <= {*choices}, what)


class Checked:
    """A section of the config that checks its fields' ranges when it is made."""

    section = ""  # its name in the config

    def __init_subclass__(cls, section: str | None = None) -> None:
        if section is not None:
            cls.section = section

    def __post_init__(self) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            # null, where it may be, is no value
            if one.metadata and value is not None and not one.metadata["fits"](value):
                raise UserError(f"{self.key(one.name)} must {one.metadata['what']}, not {value!r}")

    def key(self, name: str) -> str:
        return f"{self.section}.{name}" if self.section else name


def shortened(name: str, most: int) -> str:
    """`name` in at most so many bytes of UTF-8: what is longer ends with its hash."""
    data = name.encode()
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: most - 17].decode(errors='ignore')}-{digest}"
