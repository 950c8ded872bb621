"""What all tests share: one thread a process, signals as a terminal gives them, no leftovers."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from sparse_dict.machine import compiled, runtime

# Hypothesis would fail an example that takes longer than 200 ms: a busy machine is no fault.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
# Two busy two-thread processes on two cores crawl.
os.environ.setdefault("OMP_NUM_THREADS", "1")
runtime.steady_products()  # as a training does; the first product of a process decides
# A shell's background jobs ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_script_outlives_its_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kill the scripts that a failing test has left: some of them would run for hours."""
    scripts = []
    init = subprocess.Popen.__init__

    def remember(process: Any, arguments: Any, *more: Any, **options: Any) -> None:
        init(process, arguments, *more, **options)
        if isinstance(arguments, list) and any(
            Path(str(a)).parent == ROOT and str(a).endswith(".py") for a in arguments
        ):
            scripts.append(process)

    monkeypatch.setattr(subprocess.Popen, "__init__", remember)
    yield
    for process in scripts:
        if process.poll() is None:
            process.kill()
            process.communicate()


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Let torch compute with `n` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def stopped_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let each training of dictionaries make one step, as if SIGTERM came then."""
    from sparse_dict.sae import ensemble

    class StopsAtOnce(ensemble.interrupt.StopRequest):
        def __init__(self) -> None:
            self.signal = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(ensemble.interrupt, "StopRequest", StopsAtOnce)
        yield


@pytest.fixture(autouse=True)
def _the_compiled_step_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that make a compiled step are skipped where there is none; training does without."""
    if compiled._compiler() is None:
        from sparse_dict.sae.step_cpu import SparseStep

        def skip(*_args: object, **_kwargs: object) -> None:
            pytest.skip("needs a C compiler")

        monkeypatch.setattr(SparseStep, "__init__", skip)
