"""Batches of activations for training, read ahead by a thread."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError
from sparse_dict.sae import kernel


def training_rows(activations: Activations, eval_rows: int, batch_size: int) -> int:
    """How many rows at the beginning of the harvest are for training.

    Raises:
        UserError: the harvest is too small for the batch size and the evaluation rows.
    """
    rows = activations.rows - eval_rows
    if rows < batch_size:
        raise UserError(
            f"{activations.folder} has {activations.rows:,} rows: too few for "
            f"training.eval_rows={eval_rows} and training.batch_size={batch_size}"
        )
    return rows


def batches(
    activations: Activations,
    *,
    rows: int,
    batch_size: int,
    first_step: int,
    last_step: int,
    scale: float,
    device: torch.device,
) -> Iterator[Tensor]:
    """Batches of steps `first_step` to `last_step` - 1, counted from zero.

    Step s holds rows s * batch_size, ... in stored order, beginning again after `rows`; so a
    resumed run finds its place without any state. Each is (batch_size, width) float32, divided by
    `scale`, padded with zero columns to the kernel's width, and valid until the next one is asked
    for.
    """
    width = kernel.padded(activations.d_in)
    pinned = device.type == "cuda"
    buffers = [torch.zeros(batch_size, width, pin_memory=pinned) for _ in range(2)]
    packed = torch.empty(batch_size, activations.d_in)
    factor = 1 / scale

    def fill(step: int) -> Tensor:
        start, filled = step * batch_size % rows, 0
        while filled < batch_size:
            count = min(batch_size - filled, rows - start)
            activations.read_into(start, packed[filled : filled + count].numpy())
            filled += count
            start = 0
        buffer = buffers[step % 2]
        torch.mul(packed, factor, out=buffer[:, : activations.d_in])
        return buffer

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        ahead = reader.submit(fill, first_step)
        for step in range(first_step, last_step):
            batch = ahead.result().to(device, non_blocking=False)
            if step + 1 < last_step:
                ahead = reader.submit(fill, step + 1)
            yield batch
