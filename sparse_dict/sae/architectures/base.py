"""What a kind of dictionary consists of.

This class is the plain dictionary: two matrices, a bias, ReLU, and the loss at the head of
`loss.py`. A subclass overrides what differs.
"""

from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from sparse_dict.config import SAEConfig
from sparse_dict.sae.codes import product
from sparse_dict.sae.loss import Encoded, Fit, Numbers, Params, l1, squared_error

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from sparse_dict.sae.folder import Dictionary

C = TypeVar("C", bound=SAEConfig)


class Architecture(Generic[C]):
    """A kind of dictionary with its config.

    Parameters are float32 tensors by name: ``W_enc`` and ``W_dec`` (dict_size, d_in), the latter
    with unit rows, ``b`` (dict_size,), and what a subclass adds: (dict_size,) each, or a bias
    ``b_dec`` (d_in,), which is taken from the input and added to the output. With tied weights
    ``W_enc`` is ``W_dec``. All functions take leading axes too, for stacked dictionaries.
    """

    Config: ClassVar[type[SAEConfig]]
    axis: ClassVar[str] = "l1"  # the key that makes it sparse, which a study sweeps
    # The coefficients of its loss. Dictionaries that differ in these alone share a stack.
    numbers: ClassVar[tuple[str, ...]] = ("l1", "aux_coefficient")
    biases: ClassVar[tuple[str, ...]] = ("b",)  # set to zero where a feature is resampled
    # Whether `kernel.c` and `step_torch.closed_form` know it; autograd trains all others.
    fast: ClassVar[bool] = False
    keeps_floor: ClassVar[bool] = False  # follows the smallest code of each batch, as BatchTopK

    def __init__(self, sae: C) -> None:
        self.sae = sae

    @property
    def priced(self) -> bool:
        """Whether its L1 weighs features by what they do (`loss.surcharge`)."""
        return self.sae.guide == "penalty"

    def initial(self, d_in: int, width: int, generator: "Generator") -> Params:
        """Random unit decoder rows; an encoder as `sae.init` says.

        ``independent``: encoder and bias uniform in +-1/sqrt(d_in), as `torch.nn.Linear` has them,
        as in the post. ``aligned``: the encoder equal to the decoder, zero bias.

        Args:
            d_in: columns that are drawn.
            width: columns in all; the others are zero.
            generator: of the CPU.
        """
        import torch

        size = self.sae.dict_size
        W_dec = torch.zeros(size, width)
        W_dec[:, :d_in] = torch.randn(size, d_in, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        W_enc, b = W_dec.clone(), torch.zeros(size)
        if self.sae.init == "independent":
            bound = d_in**-0.5
            W_enc[:, :d_in].uniform_(-bound, bound, generator=generator)
            b.uniform_(-bound, bound, generator=generator)
        return {"W_dec": W_dec, "b": b} | ({} if self.sae.tied else {"W_enc": W_enc})

    def pre_activations(self, p: Params, x: "Tensor") -> "Tensor":
        """(..., batch, dict_size) of a batch (..., batch, d_in)."""
        if "b_dec" in p:
            x = x - p["b_dec"][..., None, :]
        return product(x, p["W_enc"].mT, self.sae.precision) + p["b"][..., None, :]

    def encode(self, p: Params, x: "Tensor") -> Encoded:
        """Codes of a batch (..., batch, d_in), as in training."""
        z = self.pre_activations(p, x)
        return Encoded(z, z.relu())

    def decode(self, p: Params, codes: "Tensor") -> "Tensor":
        """The reconstruction (..., batch, d_in) of codes (..., batch, dict_size)."""
        x_hat = product(codes, p["W_dec"], self.sae.precision)
        return x_hat + p["b_dec"][..., None, :] if "b_dec" in p else x_hat

    def loss(self, p: Params, x: "Tensor", c: Numbers) -> Fit:
        """The reconstruction of a batch (batch, d_in) and its loss, of each stacked dictionary."""
        encoded = self.encode(p, x)
        x_hat = self.decode(p, encoded.codes)
        return Fit(squared_error(x_hat, x) + c["l1"] * l1(encoded.codes), encoded, x_hat)

    def export(self, p: Params, scale: float, floor: float) -> "Dictionary":
        """The dictionary for activations that are not divided by `scale`, in SAELens' terms.

        relu(W x + s b) = s relu(W x / s + b): scaling the bias alone scales the codes by s, and
        with them the reconstruction, while the decoder keeps its unit rows.

        Args:
            p: parameters without padding, on the CPU.
            scale: s.
            floor: with `keeps_floor`, the threshold that replaces that of each batch.
        """
        import numpy as np

        from sparse_dict.sae.folder import Dictionary

        W_enc, W_dec, b = p["W_enc"], p["W_dec"], p["b"] * scale
        b_dec = W_dec.new_zeros(W_dec.shape[1])
        if "b_dec" in p:
            b_dec = p["b_dec"] * scale
            b = b - W_enc @ b_dec
        return Dictionary(
            W_enc=np.ascontiguousarray(W_enc.numpy().T),
            b_enc=b.numpy(),
            W_dec=np.ascontiguousarray(W_dec.numpy()),
            b_dec=b_dec.numpy(),
        )
