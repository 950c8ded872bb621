"""Kinds of dictionaries, a module each: `relu.py` is the shortest, `base.py` says what one has.

A module NAME here defines one subclass of `Architecture`; `conf/sae/*.yaml` chooses it by the
schema ``/schema/sae/NAME`` (`sae/schema.py`). Nothing else knows the list.
"""

from functools import cache

from sparse_dict.config import SAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.base import Architecture, Axis
from sparse_dict.sae.discovery import subclasses

__all__ = ["Architecture", "axes", "known", "of"]


@cache
def known() -> dict[str, type[Architecture]]:
    """Every kind by its name."""
    return subclasses(__name__, __path__, Architecture)


def axes() -> dict[str, Axis]:
    """What makes dictionaries sparse, by its key."""
    kinds: list[type[Architecture]] = [Architecture, *known().values()]
    return {kind.axis.key: kind.axis for kind in kinds}


def of(sae: SAEConfig) -> Architecture:
    """The kind that a config is of."""
    kind = known().get(sae.activation)
    if kind is None or kind.Config not in (type(sae), type(sae).__base__):
        raise UserError(f"sae.activation={sae.activation} is another kind: choose one by sae=NAME")
    return kind(sae)
