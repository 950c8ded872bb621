"""How far an MLP's pre-activations reach into the bend of its non-linearity, by layer."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import LanguageModel
from sparse_dict.machine.progress import Progress
from sparse_dict.text.tokens import TokenStream

SAMPLE_TOKENS = 8_192


@torch.inference_mode()
def measure(
    model: LanguageModel,
    places: Iterable[Site],
    stream: TokenStream,
    n_ctx: int,
    n_contexts: int,
    batch_size: int,
    skip: int = 0,
) -> list[dict[str, Any]] | None:
    """Spread and linearity of pre-activations z = `mlp_pre` and h = `mlp_post` of each layer.

    From `SAMPLE_TOKENS` tokens, or one context at least, of contexts spread evenly over the first
    `n_contexts` of the stream; their first `skip` positions do not count. None if none of `places`
    says its layer, or a layer lacks these sites; a layer that is not finite is left out.

    Returns:
        For each layer ``layer``, ``std`` (of z over all rows and neurons) and ``linear``: each h_j
        is regressed on its own z_j, and this is 1 - (sum of the residual variances) / (sum of the
        variances of h_j). In a gated MLP, h_j also depends on a second matrix.
    """
    numbers = sorted({place.layer for place in places if place.layer is not None})
    sites = [Site(name, i) for i in numbers for name in ("mlp_pre", "mlp_post")]
    if not sites:
        return None
    n = min(n_contexts, max(1, SAMPLE_TOKENS // n_ctx))
    chosen = [i * n_contexts // n for i in range(n)]
    together = max(1, batch_size // len(sites))
    layers = [_Layer() for _ in numbers]
    with Progress("pre-activations", n, "contexts") as progress:
        for start in range(0, n, together):
            windows = [
                torch.from_numpy(stream.window(i * n_ctx, n_ctx))
                for i in chosen[start : start + together]
            ]
            try:
                found = model.read(torch.stack(windows).to(model.device), sites)
            except UserError:
                return None
            for layer, z, h in zip(layers, found[::2], found[1::2], strict=True):
                layer.add(z[:, skip:].flatten(0, 1), h[:, skip:].flatten(0, 1))
            progress.advance(len(windows))
    values = [{"layer": i, **layer.values()} for i, layer in zip(numbers, layers, strict=True)]
    return [v for v in values if all(map(math.isfinite, v.values()))]


class _Layer:
    def __init__(self) -> None:
        self._n = 0
        self._sums: Tensor | float = 0.0  # of z, h, z z, h h and z h: (5, d_mlp)

    def add(self, z: Tensor, h: Tensor) -> None:
        z, h = z.double(), h.double()
        self._n += len(z)
        self._sums = self._sums + torch.stack([x.sum(0) for x in (z, h, z * z, h * h, z * h)])

    def values(self) -> dict[str, float]:
        assert isinstance(self._sums, Tensor)
        z, h, zz, hh, zh = self._sums / self._n
        std = (zz.mean() - z.mean() ** 2).clamp(min=0).sqrt()
        variance, covariance = zz - z * z, zh - z * h
        explained = torch.where(variance > 0, covariance**2 / variance, 0.0)
        return {"std": _rounded(std), "linear": _rounded(explained.sum() / (hh - h * h).sum())}


def _rounded(value: Tensor) -> float:
    return float(f"{float(value):.4g}")
