"""Work in threads ahead of whoever needs its results."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

_END = object()


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in order, each made by one thread while the caller is busy with earlier ones.

    At most `depth` items are made and not taken yet. What `items` raises is raised in its place.
    The first item is made by the caller: it may take minutes, and a signal is heard only there.
    """
    source = iter(items)
    return _results(repeat(partial(next, source, _END)), 1, depth)


def mapped(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """`function` of each item in order, by `threads` threads; otherwise as `ahead`.

    At most two results more than there are threads are made and not taken yet.
    """
    return _results((partial(function, item) for item in items), threads, threads + 1)


def _results(calls: Iterator[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """What calls give until one gives `_END` or there are no more."""
    first = next(calls, None)
    if first is None:
        return
    item = first()
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            waiting = deque(pool.submit(call) for _, call in zip(range(depth), calls, strict=False))
            while item is not _END:
                yield item
                if not waiting:
                    return
                item = waiting.popleft().result()
                waiting.extend(pool.submit(call) for _, call in zip(range(1), calls, strict=False))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
