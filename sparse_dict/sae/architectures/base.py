"""What a kind of dictionary consists of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from sparse_dict.annotations import Dictionary, Generator, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.sae.loss import (
    Encoded,
    Fit,
    Numbers,
    Params,
    Term,
    auxiliary,
    l1,
    product,
    squared_error,
)

C = TypeVar("C", bound=SAEConfig)


@dataclass(frozen=True)
class Axis:
    """What makes a kind sparse, which a study sweeps."""

    key: str  # of the section `sae`
    short: str  # before a value, as in "L1 0.03"
    long: str  # beside an axis of a figure
    remedy: str  # what to change where too few features are active


class Architecture(Generic[C]):
    """A kind of dictionary with its config.

    Parameters are float32 tensors by name: ``W_enc`` (dict_size, d_in) and ``W_dec`` (dict_size,
    d_out), the latter with unit rows, ``b`` (dict_size,), and what a subclass adds: (dict_size,)
    each, or a bias ``b_dec`` (d_out,), which is added to the output and, if the kind `centres`,
    taken from the input. With tied weights ``W_enc`` is ``W_dec``. All functions take leading axes
    too.

    A transcoder (`sae.target`) reads rows x and reconstructs others, y, with a ``b_dec`` and, with
    `sae.skip`, ``W_skip`` (d_out, d_in). Otherwise y is x. Dunefsky et al. 2024 (arXiv 2406.11944),
    Paulo et al. 2025 (arXiv 2501.18823).
    """

    Config: ClassVar[type[SAEConfig]]
    axis: ClassVar[Axis] = Axis("l1", "L1", "L1 coefficient", "a lower L1")
    # The coefficients of its loss. Dictionaries that differ in these alone share a stack.
    numbers: ClassVar[tuple[str, ...]] = ("l1", "aux_coefficient")
    biases: ClassVar[tuple[str, ...]] = ("b",)  # zero where a feature begins anew
    has_b_dec: ClassVar[bool] = False  # of a transcoder's every kind has it
    # Whether `kernel.c` and `step_torch.closed_form` know it; autograd trains all others.
    fast: ClassVar[bool] = False
    keeps_floor: ClassVar[bool] = False  # follows the smallest code of each batch, as BatchTopK

    def __init__(self, sae: C) -> None:
        self.sae = sae

    @classmethod
    def settled(cls, sae: C, widths: list[int]) -> C:
        """`sae` as a record keeps it; `widths` are those of the sites that are read."""
        return sae

    def in_c(self) -> dict[str, float]:
        """What `struct dictionary` of `dictionary.h` holds of a kind that is `fast`."""
        return {}

    def initial(self, d_in: int, d_out: int, generator: Generator) -> Params:
        """Random unit decoder rows; an encoder as `sae.init` says, drawn by the CPU's `generator`.

        ``independent``: encoder and bias uniform in +-1/sqrt(width), as `torch.nn.Linear` has them,
        as in the post. ``aligned``: the encoder equal to the decoder, zero bias. A transcoder's
        output bias and skip are zero.
        """
        import torch

        size = self.sae.dict_size
        W_dec = torch.randn(size, d_out, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        W_enc, b = W_dec.clone(), torch.zeros(size)
        if self.sae.init == "independent":
            bound = d_out**-0.5
            W_enc.uniform_(-bound, bound, generator=generator)
            b.uniform_(-bound, bound, generator=generator)
        p = {"W_dec": W_dec, "b": b} | ({} if self.sae.tied else {"W_enc": W_enc})
        if self.sae.target is not None:
            bound = d_in**-0.5
            p["W_enc"] = torch.empty(size, d_in).uniform_(-bound, bound, generator=generator)
        if self.has_b_dec or self.sae.target is not None:
            p["b_dec"] = torch.zeros(d_out)
        return p | ({"W_skip": torch.zeros(d_out, d_in)} if self.sae.skip else {})

    @property
    def centres(self) -> bool:
        """Whether ``b_dec`` is taken from the input, before it is added to the output."""
        return self.sae.target is None

    def pre_activations(self, p: Params, x: Tensor) -> Tensor:
        """(..., batch, dict_size) of a batch (..., batch, d_in)."""
        if "b_dec" in p and self.centres:
            x = x - p["b_dec"][..., None, :]
        return product(x, p["W_enc"].mT, self.sae.precision) + p["b"][..., None, :]

    def encode(self, p: Params, x: Tensor) -> Encoded:
        """Codes of a batch (..., batch, d_in), as in training."""
        z = self.pre_activations(p, x)
        return Encoded(z, z.relu())

    def decode(self, p: Params, codes: Tensor) -> Tensor:
        """What codes (..., batch, dict_size) reconstruct, (..., batch, d_out)."""
        x_hat = product(codes, p["W_dec"], self.sae.precision)
        return x_hat + p["b_dec"][..., None, :] if "b_dec" in p else x_hat

    def skipped(self, p: Params, x: Tensor) -> Tensor | None:
        """What reaches the output beside the features, (..., batch, d_out), if anything does."""
        return product(x, p["W_skip"].mT, self.sae.precision) if "W_skip" in p else None

    def reconstruct(self, p: Params, x: Tensor) -> Tensor:
        """What is made of a batch (..., batch, d_in) in all, (..., batch, d_out)."""
        made, skipped = self.decode(p, self.encode(p, x).codes), self.skipped(p, x)
        return made if skipped is None else made + skipped

    def loss(self, p: Params, x: Tensor, y: Tensor, c: Numbers) -> Fit:
        """What a batch x (batch, d_in) makes of y, and its loss, of each stacked dictionary."""
        encoded = self.encode(p, x)
        x_hat = self.decode(p, encoded.codes)
        return Fit(squared_error(x_hat, y) + c["l1"] * l1(encoded.codes), encoded, x_hat)

    def objective(
        self,
        p: Params,
        x: Tensor,
        y: Tensor,
        numbers: Numbers,
        inactive: Tensor | None = None,
        terms: Sequence[Term] = (),
    ) -> Fit:
        """The whole loss of one dictionary on one batch, or of several that are stacked.

        Of parameters `p`, (..., dict_size, d_in) or (..., dict_size) each, x (batch, d_in), scaled,
        and what is reconstructed, y (batch, d_out), with coefficients (...,). `inactive` (...,
        dict_size) are the features that `sae.dead=auxk` trains on the residual, `terms` what
        interventions add.
        """
        if (skipped := self.skipped(p, x)) is not None:
            y = y - skipped
        fit = self.loss(p, x, y, numbers)
        for term in terms:
            fit.loss = fit.loss + term(p, fit, numbers)
        if inactive is not None:
            extra = auxiliary(p, fit, y, inactive, self.sae.aux_k)
            fit.loss = fit.loss + numbers["aux_coefficient"] * extra
        if skipped is not None:
            fit.x_hat = fit.x_hat + skipped
        return fit

    def export(self, p: Params, scale: float, floor: float) -> Dictionary:
        """The dictionary for activations that are not divided by `scale`, in SAELens' terms.

        relu(W x + s b) = s relu(W x / s + b): scaling the bias alone scales the codes by s, and
        with them the reconstruction, while the decoder keeps its unit rows. `p` are on the CPU;
        `floor` is, where it `keeps_floor`, the threshold that replaces that of each batch.
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
