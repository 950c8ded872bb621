"""C that is compiled for this machine at its first use and called through ctypes."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

EXACT = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]  # sums stay in order
WITHOUT = "dense products by torch instead of compiled loops, slower"


def _cpu() -> str:
    """The processor's features, which native code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@cache
def _compiler() -> list[str] | None:
    """The words of the command that compiles: ``CC`` may hold several, such as ``ccache gcc``."""
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    try:
        words = shlex.split(os.environ.get("CC", "")) or ([found] if found else [])
    except ValueError as error:
        log.warning("CC cannot be read (%s): %s", error, WITHOUT)
        return None
    if not words:
        log.warning("no C compiler: %s", WITHOUT)
        return None
    return words


def library(source: Path, flags: Sequence[str]) -> ctypes.CDLL | None:
    """The shared library made of `source`, from the user's cache if it was made before.

    None, with one warning, where there is no C compiler or it fails. Callers keep the result.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    command = [*compiler, *flags, "-march=native", "-shared", "-fPIC"]
    texts = [path.read_bytes() for path in [source, *sorted(source.parent.glob("*.h"))]]
    key = hashlib.sha256(
        b"\0".join([*texts, " ".join(command).encode(), _cpu().encode()])
    ).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparse-dict"
    made = folder / f"{source.stem}-{key}.so"
    with suppress(OSError):  # not there, or damaged
        return ctypes.CDLL(str(made))
    try:
        with _writable(folder) as place:
            return _built(command, source, place / made.name)
    except OSError as error:
        reason = str(error)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[0]
    log.warning("the C compiler failed (%s): %s", reason, WITHOUT)
    return None


def _built(command: list[str], source: Path, made: Path) -> ctypes.CDLL:
    """Compile `source` to `made` and load it.

    Raises:
        CalledProcessError: it does not compile.
        OSError: there is no such compiler, or what it made cannot be kept or loaded.
    """
    temporary = made.with_suffix(f".{os.getpid()}.tmp")
    try:
        subprocess.run(
            [*command, str(source), "-o", str(temporary), "-lm"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        temporary.replace(made)
    finally:
        temporary.unlink(missing_ok=True)
    return ctypes.CDLL(str(made))


@contextmanager
def _writable(folder: Path) -> Iterator[Path]:
    """`folder`, or a temporary one if it is not writable: a loaded library needs no file."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sparse-dict-") as temporary:
        yield Path(temporary)
