"""What may be done to a dictionary beside training it: a module each, `base.py` says what one has.

A module NAME here defines one subclass of `Intervention`. The keys of the config's section `sae`
that it alone reads are there where ``intervention=NAME`` is chosen. Nothing else knows the list.
"""

from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from sparse_dict.annotations import Activations
from sparse_dict.config import SAEConfig
from sparse_dict.sae.discovery import subclasses
from sparse_dict.sae.interventions.base import Intervention, Moment

__all__ = ["Intervention", "Moment", "asked", "keys", "known", "of"]


@cache
def known() -> dict[str, type[Intervention[Any]]]:
    """Every intervention by its name."""
    return subclasses(__name__, __path__, Intervention)


def keys() -> dict[str, dict[str, Any]]:
    """By intervention, its own keys of `sae` with their defaults, by which nothing is done."""
    shared = {field.name for field in fields(SAEConfig)}
    own = {
        name: {f.name: f.default for f in fields(kind.Config) if f.name not in shared}
        for name, kind in known().items()
    }
    return {name: found for name, found in own.items() if found}


def asked(sae: SAEConfig) -> list[type[Intervention[Any]]]:
    """Those that a config asks for, in the order in which they act after a step."""
    return sorted(
        (kind for kind in known().values() if isinstance(sae, kind.Config) and kind.asked(sae)),
        key=lambda kind: kind.last,
    )


def of(sae: SAEConfig, lm_dir: Path, activations: Activations) -> list[Intervention[Any]]:
    """Those that a config asks for, for one dictionary; `activations` are what it reads."""
    return [kind(sae, lm_dir, activations) for kind in asked(sae)]
