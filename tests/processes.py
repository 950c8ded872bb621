"""Commands in processes of their own."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = {**os.environ, "PYTHONPATH": str(ROOT)}


def finished(
    command: Sequence[str], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a folder, by default in the environment of the tests."""
    return subprocess.run(
        command, cwd=cwd, env=env or HERE, capture_output=True, text=True, timeout=100
    )
