"""What a language model's own weights say of the directions of a site: `sae.guide`.

Three things can be asked of them: which directions what follows the site reads, which ones what
comes before it writes, and how strongly a direction acts on the logits.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.activations.store import Activations
from sparse_dict.config import SAEConfig
from sparse_dict.config.sites import SITES, Site, parse
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder

if TYPE_CHECKING:
    from sparse_dict.lm.folder import LoadedLM

SAMPLE_TOKENS = 8_192  # over which pre-activations are averaged
PIECE = 1 << 18  # origins read at a time


@dataclass(frozen=True)
class Guide:
    """What the weights say, as far as `sae.guide` asks; columns are those of the activations.

    Attributes:
        directions: (n, d_in): initial decoder rows are random combinations of these.
        metric: (d_in, d_in), symmetric: d^T M d is the squared gain of a unit direction d, whose
            mean over all directions is one.
    """

    directions: Tensor | None = None
    metric: Tensor | None = None


def check(sae: SAEConfig, lm_dir: Path, activations: Activations) -> Site | None:
    """The site whose weights `sae.guide` asks for; None if it asks for none.

    `activations` are what the dictionary reads.

    Raises:
        UserError: they cannot be read, or do not say it.
    """
    if sae.guide == "none":
        return None
    manifest, asked = activations.manifest, f"sae.guide={sae.guide}"
    if (
        manifest is None
        or "model" not in manifest["fingerprints"]
        or "lm" in (manifest.get("config") or {})
    ):
        raise UserError(
            f"{asked} needs activations of a model of train_lm.py, whose weights it reads; "
            f"{activations.folder} are not"
        )
    site = Site(str(manifest.get("site")), manifest.get("layer"))
    if sae.site is not None:
        site = parse(sae.site, None, "sae.site")
    linear = [name for name in SITES if name != "mlp_pre"]  # which add to the residual stream
    wanted = ["mlp_post"] if sae.guide.startswith("init") else linear
    if site.name not in wanted:
        there = site if sae.site or "sites" not in manifest else "several sites"
        raise UserError(
            f"{asked} reads the weights around one site, {' or '.join(wanted)}; "
            f"{activations.folder} holds {there}"
        )
    if lm_folder.read_record(lm_dir)["fingerprints"]["model"] != manifest["fingerprints"]["model"]:
        raise UserError(
            f"{lm_dir} is not the model that {activations.folder} come from: set lm_dir"
        )
    return site


def read(sae: SAEConfig, lm_dir: Path, activations: Activations) -> Guide:
    """What the weights say of the site of `activations`.

    Raises:
        UserError: as `check`, or the model is damaged.
    """
    site = check(sae, lm_dir, activations)
    if site is None:
        return Guide()
    return _read(sae.guide, sae.guide_shuffled, site, lm_dir, activations)


@cache  # most dictionaries of a pass ask for the same
def _read(guide: str, shuffled: bool, site: Site, lm_dir: Path, activations: Activations) -> Guide:
    lm = lm_folder.load(lm_dir)
    with torch.inference_mode():
        of = {"init_read": reading, "init_write": writing}.get(guide)
        found = (of or metric)(lm, site, activations)
    found = found.detach().clone()  # one that autograd may use
    if shuffled:
        order = torch.from_numpy(np.random.default_rng(0).permutation(activations.d_in))
        found = found[:, order] if of else found[order][:, order]
    return Guide(metric=found) if of is None else Guide(directions=found)


def reading(lm: "LoadedLM", site: Site, _activations: Activations) -> Tensor:
    """What the MLP's last matrix reads, (d_model, d_mlp): its rows."""
    return lm.model.get_parameter(f"blocks.{site.layer}.mlp_out.weight")


def writing(lm: "LoadedLM", site: Site, activations: Activations) -> Tensor:
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


def metric(lm: "LoadedLM", site: Site, activations: Activations) -> Tensor:
    """The metric of `Guide`: a direction's squared gain is the variance of the logits that it adds.

    By the direct path, without the final norm's division, which is the same for all directions.
    Logits are relative to their mean over the vocabulary.
    """
    logits = lm.model.direct(site, torch.eye(activations.d_in, dtype=torch.float64))
    logits -= logits.mean(1, keepdim=True)
    squares = logits @ logits.T
    return (squares * (activations.d_in / squares.trace())).float()


def first_contexts(activations: Activations, n_ctx: int) -> NDArray[np.int64]:
    """Contexts (n, n_ctx) of the text that was harvested, from its beginning; as its rows say.

    They are the harvested ones unless it left out positions (`harvest.skip_first`): then the tokens
    that were kept follow each other.

    Raises:
        UserError: the harvest is shorter than a context.
    """
    first = np.empty((0, 3), np.int32)
    for start in range(0, activations.rows, PIECE):
        found = activations.origins(start, min(start + PIECE, activations.rows))
        assert found is not None
        both = np.concatenate([first, found])
        order = np.lexsort((both[:, 1], both[:, 0]))  # by document, then position
        first = both[order[:SAMPLE_TOKENS]]
    n = len(first) // n_ctx
    if not n:
        raise UserError(f"{activations.folder} holds less than a context of {n_ctx} tokens")
    tokens: NDArray[Any] = first[: n * n_ctx, 2].astype(np.int64)
    return tokens.reshape(n, n_ctx)
