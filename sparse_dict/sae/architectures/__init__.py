"""Kinds of dictionaries, a module each: `relu.py` is the shortest, `base.py` says what one has.

A module NAME here defines one subclass of `Architecture`; `conf/sae/*.yaml` chooses it by the
schema ``/schema/sae/NAME``. Nothing else knows the list.
"""

import pkgutil
from functools import cache
from importlib import import_module

from hydra.core.config_store import ConfigStore

from sparse_dict.config import SAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.base import Architecture

__all__ = ["Architecture", "known", "of", "register"]


@cache
def known() -> dict[str, type[Architecture]]:
    """Every kind by its name."""
    modules = (m.name for m in pkgutil.iter_modules(__path__) if m.name != "base")
    found = {}
    for name in sorted(modules):
        module = import_module(f"{__name__}.{name}")
        (found[name],) = (
            kind
            for kind in vars(module).values()
            if isinstance(kind, type)
            and issubclass(kind, Architecture)
            and kind.__module__ == module.__name__
        )
    return found


def of(sae: SAEConfig) -> Architecture:
    """The kind that a config is of.

    Raises:
        UserError: `sae.activation` was set directly instead of by ``sae=NAME``.
    """
    kind = known().get(sae.activation)
    if kind is None or type(sae) is not kind.Config:
        raise UserError(
            f"sae.activation={sae.activation} is not of this kind of dictionary: choose one by "
            "sae=NAME (--help lists them)"
        )
    return kind(sae)


def register() -> None:
    """Make the kinds' schemas known to Hydra."""
    for name, kind in known().items():
        ConfigStore.instance().store(
            group="schema/sae", name=name, node=kind.Config, provider="sparse_dict"
        )
