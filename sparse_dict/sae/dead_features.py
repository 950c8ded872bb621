"""What can be done about features that are no longer active.

A single dictionary's batch is taken 256 rows at a time: (batch, dict_size) may be too large.
"""

import torch
from torch import Tensor

from sparse_dict.sae.codes import SELECTION, keep_largest, product
from sparse_dict.sae.state import State


@torch.no_grad()
def auxiliary_gradients(
    state: State, x: Tensor, inactive: Tensor, d_out: int, y: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `loss.auxiliary`, times its coefficient, for the inactive features alone.

    Args:
        state: the dictionary before its update.
        x: (batch, width), scaled.
        inactive: (dict_size,) bool.
        d_out: columns of what is reconstructed that are not padding.
        y: (batch, width), what is reconstructed; None: `x`.

    Returns:
        Gradients of the rows of W_enc, W_dec and b at `inactive`.
    """
    W_enc, W_dec, b = state.W_enc[inactive], state.W_dec[inactive], state.b[inactive]
    if not len(W_dec):
        return W_enc, W_dec, b
    sae = state.architecture.sae
    g_enc, g_dec, g_b = torch.zeros_like(W_enc), torch.zeros_like(W_dec), torch.zeros_like(b)
    scale = sae.aux_coefficient * 2 / (len(x) * d_out)
    for rows, targets in zip(x.split(SELECTION), _or(y, x).split(SELECTION), strict=True):
        codes = keep_largest((rows @ W_enc.T + b).relu(), sae.aux_k)  # (rows, inactive)
        wanted = targets - reconstructed(state, rows)
        residual = scale * (codes @ W_dec - wanted)  # (rows, width)
        g_codes = (residual @ W_dec.T) * (codes > 0)
        g_enc.addmm_(g_codes.T, rows)
        g_dec.addmm_(codes.T, residual)
        g_b += g_codes.sum(dim=0)
    return g_enc, g_dec, g_b


def reconstructed(state: State, x: Tensor) -> Tensor:
    """(rows, width) from (rows, width)."""
    p, architecture = state.whole(), state.architecture
    made = architecture.decode(p, architecture.encode(p, x).codes)
    skipped = architecture.skipped(p, x)
    return made if skipped is None else made + skipped


def _or(y: Tensor | None, x: Tensor) -> Tensor:
    return x if y is None else y


def auxiliary_codes(
    stack: State, z: Tensor, residual: Tensor, inactive: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`auxiliary_gradients` of a stack, without a copy of `inactive` from a GPU to wait for.

    Args:
        stack: n dictionaries before their update.
        z: (n, batch, dict_size) pre-activations.
        residual: (n, batch, width) reconstruction less what is reconstructed.
        inactive: (n, dict_size) bool.
        coefficient: (n, 1, 1) the loss's weight, times 2 / (batch * d_out).

    Returns:
        The auxiliary codes and the loss's gradient by them, (n, batch, dict_size) each, and its
        gradient by what they reconstruct, (n, batch, width).
    """
    sae = stack.architecture.sae
    codes = keep_largest(z.relu() * inactive[:, None], sae.aux_k)
    g_out = coefficient * (product(codes, stack.W_dec, sae.precision) + residual)
    g_codes = product(g_out, stack.W_dec.mT, sae.precision) * (codes > 0)
    return codes, g_codes, g_out


@torch.no_grad()
def resample(state: State, x: Tensor, inactive: Tensor, step: int, y: Tensor | None = None) -> None:
    """Give inactive features new directions: inputs that are reconstructed badly.

    Rows are drawn with probability proportional to their squared loss; the decoder row becomes the
    row's direction, the encoder row the same at a fifth of the living ones' mean norm, the bias and
    the moments zero (Bricken et al. 2023, "Towards Monosemanticity", appendix on resampling). A
    transcoder's decoder row becomes the direction of what the row is to be mapped to.

    Args:
        state: the dictionary, changed in place.
        x: (batch, width), scaled, from which rows are drawn.
        inactive: (dict_size,) bool.
        step: the optimiser step; with the seed it decides the draw.
        y: (batch, width), what is reconstructed; None: `x`.
    """
    y = _or(y, x)
    count = int(inactive.sum())
    if count == 0:
        return
    loss = torch.cat(
        [
            (reconstructed(state, rows) - targets).square().sum(dim=1)
            for rows, targets in zip(x.split(SELECTION), y.split(SELECTION), strict=True)
        ]
    )
    generator = torch.Generator().manual_seed(hash((state.seed, state.dict_size, step)) % 2**63)
    weights = loss.square().double().cpu()
    if not 0 < float(weights.sum()) < float("inf"):
        return  # the error is zero on every row, or not finite
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    directions, wanted = (
        torch.nn.functional.normalize(rows[drawn.to(rows.device)], dim=1) for rows in (x, y)
    )
    living = state.W_enc[~inactive].norm(dim=1)
    state.W_dec[inactive] = wanted
    if not state.architecture.sae.tied:
        norm = 0.2 * living.mean() if len(living) else 1.0
        state.W_enc[inactive] = directions * norm
    for name in state.architecture.biases:
        state.params[name][inactive] = 0.0
    state.begin_anew(inactive)
