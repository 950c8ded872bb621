"""C that is compiled for this machine at its first use and called through ctypes."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

EXACT = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]  # sums stay in order


def _cpu() -> str:
    """What tells machines apart whose native code may differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@cache
def _compiler() -> str | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    compiler = compiler or shutil.which("clang")
    if sys.platform == "win32" or compiler is None:
        log.warning("no C compiler: dense products by torch instead of compiled loops, slower")
        return None
    return compiler


def library(source: Path, flags: Sequence[str]) -> ctypes.CDLL | None:
    """The shared library made of `source`, from the user's cache if it was made before.

    None, told once, where there is no C compiler or it fails. Callers keep the result.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    command = [compiler, *flags, "-march=native", "-shared", "-fPIC"]
    texts = [path.read_bytes() for path in [source, *sorted(source.parent.glob("*.h"))]]
    key = hashlib.sha256(
        b"\0".join([*texts, " ".join(command).encode(), _cpu().encode()])
    ).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparse-dict"
    made = folder / f"{source.stem}-{key}.so"
    if not made.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            made = Path(tempfile.mkdtemp(prefix="sparse-dict-")) / made.name
        temporary = made.with_suffix(f".{os.getpid()}.tmp")
        command += [str(source), "-o", str(temporary), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[0]
            log.warning("the C compiler failed (%s): dense products by torch instead", reason)
            return None
        temporary.replace(made)
    return ctypes.CDLL(str(made))
