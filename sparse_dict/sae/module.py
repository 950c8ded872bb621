"""A trained dictionary as a module of torch: for training on, for hooks, for a GPU."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparse_dict.sae.folder import Dictionary


class TorchDictionary(torch.nn.Module):
    """`Dictionary` with parameters, of the same names and shapes, that have gradients."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None
    W_skip: Tensor | None

    def __init__(self, dictionary: "Dictionary") -> None:
        super().__init__()
        self.k = dictionary.k
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "threshold"):
            values = getattr(dictionary, name)
            copy = None if values is None else torch.nn.Parameter(torch.tensor(values))
            self.register_parameter(name, copy)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., dict_size) of raw activations `x` (..., d_in)."""
        z = x @ self.W_enc + self.b_enc
        if self.threshold is not None:
            z = z * (z > self.threshold)
        codes = z.relu()
        if self.k is None:
            return codes
        return codes * (codes >= codes.topk(self.k).values[..., -1:])

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions (..., d_out) of codes (..., dict_size), without what skips them."""
        return codes @ self.W_dec + self.b_dec

    def forward(self, x: Tensor) -> Tensor:
        """What is made of raw activations `x` (..., d_in), (..., d_out)."""
        made = self.decode(self.encode(x))
        return made if self.W_skip is None else made + x @ self.W_skip
