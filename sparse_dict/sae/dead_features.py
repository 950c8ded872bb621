"""What can be done about features that no longer fire.

A single dictionary's batch is taken 256 rows at a time: (batch, dict_size) may be too large.
"""

import torch
from torch import Tensor

from sparse_dict.sae.codes import SELECTION, codes_of, keep_largest, product
from sparse_dict.sae.state import State


@torch.no_grad()
def auxiliary_gradients(
    state: State, x: Tensor, dead: Tensor, d_in: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, for the dead features alone, of the auxiliary loss of TopK autoencoders.

    The loss is `aux_coefficient` times the mean squared error with which the `aux_k` largest codes
    among dead features model the residual of the living ones (Gao et al. 2024, arXiv 2406.04093,
    appendix A.2). The residual counts as constant.

    Args:
        state: the dictionary before its update.
        x: (batch, width), scaled.
        dead: (dict_size,) bool.
        d_in: columns of `x` that are not padding.

    Returns:
        Gradients of the rows of W_enc, W_dec and b at `dead`.
    """
    W_enc, W_dec = state.W_enc[dead], state.W_dec[dead]
    if not len(W_dec):
        return W_enc, W_dec, state.b[dead]
    b = state.b[dead]
    g_enc, g_dec, g_b = torch.zeros_like(W_enc), torch.zeros_like(W_dec), torch.zeros_like(b)
    scale = state.sae.aux_coefficient * 2 / (len(x) * d_in)
    for rows in x.split(SELECTION):
        codes = keep_largest((rows @ W_enc.T + b).relu(), state.sae.aux_k)  # (rows, dead)
        wanted = rows - codes_of(state, rows)[1] @ state.W_dec
        residual = scale * (codes @ W_dec - wanted)  # (rows, width)
        g_codes = (residual @ W_dec.T) * (codes > 0)
        g_enc.addmm_(g_codes.T, rows)
        g_dec.addmm_(codes.T, residual)
        g_b += g_codes.sum(dim=0)
    return g_enc, g_dec, g_b


def auxiliary_codes(
    stack: State, z: Tensor, residual: Tensor, dead: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`auxiliary_gradients` of a stack of dictionaries, without waiting to hear who is dead.

    Args:
        stack: n dictionaries before their update.
        z: (n, batch, dict_size) pre-activations.
        residual: (n, batch, width) reconstruction less input.
        dead: (n, dict_size) bool.
        coefficient: (n, 1, 1) the loss's weight, times 2 / (batch * d_in).

    Returns:
        The auxiliary codes and the loss's gradient by them, (n, batch, dict_size) each, and its
        gradient by what they reconstruct, (n, batch, width).
    """
    codes = keep_largest(z.relu() * dead[:, None], stack.sae.aux_k)
    g_out = coefficient * (product(codes, stack.W_dec, stack.sae.precision) + residual)
    g_codes = product(g_out, stack.W_dec.mT, stack.sae.precision) * (codes > 0)
    return codes, g_codes, g_out


@torch.no_grad()
def resample(state: State, x: Tensor, dead: Tensor, step: int) -> None:
    """Give dead features new directions: inputs that are reconstructed badly.

    Rows are drawn with probability proportional to their squared loss; the decoder row becomes the
    row's direction, the encoder row the same at a fifth of the living ones' mean norm, the bias and
    the moments zero (Bricken et al. 2023, "Towards Monosemanticity", appendix on resampling).

    Args:
        state: the dictionary, changed in place.
        x: (batch, width), scaled, from which rows are drawn.
        dead: (dict_size,) bool.
        step: the optimiser step; with the seed it decides the draw.
    """
    count = int(dead.sum())
    if count == 0:
        return
    loss = torch.cat(
        [
            (codes_of(state, rows)[1] @ state.W_dec - rows).square().sum(dim=1)
            for rows in x.split(SELECTION)
        ]
    )
    generator = torch.Generator().manual_seed(hash((state.seed, state.dict_size, step)) % 2**63)
    weights = loss.square().double().cpu()
    if not 0 < float(weights.sum()) < float("inf"):
        return  # nothing is wrong anywhere, or everything is
    drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
    directions = torch.nn.functional.normalize(x[drawn.to(x.device)], dim=1)
    living = state.W_enc[~dead].norm(dim=1)
    state.W_dec[dead] = directions
    if not state.sae.tied:
        norm = 0.2 * living.mean() if len(living) else 1.0
        state.W_enc[dead] = directions * norm
    state.b[dead] = 0.0
    for moment in (state.m_enc, state.v_enc, state.m_dec, state.v_dec, state.m_b, state.v_b):
        moment[dead] = 0.0
