"""Ranges of config values: each stands with its field, and one base class checks them all."""

import hashlib
from collections.abc import Callable
from dataclasses import field, fields
from functools import partial
from typing import Any

from omegaconf import MISSING

from sparse_dict.errors import UserError

NAME_BYTES = 255  # of a file's name, in all common file systems


def _ranged(fits: Callable[[Any], bool], what: str, default: Any = MISSING) -> Any:
    """A field whose values must fit; `what` ends the sentence "KEY must be ..."."""
    return field(default=default, metadata={"fits": fits, "what": what})


# Fields without a default, unless one is given.
positive = partial(_ranged, lambda value: value > 0, "be positive")
not_negative = partial(_ranged, lambda value: value >= 0, "not be negative")
even = partial(_ranged, lambda value: value > 0 and value % 2 == 0, "be even and positive")
counts = partial(_ranged, lambda values: values and min(values) > 0, "be positive numbers")


def between(low: float, high: float, brackets: str = "()", default: Any = MISSING) -> Any:
    """A field between two numbers; a round bracket leaves that number out."""

    def fits(value: float) -> bool:
        above = value > low if brackets[0] == "(" else value >= low
        return above and (value < high if brackets[1] == ")" else value <= high)

    return _ranged(fits, f"lie in {brackets[0]}{low}, {high}{brackets[1]}", default)


# Fields of at least zero that the record of a result can hold.
coefficient = partial(between, 0, 1e18, "[)")


def one_of(*choices: str, default: Any = MISSING) -> Any:
    """A field that is one of some texts."""
    return _ranged(choices.__contains__, f"be one of {', '.join(choices)}", default)


def at_least(low: int, why: str) -> Any:
    """A field from `low` on."""
    return _ranged(lambda value: value >= low, f"be at least {low}{why}")


def some_of(*choices: str) -> Any:
    """A field that is a list of some texts."""
    return _ranged(lambda values: {*values} <= {*choices}, f"hold none but {', '.join(choices)}")


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
                key = f"{self.section}.{one.name}".lstrip(".")
                raise UserError(f"{key} must {one.metadata['what']}, not {value!r}")


def shortened(name: str, most: int) -> str:
    """`name` in at most so many bytes of UTF-8: what is longer ends with its hash."""
    data = name.encode()
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: most - 17].decode(errors='ignore')}-{digest}"
