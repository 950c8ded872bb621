"""Signals as a request to stop at the next safe point, with a checkpoint."""

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Interrupted(SystemExit):
    """A signal has stopped the process, after its state was saved; exit code 128 + signal."""

    @property
    def name(self) -> str:
        return signal.Signals(int(self.code or 0) - 128).name


class StopRequest:
    """Which signal has asked to stop, if any."""

    signal: int | None = None

    def error(self) -> Interrupted:
        return Interrupted(128 + (self.signal or 0))


@contextmanager
def ending() -> Iterator[None]:
    """End the process on SIGTERM as on Ctrl-C, by an exception: files, locks and runs are closed.

    `on_signal` inside it takes both over where a stage can go on later. A second SIGTERM kills.
    """

    def handler(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before)
        # the thread of a pool whose workers got the signal too may fail on cancelled futures
        threading.excepthook = lambda _: None
        raise Interrupted(128 + number)

    hook = threading.excepthook
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        threading.excepthook = hook


def leave(code: int) -> NoReturn:
    """End the process now, even if a thread is in foreign code; exit handlers still run."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


@contextmanager
def not_heard() -> Iterator[None]:
    """Block Ctrl-C for the processes that this thread starts within it: their parent handles it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM, SIGUSR1 and SIGUSR2 into a `StopRequest`; a second one kills as usual.

    Slurm sends the latter two before it takes a machine away: a handler that they had before, such
    as submitit's, is called at the end. Outside the main thread no signal is caught.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    announced = (signal.SIGUSR1, signal.SIGUSR2)
    caught: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM, *announced)
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
        if request.signal in announced:
            earlier = before[request.signal]
            if callable(earlier):
                earlier(request.signal, None)
