"""BatchTopK: k codes a row on average (Bussmann et al. 2024, arXiv 2412.06410)."""

from dataclasses import dataclass

from sparse_dict.annotations import Dictionary, Tensor
from sparse_dict.sae.architectures.base import Architecture
from sparse_dict.sae.architectures.topk import TopK, TopKConfig
from sparse_dict.sae.loss import SELECTION, Encoded, Params, keep_largest_of_all


@dataclass
class BatchTopKConfig(TopKConfig):
    """k is the mean over rows."""


class BatchTopK(Architecture[BatchTopKConfig]):
    """Keeps the 256 k largest codes of each 256 rows; in the paper, of the whole batch."""

    Config = BatchTopKConfig
    axis = TopK.axis
    fast = True
    keeps_floor = True

    def in_c(self) -> dict[str, float]:
        return {"k": self.sae.k, "together": SELECTION}

    def encode(self, p: Params, x: Tensor) -> Encoded:
        z = self.pre_activations(p, x)
        return Encoded(z, *keep_largest_of_all(z.relu(), self.sae.k))

    def export(self, p: Params, scale: float, floor: float) -> Dictionary:
        """SAELens' ``jumprelu``, with one threshold: a row's codes must not depend on others'."""
        return super().export(p, scale, floor).with_threshold(floor * scale)
