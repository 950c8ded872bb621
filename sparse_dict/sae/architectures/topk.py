"""TopK: the k largest codes of each row (Makhzani and Frey 2013, Gao et al. 2024)."""

from dataclasses import dataclass

from sparse_dict.annotations import Dictionary, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.config.ranges import positive
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.base import Architecture, Axis
from sparse_dict.sae.loss import Encoded, Params, keep_largest


@dataclass
class TopKConfig(SAEConfig):
    """How many codes of a row are kept."""

    k: int = positive()  # codes kept of a row

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k > self.dict_size:
            raise UserError(f"sae.k ({self.k}) is larger than sae.dict_size ({self.dict_size})")


class TopK(Architecture[TopKConfig]):
    """The k largest of relu(W_enc x + b) (arXiv 1312.5663, arXiv 2406.04093)."""

    Config = TopKConfig
    axis = Axis("k", "k", "k (active features a row)", "a larger k")
    fast = True

    def in_c(self) -> dict[str, float]:
        return {"k": self.sae.k}

    def encode(self, p: Params, x: Tensor) -> Encoded:
        z = self.pre_activations(p, x)
        return Encoded(z, keep_largest(z.relu(), self.sae.k))

    def export(self, p: Params, scale: float, floor: float) -> Dictionary:
        dictionary = super().export(p, scale, floor)
        dictionary.k = self.sae.k
        return dictionary
