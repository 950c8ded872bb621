"""Work in other threads: ahead of the thread that needs the results, or while it waits for them.

Python handles signals in its main thread only, and not during a call of foreign code: calls that
may wait for a network, or compute for minutes, are made in one of these threads. After a signal to
stop, the main thread no longer waits for them.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import repeat
from queue import SimpleQueue
from typing import Any, TypeVar

S = TypeVar("S")
T = TypeVar("T")

NAME = "sparse-dict ahead"
_END = object()
_Task = tuple[Future[Any], Callable[[], Any]]


def ahead(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in order, each made by one thread while the caller is busy with earlier ones.

    At most `depth` items are made and not taken yet. What `items` raises is raised in its place.
    """
    source = iter(items)
    return _results(repeat(partial(next, source, _END)), 1, depth)


def mapped(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """`function` of each item in order, by `threads` threads; otherwise as `ahead`.

    At most two results more than there are threads are made and not taken yet.
    """
    return _results((partial(function, item) for item in items), threads, threads + 1)


def aside(call: Callable[[], T], every: float | None = None, say: Callable[[], object] = int) -> T:
    """`call()`, made in a thread of its own; meanwhile `say()` is called each `every` seconds.

    Raises:
        BaseException: what `call` raises, or what a signal does meanwhile.
    """
    future: Future[T] = Future()
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    tasks.put((future, call))
    tasks.put(None)
    _start(tasks)
    while True:
        try:
            return future.result(every)
        except TimeoutError:
            if future.done():  # `call` itself has raised it
                raise
            say()


def left_behind() -> bool:
    """Whether a thread is still in a call that nobody waits for any more."""
    return any(thread.name == NAME for thread in threading.enumerate())


def _results(calls: Iterator[Callable[[], T]], threads: int, depth: int) -> Iterator[T]:
    """What calls give until one gives `_END` or there are no more."""
    tasks: SimpleQueue[_Task | None] = SimpleQueue()
    waiting: deque[Future[T]] = deque()

    def submit(n: int) -> None:
        for _, call in zip(range(n), calls, strict=False):
            waiting.append(Future())
            tasks.put((waiting[-1], call))

    for _ in range(threads):
        _start(tasks)
    try:
        submit(depth)
        while waiting and (item := waiting.popleft().result()) is not _END:
            submit(1)
            yield item
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(threads):
            tasks.put(None)


def _start(tasks: "SimpleQueue[_Task | None]") -> None:
    threading.Thread(target=_work, args=(tasks,), name=NAME, daemon=True).start()


def _work(tasks: "SimpleQueue[_Task | None]") -> None:
    while (task := tasks.get()) is not None:
        future, call = task
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
