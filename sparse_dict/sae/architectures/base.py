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
    ``b_dec`` (d_in,), which is added to the output and, if the kind `centres`, taken from the
    input. With tied weights ``W_enc`` is ``W_dec``. All functions take leading axes too, for
    stacked dictionaries.

    A transcoder (`sae.target`) reads rows x and reconstructs others, y: then ``W_dec`` is
    (dict_size, d_out), ``b_dec`` (d_out,) is there and only added, and with `sae.skip` so is
    ``W_skip`` (d_out, d_in). Otherwise y is x. Dunefsky et al. 2024 (arXiv 2406.11944), Paulo et
    al. 2025 (arXiv 2501.18823).
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

    @property
    def centres(self) -> bool:
        """Whether ``b_dec`` is taken from the input, before it is added to the output."""
        return self.sae.target is None

    def across(self, p: Params, d_in: int, generator: "Generator") -> Params:
        """The initial values of a transcoder, from `p`, those for the columns of its target.

        Its encoder is drawn anew, ``independent``; the output's bias and skip are zero.
        """
        width, bound = p["W_dec"].shape[1], d_in**-0.5
        W_enc = p["W_dec"].new_zeros(p["W_dec"].shape)
        W_enc[:, :d_in].uniform_(-bound, bound, generator=generator)
        p = p | {"W_enc": W_enc, "b_dec": W_enc.new_zeros(width)}
        return p | ({"W_skip": W_enc.new_zeros(width, width)} if self.sae.skip else {})

    def pre_activations(self, p: Params, x: "Tensor") -> "Tensor":
        """(..., batch, dict_size) of a batch (..., batch, d_in)."""
        if "b_dec" in p and self.centres:
            x = x - p["b_dec"][..., None, :]
        return product(x, p["W_enc"].mT, self.sae.precision) + p["b"][..., None, :]

    def encode(self, p: Params, x: "Tensor") -> Encoded:
        """Codes of a batch (..., batch, d_in), as in training."""
        z = self.pre_activations(p, x)
        return Encoded(z, z.relu())

    def decode(self, p: Params, codes: "Tensor") -> "Tensor":
        """What codes (..., batch, dict_size) reconstruct, (..., batch, d_out)."""
        x_hat = product(codes, p["W_dec"], self.sae.precision)
        return x_hat + p["b_dec"][..., None, :] if "b_dec" in p else x_hat

    def skipped(self, p: Params, x: "Tensor") -> "Tensor | None":
        """What reaches the output beside the features, (..., batch, d_out), if anything does."""
        return product(x, p["W_skip"].mT, self.sae.precision) if "W_skip" in p else None

    def loss(self, p: Params, x: "Tensor", y: "Tensor", c: Numbers) -> Fit:
        """What a batch x (batch, d_in) makes of y, and its loss, of each stacked dictionary."""
        encoded = self.encode(p, x)
        x_hat = self.decode(p, encoded.codes)
        return Fit(squared_error(x_hat, y) + c["l1"] * l1(encoded.codes), encoded, x_hat)

    def export(self, p: Params, scale: float, floor: float) -> "Dictionary":
        """The dictionary for activations that are not divided by `scale`, in SAELens' terms.

        relu(W x + s b) = s relu(W x / s + b): scaling the bias alone scales the codes by s, and
        with them the reconstruction, while the decoder keeps its unit rows. ``W_skip`` stays.

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
            b = b - W_enc @ b_dec if self.centres else b
        return Dictionary(
            W_enc=np.ascontiguousarray(W_enc.numpy().T),
            b_enc=b.numpy(),
            W_dec=np.ascontiguousarray(W_dec.numpy()),
            b_dec=b_dec.numpy(),
            W_skip=np.ascontiguousarray(p["W_skip"].numpy().T) if "W_skip" in p else None,
        )
