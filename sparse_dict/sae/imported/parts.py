"""What the readers of foreign formats share: refusing, and writing a dictionary in our terms."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparse_dict.errors import UserError, one_line
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.origin import Origin
from sparse_dict.storage.untrusted import opened

Wide = NDArray[np.float64]


@dataclass
class Foreign:
    """A dictionary made elsewhere, and what its config says of how it was made."""

    format: str
    kind: str  # as `sae.activation` names it
    dictionary: Dictionary
    l1: float = 0.0
    seed: int = 0
    origin: Origin = field(default_factory=Origin)
    # Whether it was trained on activations divided by their mean norm over sqrt(d_in), a number
    # that its folder does not hold.
    by_mean_norm: bool = False


def refuse(path: Path, what: str) -> UserError:
    """The error for a dictionary that does something ours cannot."""
    return UserError(
        f"{path}: {what} cannot be represented: dictionaries here are "
        "act(x W_enc + b_enc) W_dec + b_dec, with ReLU, thresholds or TopK"
    )


def only(path: Path, config: dict[str, Any], **usual: Any) -> None:
    """Take these keys out of `config`, and see that they have their usual values."""
    for key, value in usual.items():
        if (found := config.pop(key, value)) not in (value, None):
            raise refuse(path, f"{key}={found!r}")


def nothing_else(path: Path, left: Mapping[str, Any], harmless: str = "") -> None:
    """See that what no reader has taken out of a config, or of the tensors, changes nothing."""
    for key in sorted(left.keys() - {*harmless.split()}):
        value = left[key]
        what = f"{key}={value!r}" if not isinstance(value, np.ndarray) else f"the tensor {key}"
        raise UserError(f"{path}: {what} is not known: remove it from a copy if it is harmless")


def tensors(path: Path) -> dict[str, Wide]:
    """The tensors of a safetensors file, as `arrays`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with opened(path):  # a file of the usual kind; it is mapped, not read in one piece
            return arrays(load_file(path))
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def arrays(tensors: Mapping[str, Any]) -> dict[str, Wide]:
    """Tensors of any float type as float64 arrays."""
    try:
        return {name: t.detach().cpu().double().numpy() for name, t in tensors.items()}
    except RuntimeError as error:  # without values, or of a kind that numpy has not
        raise ValueError(one_line(error)) from None


def gated(W_enc: Wide, b_gate: Wide, r_mag: Wide, b_mag: Wide) -> tuple[Wide, Wide, Wide]:
    """Encoder, bias and threshold of a Gated dictionary as one with thresholds.

    Rajamanoharan et al. 2024 (arXiv 2404.16014), section 3.2: the gate x W_enc + b_gate is open
    where the magnitude exp(r_mag) x W_enc + b_mag exceeds b_mag - exp(r_mag) b_gate.
    """
    gain = np.exp(r_mag)
    return W_enc * gain, b_mag, b_mag - gain * b_gate


def folded(
    W_enc: Wide,
    b_enc: Wide,
    W_dec: Wide,
    b_dec: Wide,
    *,
    centred: bool,
    threshold: ArrayLike | None = None,
    k: int | None = None,
    by_norm: bool = False,
) -> Dictionary:
    """The same function with `b_dec` taken out of the encoder and, where possible, unit rows.

    Of W_enc (d_in, n), b_enc (n,), W_dec (n, d_in), b_dec (d_in,), which is subtracted from the
    input if `centred`; a `threshold` is of all features or of each, (n,). A code times its row
    stays what it is if the row is divided by its norm and the code multiplied by it. TopK chooses
    among codes, which that would change: its rows stay, unless it chooses, as thresholds then do,
    `by_norm` times code.
    """
    if centred:
        b_enc = b_enc - b_dec @ W_enc
    bar = None if threshold is None else np.broadcast_to(np.asarray(threshold, float), b_enc.shape)
    if k is None or by_norm:
        norms = np.linalg.norm(W_dec, axis=1)
        norms[norms == 0] = 1
        W_dec = W_dec / norms[:, None]
        W_enc, b_enc = W_enc * norms, b_enc * norms
        if bar is not None and not by_norm:
            bar = bar * norms
    return Dictionary(
        _narrow(W_enc), _narrow(b_enc), _narrow(W_dec), _narrow(b_dec),
        None if bar is None else _narrow(bar), k,
    )  # fmt: skip


def _narrow(array: Wide) -> NDArray[np.float32]:
    return np.ascontiguousarray(array, np.float32)


def scaled(dictionary: Dictionary, factor: float) -> Dictionary:
    """The dictionary for activations that are not multiplied by `factor` first.

    s relu(W x + b / s) = relu(W (s x) + b): biases and threshold alone change, as in
    `Architecture.export`.
    """
    for name in ("b_enc", "b_dec", "threshold"):
        if (value := getattr(dictionary, name)) is not None:
            setattr(dictionary, name, (value / factor).astype(np.float32))
    return dictionary
