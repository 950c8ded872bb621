"""Types for annotations in modules that are imported before torch is, or must not import it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch import device as Device
    from torch.nn import Module, Parameter
    from torch.optim import Optimizer

    from sparse_dict.activations.store import Activations
    from sparse_dict.lm.interface import LanguageModel, OpenLM
    from sparse_dict.lm.model import GPT
    from sparse_dict.sae.folder import Dictionary
    from sparse_dict.sae.module import TorchDictionary
    from sparse_dict.sae.state import State
    from sparse_dict.text.tokenizer import Tokenizer
else:
    Activations = Device = Dictionary = Generator = GPT = LanguageModel = Module = OpenLM = Any
    Optimizer = Parameter = State = Tensor = Tokenizer = TorchDictionary = Any

__all__ = [
    "GPT", "Activations", "Device", "Dictionary", "Generator", "LanguageModel", "Module", "OpenLM",
    "Optimizer", "Parameter", "State", "Tensor", "Tokenizer", "TorchDictionary",
]  # fmt: skip
