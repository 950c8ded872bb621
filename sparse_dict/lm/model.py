"""A GPT in the nanoGPT manner: pre-norm, learned positions, tied embeddings, no biases."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dict.config import ModelConfig
from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import UserError
from sparse_dict.lm import attention
from sparse_dict.lm.interface import Follow, Seen, without_division
from sparse_dict.lm.loss import linear_cross_entropy, token_losses

Compute = Callable[[], Tensor]
At = Callable[[Site, Compute], Tensor]  # what a site computes to what the model goes on with
LATE = {*[*SITES][[*SITES].index("resid_mid") + 1 :]}  # sites behind the attention's output


class Block(nn.Module):
    """Causal self-attention and an MLP, each behind a LayerNorm and added to the residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.norm_1 = nn.LayerNorm(d, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.attn_out = nn.Linear(d, d, bias=False)
        self.norm_2 = nn.LayerNorm(d, bias=False)
        self.mlp_in = nn.Linear(d, config.d_mlp, bias=False)
        self.mlp_out = nn.Linear(config.d_mlp, d, bias=False)

    def attention(self, x: Tensor) -> Tensor:
        """What the attention adds to the residual stream, (batch, n_ctx, d_model) both ways."""
        b, t, d = x.shape
        qkv = self.qkv(self.norm_1(x)).view(b, t, 3, self.n_heads, d // self.n_heads)
        return self.attn_out(attention.causal(qkv).reshape(b, t, d))

    def forward(self, x: Tensor, at: Callable[[str, Compute], Tensor] | None = None) -> Tensor:
        """The residual stream behind the block, (batch, n_ctx, d_model) both ways.

        A site is not computed where `at` has something else in its place.
        """
        at = at or (lambda _, compute: compute())
        pre = at("resid_pre", lambda: x)
        mid = at("resid_mid", lambda: pre + at("attn_out", lambda: self.attention(pre)))
        return at("resid_post", lambda: mid + at("mlp_out", lambda: self._mlp(mid, at)))

    def _mlp(self, mid: Tensor, at: Callable[[str, Compute], Tensor]) -> Tensor:
        def active() -> Tensor:
            hidden = at("mlp_pre", lambda: self.mlp_in(self.norm_2(mid)))
            return F.gelu(hidden, approximate="tanh")

        return self.mlp_out(at("mlp_post", active))


class GPT(nn.Module):
    """The language model; `tokens` are int64 (batch, n_ctx), contexts may be shorter."""

    reentrant = True
    remedy = "train it again"

    def __init__(self, config: ModelConfig, n_vocab: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(n_vocab, config.d_model)  # also the unembedding
        self.positions = nn.Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        # GPT-2's initial values; the residual stream is a sum of 2 n_layers terms.
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("attn_out.weight", "mlp_out.weight"))
                std = 0.02 / math.sqrt(2 * config.n_layers) if residual else 0.02
                nn.init.normal_(parameter, std=std)

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) + self.positions.weight[: tokens.shape[1]]

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final normalised hidden states, (batch, n_ctx, d_model)."""
        return self._onwards(self._embedded(tokens), 0)

    def _onwards(self, x: Tensor, first: int, at: At | None = None) -> Tensor:
        for layer, block in enumerate(self.blocks[first:], first):
            x = block(x, at and partial(_at_site, at, layer))
        return self.norm(x)

    def loss(self, tokens: Tensor, targets: Tensor, *, bf16: bool = False) -> Tensor:
        """Mean cross-entropy in nats of `targets`, which are `tokens` one further on.

        `bf16` takes the unembedding's products in bfloat16, and on a GPU the blocks' as well: on a
        CPU the blocks are too narrow to gain, and attention's gradient is slower in bfloat16.
        """
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16 and tokens.is_cuda):
            hidden = self.hidden(tokens).flatten(0, 1)  # (batch * n_ctx, d_model)
        return linear_cross_entropy(hidden.float(), self.embed.weight, targets.flatten(), bf16=bf16)

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        for site in sites:
            if site.name not in SITES or site.layer not in range(len(self.blocks)):
                raise UserError(f"{site} is not a site of this model of {len(self.blocks)} layers")
        found: dict[Site, Tensor] = {}

        def keep(site: Site, compute: Compute) -> Tensor:
            value = compute()
            if site in sites:
                found[site] = value
                if len(found) == len({*sites}):
                    raise Seen
            return value

        with suppress(Seen):
            self._onwards(self._embedded(tokens), 0, keep)
        return [found[site] for site in sites]

    def split(
        self, tokens: Tensor, targets: Tensor, sites: Sequence[Site]
    ) -> tuple[list[Tensor], Follow]:
        first = min((site.layer or 0 for site in sites), default=0)
        # what goes on from there: the attention is needed only if a site lies before its end
        late = {site.name for site in sites if site.layer == first} <= LATE
        start = Site("resid_mid" if late else "resid_pre", first)
        *found, x = self.read(tokens, [*sites, start])

        def follow(
            values: Sequence[Tensor], of: Tensor | None = None, contexts: Tensor | None = None
        ) -> Tensor:
            begun, wanted = (v if contexts is None else v[contexts] for v in (x, targets))
            instead = {start: begun, **dict(zip(sites, values, strict=True))}
            mask = torch.ones_like(wanted, dtype=torch.bool) if of is None else of

            def at(site: Site, compute: Compute) -> Tensor:
                return instead[site] if site in instead else compute()

            hidden = self._onwards(begun, first, at)[mask]  # (n, d_model)
            found = token_losses(hidden, self.embed.weight, wanted[mask])
            return found.view(wanted.shape) if of is None else found

        return found, follow

    def direct(self, site: Site, rows: Tensor) -> Tensor:
        if site.name == "mlp_pre":
            raise UserError(f"a non-linearity follows {site}")
        if site.name == "mlp_post":
            rows = rows @ self.get_parameter(f"blocks.{site.layer}.mlp_out.weight").to(rows).T
        return without_division(self.norm, rows) @ self.embed.weight.to(rows).T


def _at_site(at: At, layer: int, name: str, compute: Compute) -> Tensor:
    return at(Site(name, layer), compute)
