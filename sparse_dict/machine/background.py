"""Work in other threads: ahead of the thread that needs the results, or while it waits for them.

Python handles signals in its main thread only, and not during a call of foreign code: calls that
may wait for a network, or compute for minutes, are made in one of these threads. After a signal to
stop, the main thread no longer waits for them.
"""

import ssl
import threading
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice, repeat
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")

NAME = "sparse-dict background"
_END = object()


def reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether anything answers at `url` within `seconds`, even with an error."""

    def ask() -> bool:
        with suppress(urllib.error.HTTPError):
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        return True

    def give_up() -> None:
        raise TimeoutError

    try:
        return in_background(ask, seconds, give_up)  # a name look-up has no timeout of its own
    except OSError as error:
        # a certificate that is not accepted here may be by the client that is used later
        return isinstance(getattr(error, "reason", None), ssl.SSLError)


def prefetched(items: Iterable[T], depth: int = 2) -> Iterator[T]:
    """The same items in order, each made by one thread while the caller is busy with earlier ones.

    At most `depth` items are made and not taken yet. What `items` raises is raised in its place.
    """
    source = iter(items)
    with closing(_made(lambda _: next(source, _END), repeat(None), 1, depth)) as made:
        for item in made:
            if item is _END:
                return
            yield item  # type: ignore[misc]


def mapped(function: Callable[[S], T], items: Iterable[S], threads: int) -> Iterator[T]:
    """`function` of each item in order, by `threads` threads; otherwise as `prefetched`."""
    return _made(function, items, threads, threads + 1)


def in_background(
    call: Callable[[], T], every: float | None = None, say: Callable[[], object] = int
) -> T:
    """`call()`, made in a thread of its own; meanwhile `say()` is called each `every` seconds."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    # no pool's thread: the end of the process would wait for it
    threading.Thread(target=work, name=NAME, daemon=True).start()
    while True:
        try:
            return future.result(every)
        except TimeoutError:
            if future.done():  # `call` itself has raised it
                raise
            say()


def left_behind() -> bool:
    """Whether a thread is still in a call that nobody waits for any more."""
    return any(thread.name.startswith(NAME) for thread in threading.enumerate())


def _made(
    function: Callable[[S], T], items: Iterable[S], threads: int, depth: int
) -> Generator[T, None, None]:
    source, waiting = iter(items), deque[Future[T]]()
    pool = ThreadPoolExecutor(threads, NAME)

    def submit(n: int) -> None:
        waiting.extend(pool.submit(function, item) for item in islice(source, n))

    try:
        submit(depth)
        while waiting:
            item = waiting.popleft().result()
            submit(1)
            yield item
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
