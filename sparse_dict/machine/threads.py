"""Cores, and compiled loops in parallel on them: ctypes releases the interpreter lock in a call."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache


def balanced(loads: Sequence[float], parts: int) -> list[list[int]]:
    """Indices of `loads` in at most `parts` parts of about equal load, none of them empty."""
    shares: list[list[int]] = [[] for _ in range(min(parts, len(loads)))]
    for i in sorted(range(len(loads)), key=lambda i: -loads[i]):
        lightest = min(shares, key=lambda share: (sum(loads[j] for j in share), len(share)))
        lightest.append(i)
    return [sorted(share) for share in shares]


def available_cores() -> int:
    """Cores that this process may run on, which containers and `taskset` make fewer."""
    return len(os.sched_getaffinity(0))


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:  # threads do not survive a fork
    return ThreadPoolExecutor(threads, "sparse-dict")


def number(most: int) -> int:
    """As many threads as torch uses, at most `most`."""
    import torch

    return max(1, min(torch.get_num_threads(), most))


def each(task: Callable[[int], None], threads: int) -> None:
    """Run `task(0)` ... `task(threads - 1)`, each in a thread."""
    if threads == 1:
        task(0)
        return
    others = [_pool(threads, os.getpid()).submit(task, part) for part in range(1, threads)]
    task(0)
    for other in others:
        other.result()


def share(count: int, part: int, threads: int) -> tuple[int, int]:
    """First and last (excluded) of `count` things that thread `part` does."""
    return count * part // threads, count * (part + 1) // threads
