"""JumpReLU: a learned threshold per feature, a penalty on L0 (Rajamanoharan et al. 2024)."""

import math
from dataclasses import dataclass

from sparse_dict.annotations import Dictionary, Generator, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.config.ranges import coefficient, positive
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.base import Architecture, Axis
from sparse_dict.sae.loss import Encoded, Fit, Numbers, Params, jump, l0, l1, squared_error


@dataclass
class JumpReLUConfig(SAEConfig):
    """The L0 penalty, and how thresholds are learned."""

    l0: float = coefficient()  # coefficient of the number of active features
    threshold: float = positive()  # the thresholds' first value
    bandwidth: float = positive()  # width of the kernel that moves thresholds

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bandwidth > 2 * self.threshold:
            raise UserError(f"sae.bandwidth must be at most twice sae.threshold, {self.threshold}")


class JumpReLU(Architecture[JumpReLUConfig]):
    """z = W_enc x + b where it exceeds the feature's threshold, else zero (arXiv 2407.14435).

    Thresholds are learned as logarithms, so that they stay positive.
    """

    Config = JumpReLUConfig
    axis = Axis("l0", "L0 penalty", "L0 coefficient", "a lower L0 penalty")
    numbers = ("l1", "l0", "bandwidth", "aux_coefficient")
    fast = True

    def in_c(self) -> dict[str, float]:
        return {"band": self.sae.bandwidth / 2}

    def initial(self, d_in: int, d_out: int, generator: Generator) -> Params:
        p = super().initial(d_in, d_out, generator)
        return p | {"log_threshold": p["b"].new_full(p["b"].shape, math.log(self.sae.threshold))}

    def encode(self, p: Params, x: Tensor) -> Encoded:
        z = self.pre_activations(p, x)
        return Encoded(z, z.relu() * (z > p["log_threshold"].exp()[..., None, :]))

    def loss(self, p: Params, x: Tensor, y: Tensor, c: Numbers) -> Fit:
        encoded = self.encode(p, x)
        threshold = p["log_threshold"].exp()[..., None, :]
        x_hat = self.decode(p, jump(encoded.z, threshold, c["bandwidth"]))
        loss = squared_error(x_hat, y) + c["l1"] * l1(encoded.codes)
        return Fit(loss + c["l0"] * l0(encoded.z, threshold, c["bandwidth"]), encoded, x_hat)

    def export(self, p: Params, scale: float, floor: float) -> Dictionary:
        """SAELens' ``jumprelu``; thresholds scale as codes do."""
        threshold = p["log_threshold"].exp() * scale
        return super().export(p, scale, floor).with_threshold(threshold.numpy())
