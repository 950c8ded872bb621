"""Gated: one encoder decides which features are active, a rescaled copy of it how strongly."""

from dataclasses import dataclass

from sparse_dict.annotations import Dictionary, Generator, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.sae.architectures.base import Architecture
from sparse_dict.sae.loss import Encoded, Fit, Numbers, Params, l1, squared_error


@dataclass
class GatedConfig(SAEConfig):
    """No keys of its own; L1 is of the gates."""


class Gated(Architecture[GatedConfig]):
    """Rajamanoharan et al. 2024, arXiv 2404.16014, equations 6 to 8.

    The gate is W_enc (x - b_dec) + b; where it is positive the code is
    relu(exp(r_mag) W_enc (x - b_dec) + b_mag).
    """

    Config = GatedConfig
    biases = ("b", "b_mag", "r_mag")
    has_b_dec = True

    def initial(self, d_in: int, d_out: int, generator: Generator) -> Params:
        p = super().initial(d_in, d_out, generator)
        return p | {"b_mag": p["b"].clone(), "r_mag": p["b"].new_zeros(p["b"].shape)}

    def encode(self, p: Params, x: Tensor) -> Encoded:
        gate = self.pre_activations(p, x)
        along = gate - p["b"][..., None, :]
        magnitude = along * p["r_mag"].exp()[..., None, :] + p["b_mag"][..., None, :]
        return Encoded(gate, magnitude.relu() * (gate > 0))

    def loss(self, p: Params, x: Tensor, y: Tensor, c: Numbers) -> Fit:
        """Squared error, L1 of the gates, and the error of what the gates alone would decode to.

        The latter, through a decoder that counts as constant, is what trains the gates to detect.
        """
        encoded = self.encode(p, x)
        x_hat = self.decode(p, encoded.codes)
        gates = encoded.z.relu()
        fixed = {name: w.detach() for name, w in p.items()}
        loss = squared_error(x_hat, y) + c["l1"] * l1(gates)
        return Fit(loss + squared_error(self.decode(fixed, gates), y.detach()), encoded, x_hat)

    def export(self, p: Params, scale: float, floor: float) -> Dictionary:
        """SAELens' ``jumprelu``: a Gated SAE is a special case of it (section 3.2 of the paper)."""
        gain = p["r_mag"].exp()
        own = {"W_enc": gain[:, None] * p["W_enc"], "b": p["b_mag"]}
        threshold = (p["b_mag"] - gain * p["b"]) * scale
        return super().export(p | own, scale, floor).with_threshold(threshold.numpy())
