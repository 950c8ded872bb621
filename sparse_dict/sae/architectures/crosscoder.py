"""Crosscoder: one dictionary of several sites, or of two models, whose L1 counts each site."""

from dataclasses import dataclass, replace

from sparse_dict.annotations import Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.base import Architecture
from sparse_dict.sae.loss import Fit, Numbers, Params, l1, squared_error


@dataclass
class CrosscoderConfig(SAEConfig):
    """Which columns belong to which site."""

    widths: list[int] | None = None  # columns of each site; null: as the harvest says

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.site is not None or self.target is not None:
            raise UserError("a crosscoder takes all sites: leave out sae.site and target")
        if self.widths is not None and len(self.widths) < 2:
            raise UserError("a crosscoder needs two sites: harvest.sites, or two activations_dir")


class Crosscoder(Architecture[CrosscoderConfig]):
    """Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing".

    A row x holds the sites side by side. L1 is l1 * mean_rows sum_k c_k sum_s ||W_dec[k, s]||, over
    the sites s. The decoder's rows are unit rows over all sites together, which loses no
    generality.
    """

    Config = CrosscoderConfig
    has_b_dec = True

    @classmethod
    def settled(cls, sae: CrosscoderConfig, widths: list[int]) -> CrosscoderConfig:
        if sae.widths not in (None, widths):
            raise UserError(f"sae.widths is {sae.widths}: the activations have sites of {widths}")
        return replace(sae, widths=widths)

    @property
    def centres(self) -> bool:
        return False

    def norms(self, p: Params) -> Tensor:
        """The norms of a decoder row's parts, summed over the sites, (..., dict_size)."""
        widths = self.sae.widths
        assert widths is not None  # the stage has filled them in
        parts = p["W_dec"].split(widths, dim=-1)
        norms = [(part.square().sum(dim=-1) + TINY).sqrt() for part in parts]
        return sum(norms[1:], start=norms[0])

    def loss(self, p: Params, x: Tensor, y: Tensor, c: Numbers) -> Fit:
        """Squared error, and L1 of codes times their norms."""
        encoded = self.encode(p, x)
        x_hat = self.decode(p, encoded.codes)
        weighted = encoded.codes * self.norms(p)[..., None, :]
        return Fit(squared_error(x_hat, y) + c["l1"] * l1(weighted), encoded, x_hat)


TINY = 1e-16  # added under the root, so that a part that is zero has a finite gradient
