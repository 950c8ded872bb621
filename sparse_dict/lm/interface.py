"""What the harvest and the analyses ask of a language model, whether it is ours or another's.

`lm.model.GPT` answers for ours, `activations.hf.Model` for those of Hugging Face's transformers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparse_dict.config.sites import Site
from sparse_dict.text.tokens import Encoder

# The mean cross-entropy of each context in nats, (batch,), computed from other activations than the
# model's own, one (batch, n_ctx, d) for each site of a `split`.
Follow = Callable[[Sequence[Tensor]], Tensor]


class LanguageModel(Protocol):
    """A causal language model; `tokens` are int64 (batch, n_ctx) on its device."""

    @property
    def device(self) -> torch.device:
        """Where it reads tokens."""

    @property
    def reentrant(self) -> bool:
        """Whether several threads may call `read` at once."""

    @property
    def n_layers(self) -> int:
        """How many layers the short names of sites may name."""

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the residual stream and the unembedding."""

    @property
    def unembedding(self) -> Tensor:
        """A row for each id of the vocabulary, (n_vocab, d_model)."""

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes, (batch, n_ctx, d) each; stops behind the last."""

    def split(
        self, tokens: Tensor, targets: Tensor, sites: Sequence[Site]
    ) -> tuple[list[Tensor], Follow]:
        """The model in two: what it computes at `sites`, and how it goes on from there.

        `targets` are `tokens` one further on. What is given to the second part takes the place of
        the activations at these very sites; all else is as in the whole model.
        """

    def written(self, site: Site, rows: Tensor) -> Tensor | None:
        """What activations `rows` (n, d) of `site` add to the residual stream, (n, d_model).

        The rows, or what the MLP's last matrix makes of its hidden layer; None without such a path.
        """


class Vocabulary(Encoder, Protocol):
    """A tokenizer that can also show its tokens."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for."""


class Seen(Exception):
    """All sites that are read are known: the rest of a forward pass is not needed."""


@dataclass(frozen=True)
class OpenLM:
    """A language model with its tokenizer, as the harvest and the analyses use it."""

    model: LanguageModel
    tokenizer: Vocabulary
    n_ctx: int  # tokens in one context of the harvest
