"""BatchTopK crosscoder: k codes a row on average, those with the largest code times norms."""

from dataclasses import dataclass

from sparse_dict.annotations import Dictionary, Tensor
from sparse_dict.sae.architectures.batch_topk import BatchTopK, BatchTopKConfig
from sparse_dict.sae.architectures.crosscoder import Crosscoder, CrosscoderConfig
from sparse_dict.sae.loss import Encoded, Params, keep_largest_of_all


@dataclass
class BatchTopKCrosscoderConfig(BatchTopKConfig, CrosscoderConfig):
    """k is the mean over rows."""


class BatchTopKCrosscoder(Crosscoder):
    """Minder et al. 2025, arXiv 2504.02922: without L1 no norm is shrunk.

    Of each 256 rows the 256 k largest c_k sum_s ||W_dec[k, s]|| are kept.
    """

    Config = BatchTopKCrosscoderConfig
    sae: BatchTopKCrosscoderConfig
    axis = BatchTopK.axis
    keeps_floor = True

    def encode(self, p: Params, x: Tensor) -> Encoded:
        """Codes as in training, where rows share their budget; floors are of codes times norms."""
        z = self.pre_activations(p, x)
        weighted = z.relu() * self.norms(p)[..., None, :]
        kept, floors = keep_largest_of_all(weighted, self.sae.k)
        return Encoded(z, z.relu() * (kept > 0), floors)

    def export(self, p: Params, scale: float, floor: float) -> Dictionary:
        """SAELens' ``jumprelu``: of each feature's code, the floor divided by its norms."""
        threshold = floor * scale / self.norms(p)
        return super().export(p, scale, floor).with_threshold(threshold.numpy())
