"""C that is compiled for this machine at its first use and called through ctypes."""

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparse_dict.errors import UserError
from sparse_dict.storage import cache as caches
from sparse_dict.storage import files

log = logging.getLogger(__name__)

EXACT = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]  # sums stay in order
LIBRARY = "library.so"
TYPES: dict[str, Any] = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "i": ctypes.c_int}
WITHOUT = "dense products by torch instead of compiled loops, slower"


class _Pointer:
    """Where the values of a tensor, an array of ctypes or a pointer lie; None is NULL."""

    @staticmethod
    def from_param(value: Any) -> Any:
        return ctypes.c_void_p.from_param(getattr(value, "data_ptr", lambda: value)())


@cache
def cpu() -> str:
    """The processor's features, which native code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@cache
def _compiler() -> list[str] | None:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    words = shlex.split(os.environ.get("CC", "")) or ([found] if found else None)
    if words is None:
        log.warning("no C compiler: %s", WITHOUT)
    return words


def library(source: Path, flags: Sequence[str], **functions: str) -> ctypes.CDLL | None:
    """The shared library made of `source`, from the user's cache if it was made before.

    None, with one warning, where there is no C compiler or it fails. Callers keep the result.
    `functions` are typed by letters of `TYPES`, such as ``ppn>i``: two pointers, a number, an int.
    """
    compiler = _compiler()
    if compiler is None:
        return None
    command = [*compiler, *flags, "-march=native", "-shared", "-fPIC"]
    folders = dict.fromkeys([source.parent, Path(__file__).parent])
    headers = [path for folder in folders for path in sorted(folder.glob("*.h"))]
    texts = [path.read_bytes() for path in (source, *headers)]
    told = b"\0".join([*texts, " ".join(command).encode(), cpu().encode()])
    key = hashlib.sha256(told).hexdigest()[:16]

    def make(folder: Path) -> None:
        with files.replacing(folder / LIBRARY) as temporary:
            subprocess.run(
                [*command, str(source), "-o", str(temporary), "-lm"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip

    try:
        with ExitStack() as stack:  # a loaded library needs no file
            place = _cache() or stack.enter_context(TemporaryDirectory(prefix="sparse-dict-"))
            found = _loaded(Path(place) / f"{source.stem}-{key}", make)
            for name, types in functions.items():
                given, _, result = types.partition(">")
                function = getattr(found, name)
                function.argtypes = [_Pointer if i == "p" else TYPES[i] for i in given]
                function.restype = TYPES.get(result)
            return found
    except (OSError, UserError) as error:
        reason = str(error)
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[0]
    log.warning("the C compiler failed (%s): %s", reason, WITHOUT)
    return None


def _loaded(folder: Path, make: Callable[[Path], None]) -> ctypes.CDLL:
    """The library in `folder`, made anew unless it is what this user has compiled.

    One that is cut short would end the process without a message.
    """
    if folder.exists() and folder.stat().st_uid != os.geteuid():
        shutil.rmtree(folder)
    try:
        caches.ensure_sealed(folder, make)
    except UserError:
        shutil.rmtree(folder)
        caches.ensure_sealed(folder, make)
    return ctypes.CDLL(str(folder / LIBRARY))


def _cache() -> Path | None:
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))  # ignored if relative, as its standard says
    folder = (named if named.is_absolute() else Path.home() / ".cache") / "sparse-dict"
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
        state = folder.stat()
    except OSError:
        return None
    own = state.st_uid == os.geteuid() and not state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if own and os.access(folder, os.W_OK | os.X_OK) else None
