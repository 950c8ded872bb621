"""Checks that the schemas share (`section` is the config group in messages), and file names."""

import hashlib
from typing import Any

from sparse_dict.errors import UserError

NAME_BYTES = 255  # of a file's name, in all common file systems


def positive(config: Any, section: str, *names: str) -> None:
    """Raise `UserError` unless each of the fields is above zero."""
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"{section}.{name} must be positive, not {getattr(config, name)}")


def not_negative(config: Any, section: str, *names: str) -> None:
    """Raise `UserError` if one of the fields is below zero."""
    for name in names:
        if not getattr(config, name) >= 0:
            raise UserError(f"{section}.{name} must not be negative, not {getattr(config, name)}")


def one_of(config: Any, section: str, name: str, *choices: str) -> None:
    """Raise `UserError` unless the field is one of `choices`."""
    value = getattr(config, name)
    if value not in choices:
        raise UserError(f"{section}.{name} must be one of {', '.join(choices)}, not {value!r}")


def shortened(name: str, most: int) -> str:
    """`name` in at most so many bytes of UTF-8: what is longer ends with its hash."""
    data = name.encode()
    if len(data) <= most:
        return name
    digest = hashlib.sha256(data).hexdigest()[:16]
    return f"{data[: most - 17].decode(errors='ignore')}-{digest}"
