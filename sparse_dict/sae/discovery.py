"""Finds what the modules of a package define: a kind of dictionary each, or an intervention."""

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def subclasses(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """The one subclass of `base` that each module of `package` defines, by the module's name."""
    found = {}
    for module in sorted({each.name for each in pkgutil.iter_modules(path)} - {"base"}):
        there = vars(import_module(f"{package}.{module}")).values()
        kinds = [kind for kind in there if isinstance(kind, type) and issubclass(kind, base)]
        (found[module],) = (kind for kind in kinds if kind.__module__ == f"{package}.{module}")
    return found
