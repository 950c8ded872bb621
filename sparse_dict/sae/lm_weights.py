"""What a language model's own weights say of the directions of a site."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.activations.store import Activations
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm.folder import LoadedLM

SAMPLE_TOKENS = 8_192  # over which pre-activations are averaged


def reading(lm: LoadedLM, site: Site, _activations: Activations) -> Tensor:
    """What the MLP's last matrix reads, (d_model, d_mlp): its rows."""
    return lm.model.get_parameter(f"blocks.{site.layer}.mlp_out.weight")


def writing(lm: LoadedLM, site: Site, activations: Activations) -> Tensor:
    """What each entry of the normed residual stream writes to mlp_post, (d_model, d_mlp).

    To first order, about the mean pre-activation z of the harvested text: the columns of
    diag(gelu'(z)) W_in diag(gain of the norm).
    """
    tokens = first_contexts(activations, lm.config.n_ctx)
    assert site.layer is not None
    (z,) = lm.model.read(torch.from_numpy(tokens), [Site("mlp_pre", site.layer)])
    with torch.inference_mode(False), torch.enable_grad():
        mean = z.mean((0, 1)).clone().requires_grad_()
        out = torch.nn.functional.gelu(mean, approximate="tanh").sum()
        (slope,) = torch.autograd.grad(out, mean)
    W_in = lm.model.get_parameter(f"blocks.{site.layer}.mlp_in.weight")  # (d_mlp, d_model)
    return (slope[:, None] * W_in * lm.model.get_parameter(f"blocks.{site.layer}.norm_2.weight")).T


def metric(lm: LoadedLM, site: Site, activations: Activations) -> Tensor:
    """How strongly directions act, (d_in, d_in), symmetric.

    For a unit direction d, d^T M d is the variance of the logits (about their mean over the
    vocabulary) that it adds by the direct path, without the final norm's division, over that of all
    directions.
    """
    logits = lm.model.direct(site, torch.eye(activations.d_in, dtype=torch.float64))
    logits -= logits.mean(1, keepdim=True)
    squares = logits @ logits.T
    return (squares * (activations.d_in / squares.trace())).float()


OF = {"init_read": reading, "init_write": writing}  # the directions that `sae.guide` asks for


def first_contexts(activations: Activations, n_ctx: int) -> NDArray[np.int64]:
    """Contexts (n, n_ctx) of the text that was harvested, from its beginning; as its rows say."""
    origins = activations.origins(0, activations.rows)
    assert origins is not None
    order = np.lexsort((origins[:, 1], origins[:, 0]))  # by document, then position
    first = origins[order[:SAMPLE_TOKENS]]
    n = len(first) // n_ctx
    if not n:
        raise UserError(f"{activations.folder} holds less than a context of {n_ctx} tokens")
    tokens: NDArray[Any] = first[: n * n_ctx, 2].astype(np.int64)
    return tokens.reshape(n, n_ctx)
