"""Run the language model over text and hand the activations of one site to the writer."""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from sparse_dict.activations.store import ShardWriter
from sparse_dict.config import HarvestConfig
from sparse_dict.lm.model import GPT
from sparse_dict.progress import Progress
from sparse_dict.text.tokens import TokenStream

if TYPE_CHECKING:
    from sparse_dict.tracking import Run

LOG_EVERY_S = 1.0


@torch.inference_mode()
def harvest(
    model: GPT,
    stream: TokenStream,
    config: HarvestConfig,
    n_ctx: int,
    writer: ShardWriter,
    run: "Run",
) -> float:
    """Write one row for each position of the first `writer.rows` / `n_ctx` contexts; rows/s.

    Contexts are consecutive pieces of the stream, so a context may span documents, as in training.
    """
    device = model.embed.weight.device
    model.eval()
    started = time.perf_counter()
    next_log = started + LOG_EVERY_S
    step_rows = config.batch_size * n_ctx
    with Progress("harvest", writer.rows, "rows") as progress:
        for start in range(0, writer.rows, step_rows):
            n = min(step_rows, writer.rows - start)
            tokens = stream.window(start, n)
            contexts = torch.from_numpy(tokens).view(-1, n_ctx).to(device)
            found = model.activations(contexts, config.layer, config.site)
            rows = found.flatten(0, 1).float().cpu().numpy()  # (n, d_mlp)
            documents, positions = stream.origins(start, n)
            origins = np.stack([documents, positions, tokens], axis=1).astype(np.int32)
            writer.add(rows, origins)
            progress.advance(n, MB=(start + n) * writer.row_bytes / 1e6)
            now = time.perf_counter()
            if now >= next_log:
                next_log = now + LOG_EVERY_S
                rate = progress.done / (now - started)
                run.log({"rows": progress.done, "rows_per_second": rate})
    return writer.rows / (time.perf_counter() - started)
