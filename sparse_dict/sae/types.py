"""Types for annotations of what Hydra imports to compose a config, before torch and numpy are."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from sparse_dict.activations.store import Activations
    from sparse_dict.sae.folder import Dictionary
    from sparse_dict.sae.state import State
else:
    Activations = Dictionary = Generator = State = Tensor = Any

__all__ = ["Activations", "Dictionary", "Generator", "State", "Tensor"]
