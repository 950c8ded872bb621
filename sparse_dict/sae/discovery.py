"""Finds what the modules of a package define: a kind of dictionary each, or an intervention."""

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


def subclasses(package: str, path: Iterable[str], base: type[T]) -> dict[str, type[T]]:
    """The one subclass of `base` that each module of `package` defines, by the module's name."""
    found = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(path)):
        module = import_module(f"{package}.{name}")
        own = [
            kind
            for kind in vars(module).values()
            if isinstance(kind, type)
            and issubclass(kind, base)
            and kind.__module__ == module.__name__
        ]
        if name != "base":
            (found[name],) = own
    return found
