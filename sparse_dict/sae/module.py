"""A trained dictionary as a module of torch: for training on, for hooks, for a GPU."""

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear

from sparse_dict.sae.folder import Dictionary


class TorchDictionary(torch.nn.Module):
    """`Dictionary` with parameters of the same names and shapes, which are its arrays."""

    W_enc: Tensor
    b_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor
    threshold: Tensor | None
    W_skip: Tensor | None

    def __init__(self, dictionary: Dictionary) -> None:
        super().__init__()
        self.k = dictionary.k
        for name in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip", "threshold"):
            values = getattr(dictionary, name)
            known = values is not None
            self.register_parameter(name, Parameter(torch.from_numpy(values)) if known else None)

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., dict_size) of raw activations `x` (..., d_in)."""
        z = linear(x, self.W_enc.T, self.b_enc)
        codes = z.relu() if self.threshold is None else z.relu() * (z > self.threshold)
        if self.k is None:
            return codes
        return codes * (codes >= codes.topk(self.k).values[..., -1:])

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions (..., d_out) of codes (..., dict_size), without what skips them."""
        return linear(codes, self.W_dec.T, self.b_dec)

    def forward(self, x: Tensor) -> Tensor:
        """What is made of raw activations `x` (..., d_in), (..., d_out)."""
        made = self.decode(self.encode(x))
        return made if self.W_skip is None else made + x @ self.W_skip
