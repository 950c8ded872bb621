"""A GPT in the nanoGPT manner: pre-norm, learned positions, tied embeddings, no biases."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_dict.config import ModelConfig
from sparse_dict.config.sites import SITES, Site
from sparse_dict.lm import attention
from sparse_dict.lm.loss import linear_cross_entropy


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


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

    def mlp_post(self, x: Tensor) -> Tensor:
        """The MLP's hidden activation after GELU, (batch, n_ctx, d_mlp); `x` is resid_mid."""
        return _gelu(self.mlp_in(self.norm_2(x)))

    def sites(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The sites one after another; what is not asked for is not computed."""
        yield "resid_pre", x
        added = self.attention(x)
        yield "attn_out", added
        x = x + added
        yield "resid_mid", x
        hidden = self.mlp_in(self.norm_2(x))
        yield "mlp_pre", hidden
        hidden = _gelu(hidden)
        yield "mlp_post", hidden
        yield "resid_post", x + self.mlp_out(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """The residual stream behind the block, (batch, n_ctx, d_model) both ways."""
        x = x + self.attention(x)
        return x + self.mlp_out(self.mlp_post(x))


class GPT(nn.Module):
    """The language model; `tokens` are int64 (batch, n_ctx), contexts may be shorter."""

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
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def reentrant(self) -> bool:
        """Whether several threads may call `read` at once: it changes nothing."""
        return True

    @property
    def n_layers(self) -> int:
        """How many blocks it has."""
        return len(self.blocks)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.embed(tokens) + self.positions.weight[: tokens.shape[1]]

    def hidden(self, tokens: Tensor) -> Tensor:
        """Final normalised hidden states, (batch, n_ctx, d_model)."""
        x = self._embedded(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def loss(self, tokens: Tensor, targets: Tensor, *, bf16: bool = False) -> Tensor:
        """Mean cross-entropy in nats of `targets`, which are `tokens` one further on.

        `bf16` takes the unembedding's products in bfloat16, and on a GPU the blocks' as well: on a
        CPU the blocks are too narrow to gain, and attention's gradient is slower in bfloat16.
        """
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=bf16 and tokens.is_cuda):
            hidden = self.hidden(tokens).flatten(0, 1)  # (batch * n_ctx, d_model)
        return linear_cross_entropy(hidden.float(), self.embed.weight, targets.flatten(), bf16=bf16)

    def activations(self, tokens: Tensor, layer: int, site: str) -> Tensor:
        """What `site` of block `layer` computes, (batch, n_ctx, d); what follows is not run."""
        return self.read(tokens, [Site(site, layer)])[0]

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes, (batch, n_ctx, d); what follows the last is not run."""
        for site in sites:
            if site.name not in SITES or site.layer not in range(self.n_layers):
                raise ValueError(f"unknown site {str(site)!r}")
        found: dict[Site, Tensor] = {}
        for site, value in self._sites(tokens):
            if site in sites:
                found[site] = value
                if len(found) == len(sites):
                    break
        return [found[site] for site in sites]

    def _sites(self, tokens: Tensor) -> Iterator[tuple[Site, Tensor]]:
        x = self._embedded(tokens)
        for layer, block in enumerate(self.blocks):
            for name, value in cast(Block, block).sites(x):
                yield Site(name, layer), value
            x = value

    def split(
        self, tokens: Tensor, layer: int, site: str
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The model in two: `activations`, and what leads from them to `hidden`.

        The second part may be given anything of the shape of the first one's result.
        """
        if site != "mlp_post":
            raise ValueError(f"unknown site {site!r}")
        before = self.activations(tokens, layer, "resid_mid")
        block = cast(Block, self.blocks[layer])

        def follow(activation: Tensor) -> Tensor:
            x = before + block.mlp_out(activation)
            for later in self.blocks[layer + 1 :]:
                x = later(x)
            return self.norm(x)

        return block.mlp_post(before), follow
