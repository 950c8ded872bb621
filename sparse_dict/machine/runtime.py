"""The process: which device computes, how memory is allocated, how generators are seeded."""

import ctypes
import os
import platform
import sys

from sparse_dict.annotations import Device
from sparse_dict.errors import UserError

M_TRIM_THRESHOLD = -1  # from glibc's malloc.h
M_MMAP_MAX = -4


def allocator() -> bool:
    """Let glibc keep large blocks of memory for reuse; True if it took the settings.

    By default the pages of a large temporary are zeroed again and again: a third to a half of a
    small model's training step on a CPU. In exchange the process keeps its peak memory until it
    ends.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def steady_products() -> None:
    """Let MKL, which multiplies torch's matrices on a CPU, add alike with any number of threads.

    Without it, where it has AVX2 alone, a product of a stack of dictionaries differs in its last
    bits from that of each one, and with the number of threads. No slower where it was measured.
    MKL reads the variable at the first product of the process.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def check_device(name: str) -> None:
    """Like `device`, but without importing torch for names that every machine has."""
    if name not in ("auto", "cpu"):
        device(name)


def device(name: str) -> Device:
    """The device called `name`; ``auto`` takes cuda, else cpu."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cuda": gpus, "cpu": 1}
    if name == "auto":
        return torch.device("cuda" if gpus else "cpu")
    try:
        found = torch.device(name)
    except RuntimeError:
        found = None
    if found is None or found.type not in there:
        raise UserError(f"device must be auto, cpu, cuda or cuda:N, not {name!r}")
    if (found.index or 0) >= there[found.type]:
        raise UserError(f"device {name} is not available here; device=auto takes what there is")
    return found
