"""Commands in processes of their own."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


def finished(
    command: Sequence[str], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder, by default in the environment of the tests."""
    return subprocess.run(
        command, cwd=cwd, env=env or HERE, capture_output=True, text=True, timeout=100
    )


def started(
    command: Sequence[str], cwd: Path, env: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """The same, to be waited for; `options` are those of `subprocess.Popen`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=cwd, env=env or HERE, text=True, **pipes | options)


def said(process: subprocess.Popen[str], timeout: float = 100) -> str:
    """All that a process writes until its end."""
    return "".join(text or "" for text in process.communicate(timeout=timeout))


def signalled(process: subprocess.Popen[str], number: int) -> str:
    """What a script says that gets a signal: it has ten seconds, and ends as it should."""
    process.send_signal(number)
    output = said(process, 10)
    assert process.returncode == 128 + number, output
    assert "run the same command to resume" in output
    assert "Traceback" not in output
    return output


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Wait until something has happened, which a process does."""
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, said(process)
        time.sleep(0.01)
    raise AssertionError("waited in vain")
