"""Run a language model over text and hand the activations of its sites to the writer."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from sparse_dict.activations.store import ShardWriter
from sparse_dict.config import HarvestConfig
from sparse_dict.progress import Progress
from sparse_dict.sites import Site
from sparse_dict.text.tokens import TokenStream

if TYPE_CHECKING:
    from sparse_dict.tracking import Run

LOG_EVERY_S = 1.0


class Model(Protocol):
    """What a language model of any kind must do to be harvested."""

    @property
    def device(self) -> torch.device:
        """Where it reads tokens."""

    def read(self, tokens: Tensor, sites: Sequence[Site]) -> list[Tensor]:
        """What each of `sites` computes on int64 (batch, n_ctx), (batch, n_ctx, d) each."""


@torch.inference_mode()
def widths(model: Model, sites: Sequence[Site]) -> list[int]:
    """How wide each site is."""
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    return [found.shape[-1] for found in model.read(token, sites)]


@torch.inference_mode()
def harvest(
    model: Model,
    stream: TokenStream,
    config: HarvestConfig,
    n_ctx: int,
    writer: ShardWriter,
    run: "Run",
) -> float:
    """Write one row for each position of as many contexts as `writer.rows` asks for; rows/s.

    Contexts are consecutive pieces of the stream, so a context may span documents, as in training,
    and none is padded. Their first `skip_first` positions are read, but no rows. A row holds the
    sites side by side, as they are: nothing is scaled.
    """
    sites, skip = config.places(), config.skip_first
    kept = n_ctx - skip
    started = time.perf_counter()
    next_log = started + LOG_EVERY_S
    n_contexts = writer.rows // kept
    with Progress("harvest", writer.rows, "rows") as progress:
        for first in range(0, n_contexts, config.batch_size):
            start = first * n_ctx
            n = min(config.batch_size, n_contexts - first) * n_ctx
            tokens = stream.window(start, n)
            contexts = torch.from_numpy(tokens).view(-1, n_ctx).to(model.device)
            found = [part[:, skip:].float() for part in model.read(contexts, sites)]
            rows = torch.cat(found, -1).flatten(0, 1).cpu().numpy()  # (contexts * kept, d_in)
            documents, positions = stream.origins(start, n)
            origins = np.stack([documents, positions, tokens], axis=1).astype(np.int32)
            writer.add(rows, origins.reshape(-1, n_ctx, 3)[:, skip:].reshape(-1, 3))
            progress.advance(len(rows), MB=(progress.done + len(rows)) * writer.row_bytes / 1e6)
            now = time.perf_counter()
            if now >= next_log:
                next_log = now + LOG_EVERY_S
                rate = progress.done / (now - started)
                run.log({"rows": progress.done, "rows_per_second": rate})
    return writer.rows / (time.perf_counter() - started)
