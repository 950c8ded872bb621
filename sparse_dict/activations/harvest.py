"""Run a language model over text and hand the activations of its sites to the writer."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.activations.writer import ShardWriter
from sparse_dict.config import HarvestConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm.interface import LanguageModel, threads_to_share
from sparse_dict.machine import distributed
from sparse_dict.machine.background import mapped
from sparse_dict.machine.progress import Progress
from sparse_dict.text.tokens import TokenStream
from sparse_dict.tracking import Run

LOG_EVERY_S = 1.0


@torch.inference_mode()
def widths(model: LanguageModel, sites: Sequence[Site]) -> list[int]:
    """How wide each site is."""
    token = torch.zeros((1, 1), dtype=torch.int64, device=model.device)
    return [found.shape[-1] for found in model.read(token, sites)]


# Rows (contexts * kept, d_in) on the CPU, as the files hold them; their origins, (contexts * kept,
# 3); whether the model's values were finite before they were rounded; a copy that is under way.
_Batch = tuple[Tensor, NDArray[np.int32], Tensor, "torch.cuda.Event | None"]


def harvest(
    model: LanguageModel,
    stream: TokenStream,
    config: HarvestConfig,
    n_ctx: int,
    writer: ShardWriter,
    run: Run,
) -> None:
    """Write one row for each position of as many contexts as `writer.rows` asks for.

    Contexts are consecutive pieces of the stream, so one may span documents, as in training, and
    none is padded; their first `skip_first` positions give no rows. A row holds the sites side by
    side, unscaled. On a CPU each core has a thread with a batch of its own, which need not wait for
    the others at each operation. Several processes each take a contiguous part of the batches.
    """
    sites, skip = config.places(), config.skip_first
    kept = n_ctx - skip
    dtype = getattr(torch, config.dtype)
    n_contexts = writer.rows // kept

    @torch.inference_mode()
    def read(first: int) -> _Batch:
        n = min(config.batch_size, n_contexts - first)
        tokens = stream.window(first * n_ctx, n * n_ctx)
        contexts = torch.from_numpy(tokens).view(n, n_ctx).to(model.device, non_blocking=True)
        found = [part[:, skip:] for part in model.read(contexts, sites)]
        rows = (found[0] if len(found) == 1 else torch.cat(found, -1)).flatten(0, 1)
        finite = torch.stack(rows.aminmax()).isfinite().all()  # a tenth of the time of all values'
        documents, positions = stream.origins(first * n_ctx, n * n_ctx)
        origins = np.empty((n, n_ctx, 3), np.int32)
        for i, values in enumerate((documents, positions, tokens)):
            origins[:, :, i] = values.reshape(n, n_ctx)
        rows = rows.to(dtype)
        copied: torch.cuda.Event | None = None
        if rows.is_cuda:  # the copy is valid once `copied` has occurred
            with torch.cuda.device(rows.device):  # which is a setting of each thread
                pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
                rows = pinned.copy_(rows, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record()
        return rows, origins[:, skip:].reshape(-1, 3), finite, copied

    starts = range(0, n_contexts, config.batch_size)
    rank, size = distributed.rank(), distributed.size()
    starts = starts[len(starts) * rank // size : len(starts) * (rank + 1) // size]
    own = (min(starts.stop, n_contexts) - starts.start) * kept  # rows of this process
    writer.begin(starts.start * kept)
    started = time.perf_counter()
    next_log = started + LOG_EVERY_S
    with threads_to_share(model) as threads, Progress("harvest", own, "rows") as progress:
        for rows, origins, finite, copied in mapped(read, starts, threads):
            if copied is not None:
                copied.synchronize()
            if not finite:
                raise UserError(f"the language model's activations are not finite: {model.remedy}")
            writer.add(rows.numpy(), origins)
            done = progress.done + len(rows)
            progress.advance(len(rows), MB=done * writer.row_bytes / 1e6)
            now = time.perf_counter()
            if now >= next_log:
                next_log = now + LOG_EVERY_S
                run.log({"rows": done, "rows_per_second": done / (now - started)})
