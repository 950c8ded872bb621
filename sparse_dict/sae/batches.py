"""Batches of activations for training: read ahead by a thread, and kept on a GPU if they fit."""

from collections.abc import Generator
from contextlib import closing, nullcontext

import torch
from torch import Tensor

from sparse_dict.machine.background import prefetched
from sparse_dict.sae.rows import Rows
from sparse_dict.sae.scaling import Scaling

BLOCK_BYTES = {"cuda": 1 << 26, "cpu": 1 << 20}  # read, and copied to a GPU, at a time
SHARE = 0.5  # of the memory that is free after a GPU's first step, which rows may take


def batches(
    rows: Rows,
    scaling: Scaling,
    device: torch.device,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    room: int | None = None,
) -> Generator[Tensor, None, None]:
    """Batches of steps `first_step` to `last_step` - 1, counted from zero; to be closed.

    Step s holds `rows` s * batch_size, ... in order, beginning again after the last: a resumed run
    needs no state. Each is (batch_size, d_in) float32, scaled, and valid until the next one is
    asked for. Rows that will be seen again stay on the device as they come past for the first time,
    if all of them take at most `room` bytes: by default a share of what is free on a GPU after the
    first step.
    """
    whole_pass = -(-rows.rows // batch_size)  # steps, of which the last may begin again
    kept: Tensor | None = None
    # closed here and not when memory is tidied up: that may be within the start of another thread,
    # which the reader's thread could then not be waited for
    with closing(_streamed(rows, scaling, device, batch_size, first_step, last_step)) as streamed:
        for step in range(first_step, last_step):
            start = step * batch_size % rows.rows
            if kept is not None and step - first_step >= whole_pass:
                streamed.close()
                part = kept[start : start + batch_size]
                rest = batch_size - len(part)
                yield torch.cat([part, kept[:rest]]) if rest else part
                continue
            batch = next(streamed)
            yield batch
            if step == first_step and last_step - first_step > whole_pass:
                room = _room(device) if room is None else room
                fits = rows.rows * batch[0].nbytes <= room
                kept = batch.new_empty(rows.rows, rows.d_in) if fits else None
            if kept is not None:
                before_end = min(batch_size, rows.rows - start)
                kept[start : start + before_end] = batch[:before_end]
                kept[: batch_size - before_end] = batch[before_end:]


def _room(device: torch.device) -> int:
    return int(SHARE * torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else 0


def _streamed(
    rows: Rows,
    scaling: Scaling,
    device: torch.device,
    batch_size: int,
    first_step: int,
    last_step: int,
) -> Generator[Tensor, None, None]:
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    block_bytes = BLOCK_BYTES.get(device.type, BLOCK_BYTES["cpu"])
    # opening a file for each small batch would cost as much as a step
    steps = min(max(1, block_bytes // (4 * rows.d_in * batch_size)), last_step - first_step)
    shape = steps * batch_size, rows.d_in
    buffers = [torch.empty(*shape, pin_memory=bool(stream)) for _ in range(2)]
    mean, factor = (torch.from_numpy(a) for a in (scaling.mean, (1 / scaling.scale).astype("f4")))

    def fill(number: int) -> Tensor:
        first = first_step + number * steps
        last = min(first + steps, last_step)
        buffer = buffers[number % 2]
        if stream:
            stream.synchronize()  # the copy from this buffer is over
        wanted, filled, start = (last - first) * batch_size, 0, first * batch_size % rows.rows
        while filled < wanted:
            count = min(wanted - filled, rows.rows - start)
            rows.read_into(start, buffer[filled : filled + count].numpy())
            filled, start = filled + count, 0
        buffer[:wanted].sub_(mean).mul_(factor)
        with torch.cuda.stream(stream) if stream else nullcontext():
            return buffer[:wanted].to(device, non_blocking=bool(stream))

    for block in prefetched(map(fill, range(-(-(last_step - first_step) // steps))), depth=1):
        if stream:
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            block.record_stream(current)  # its memory is free when `current` is through
        yield from block.split(batch_size)
