"""Matryoshka BatchTopK: each prefix of the features must reconstruct by itself."""

from dataclasses import dataclass

from omegaconf import MISSING

from sparse_dict.annotations import Tensor
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.batch_topk import BatchTopK, BatchTopKConfig
from sparse_dict.sae.loss import Fit, Numbers, Params, l1, squared_error


@dataclass
class MatryoshkaConfig(BatchTopKConfig):
    """The prefixes that must reconstruct."""

    prefixes: list[float] = MISSING  # shares of the dictionary; the last is 1

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = self.sizes()
        if sizes != sorted(set(sizes)) or sizes[:1] == [0] or sizes[-1:] != [self.dict_size]:
            raise UserError(
                f"sae.prefixes must be growing shares up to 1, not {list(self.prefixes)}"
            )

    def sizes(self) -> list[int]:
        return [round(share * self.dict_size) for share in self.prefixes]


class Matryoshka(BatchTopK):
    """Bussmann et al. 2025, arXiv 2503.17547, equation 5: the sum of all prefixes' errors."""

    Config = MatryoshkaConfig
    sae: MatryoshkaConfig
    fast = False
    has_b_dec = True

    def loss(self, p: Params, x: Tensor, y: Tensor, c: Numbers) -> Fit:
        """The codes are chosen once, among all features; each prefix decodes its own."""
        encoded = self.encode(p, x)
        x_hat = p["b_dec"][..., None, :]
        loss, first = c["l1"] * l1(encoded.codes), 0
        for last in self.sae.sizes():
            x_hat = x_hat + encoded.codes[..., first:last] @ p["W_dec"][..., first:last, :]
            loss, first = loss + squared_error(x_hat, y), last
        return Fit(loss, encoded, x_hat)
