"""The post's dictionary: ReLU and L1, with two matrices (sae=untied) or one (sae=tied)."""

from dataclasses import dataclass

from sparse_dict.config import SAEConfig
from sparse_dict.sae.architectures.base import Architecture


@dataclass
class ReLUConfig(SAEConfig):
    """No keys of its own."""


class ReLU(Architecture[ReLUConfig]):
    """c = relu(W_enc x + b)."""

    Config = ReLUConfig
    fast = True
