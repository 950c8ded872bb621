"""Several processes as one run, as torchrun starts them; without torchrun, one process.

Rank 0 alone writes records, logs, tracks and holds the lock; all ranks read the same folders. They
exchange numbers over gloo, the gradients of models on GPUs over NCCL.
"""

import gc
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from pathlib import Path

from omegaconf import DictConfig, open_dict, read_write

from sparse_dict.annotations import Device, Module
from sparse_dict.errors import UserError
from sparse_dict.machine import runtime
from sparse_dict.machine.background import in_background
from sparse_dict.storage import lock

# Others wait for as long as rank 0 tokenises a corpus; if it dies, their connection breaks at once.
PATIENCE = timedelta(days=7)
MARK = "TORCHELASTIC_RUN_ID"  # torchrun alone sets it; other launchers set RANK and its like, too
WAIT_S = 5.0  # after which a process says that it waits for others
GRACE_S = 5.0  # torchrun ends all ranks when one has ended: rank 0 goes first, to report why


def rank() -> int:
    """This process' number."""
    return int(os.environ["RANK"]) if MARK in os.environ else 0


def size() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if MARK in os.environ else 1


def main() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def hush(config: DictConfig) -> None:
    """Switch off logging and tracking in a process that is not rank 0; errors go to stderr."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.output_subdir = None
        config.hydra.job_logging = {"root": None}
    config.tracking.mode = "disabled"
    logging.getLogger().setLevel(logging.ERROR)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Connect the processes, of which rank 0 keeps all others out of the output folder."""
    with lock.holding(*[folder] if main() else []), joined():
        yield


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes, if several; `SystemExit` where another has ended and said why."""
    if size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    # with NCCL, the default is gloo for tensors on the CPU and NCCL for those on the GPU
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    line = f"process {rank()}: waiting for {size()} processes at {where}\n"
    in_background(  # the main thread handles signals and reports what it waits for
        lambda: dist.init_process_group(None if nccl else "gloo", timeout=PATIENCE),
        WAIT_S,
        cache(lambda: sys.stderr.write(line)),
    )
    try:
        yield
    except BaseException as error:
        if isinstance(error, RuntimeError) and "onnection" in str(error):  # gloo's words
            raise SystemExit(1) from None
        if not main():
            time.sleep(GRACE_S)
        raise
    barrier()
    # DistributedDataParallel lies in reference cycles and holds the group; if that outlives the
    # interpreter, the group's threads abort the process after all its work is done.
    gc.collect()
    dist.destroy_process_group()


def barrier() -> None:
    """Wait until all processes are here."""
    gather(0.0)


def gather(value: float) -> list[float]:
    """The `value` of each process, by rank; all of them return the same list."""
    if size() == 1:
        return [value]
    import torch

    values = torch.zeros(size(), dtype=torch.float64)
    values[rank()] = value
    torch.distributed.all_reduce(values)
    return [float(item) for item in values]


@contextmanager
def main_first() -> Iterator[None]:
    """Run a block in rank 0 and then, when its result is on disk, in the others."""
    if not main():
        barrier()
    yield
    if main():
        barrier()


def device(name: str) -> Device:
    """As `runtime.device`; of several processes each takes the GPU of its LOCAL_RANK."""
    import torch

    found = runtime.device(name)
    if size() == 1 or found.type == "cpu":
        return found
    if found.type != "cuda" or found.index is not None:
        raise UserError(f"device={name} is for one process: with torchrun use device=cuda or cpu")
    own = runtime.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    torch.cuda.set_device(own)
    return own


def averaging(module: Module) -> Module:
    """`module`, whose gradients are averaged over all processes as they are computed."""
    if size() == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module)


def local(module: Module, *, when: bool) -> AbstractContextManager[None]:
    """Within it, if `when`, gradients of an `averaging` module are summed in this process only."""
    return module.no_sync() if when and size() > 1 else nullcontext()  # type: ignore[operator]
