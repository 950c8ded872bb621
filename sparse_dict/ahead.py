"""Work in a thread ahead of whoever needs its results."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

_END = object()


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in order, each made by one thread while the caller is busy with earlier ones.

    At most `depth` items are made and not taken yet. What `items` raises is raised in its place.
    The first item is made by the caller: it may take minutes, and a signal is heard only there.
    """
    source = iter(items)
    item = next(source, _END)
    with ThreadPoolExecutor(1, "ahead") as pool:
        try:
            waiting = deque([pool.submit(next, source, _END) for _ in range(depth)])
            while item is not _END:
                yield item  # type: ignore[misc]  # not `_END`
                item = waiting.popleft().result()
                waiting.append(pool.submit(next, source, _END))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
