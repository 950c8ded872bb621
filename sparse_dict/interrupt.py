"""Ctrl-C and SIGTERM as a request to stop at the next safe point, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(SystemExit):
    """A stage stopped on a signal after saving its state; exit code 128 + signal."""


class StopRequest:
    """Which signal has asked to stop, if any."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def error(self) -> Interrupted:
        """What to raise once the state is saved."""
        return Interrupted(128 + (self.signal or 0))


@contextmanager
def on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a `StopRequest`; a second signal kills as usual.

    Outside the main thread, where Python cannot set handlers, no signal is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in caught}

    def handler(number: int, _frame: FrameType | None) -> None:
        request.signal = number
        for other, previous in before.items():
            signal.signal(other, previous)

    for number in caught:
        signal.signal(number, handler)
    try:
        yield request
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
