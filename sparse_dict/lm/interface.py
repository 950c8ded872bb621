"""What the harvest and the analyses ask of a language model, whether it is ours or another's."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.text.tokens import Encoder

LARGE = 1e6  # RMS of the rows that a norm is tried on: its epsilon is nothing beside that


def without_division(norm: nn.Module, rows: Tensor) -> Tensor:
    """What a norm of any kind does to `rows` (n, d_model), but for its division.

    Its gain, and its centring if any. Of rows of RMS LARGE it gives them divided by their RMS (that
    of what centring leaves), times its gain, and its bias, which is what it gives of zero.
    """
    norm, exact = copy.deepcopy(norm).double().cpu(), rows.double().cpu()
    bias = norm(torch.zeros_like(exact))
    large = LARGE * exact / _rms(exact).clamp(min=1e-30)
    given, twice, shifted = (norm(x) - bias for x in (large, 2 * large, large + LARGE))
    if not _near(twice, given):
        raise UserError(f"{type(norm).__name__} is no norm")
    centred = exact - exact.mean(1, keepdim=True) if _near(shifted, given) else exact
    return (given * _rms(centred)).to(rows)


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(1, keepdim=True).sqrt()


def _near(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-3 * other.norm())


class Follow(Protocol):
    """The second part of a model that a `split` has cut in two."""

    def __call__(
        self, values: Sequence[Tensor], of: Tensor | None = None, contexts: Tensor | None = None
    ) -> Tensor:
        """The cross-entropy of each token in nats, (batch, n_ctx), from other activations.

        `values` are in the place of the model's own, (batch, n_ctx, d) for each site; with `of`, a
        mask (batch, n_ctx), only the losses of these tokens are computed, (n,). `contexts` (batch,)
        are the numbers, in what was read, of those that all this is about; None: all of them.
        """


class LanguageModel(Protocol):
    """A causal language model; `tokens` are int64 (batch, n_ctx) on its device."""

    @property
    def device(self) -> torch.device:
        """Where it reads tokens."""

    @property
    def reentrant(self) -> bool:
        """Whether several threads may call it at once."""

    @property
    def remedy(self) -> str:
        """What helps where its values are not finite."""

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes, (batch, n_ctx, d) each; stops behind the last."""

    def split(
        self, tokens: Tensor, targets: Tensor, sites: Sequence[Site]
    ) -> tuple[list[Tensor], Follow]:
        """The model in two: what it computes at `sites`, and how it goes on from there.

        `targets` are `tokens` one further on. What is given to the second part takes the place of
        the activations at these very sites; all else is as in the whole model.
        """

    def direct(self, site: Site, rows: Tensor) -> Tensor:
        """What activations `rows` (n, d) of `site` add to the logits, (n, n_vocab), in their dtype.

        By the direct path alone: what they add to the residual stream, then centring (if any) and
        gain of the final norm, not its division, the unembedding and the logits' scale, without a
        cap.
        """


@contextmanager
def threads_to_share(model: LanguageModel) -> Iterator[int]:
    """Give the number of threads to call it from; if several, torch computes each call in one.

    Small products gain nothing from a second core, and several calls at once do.
    """
    cores = torch.get_num_threads()
    if model.device.type != "cpu" or not model.reentrant or cores == 1:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield cores
    finally:
        torch.set_num_threads(cores)


def finite(losses: Tensor, model: LanguageModel) -> Tensor:
    """Losses that the model computed, if they are numbers."""
    if not losses.isfinite().all():
        raise UserError(f"the language model's loss is not finite: {model.remedy}")
    return losses


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
