"""Checks that the schemas share; `section` is the config group, named in the message."""

from typing import Any

from sparse_dict.errors import UserError


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
