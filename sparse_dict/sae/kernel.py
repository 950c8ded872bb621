"""Compiles `kernel.c` once per machine and width, and calls it."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("kernel.c")
LANES = 16  # the width is padded to a multiple of this

# Reassociation is what lets sums be vectorised. Not -ffast-math: it would assume that no value is
# ever NaN, and we must notice one, and linking with it switches denormals off in all of Python.
FLAGS = [
    "-O3", "-march=native", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math",
    "-fno-math-errno", "-freciprocal-math", "-ffp-contract=fast", "-shared", "-fPIC",
]  # fmt: skip

_FLOATS: Any = ctypes.c_void_p
_INT: Any = ctypes.c_int64
_FLOAT: Any = ctypes.c_float


def padded(width: int) -> int:
    """`width` rounded up to what the kernel takes."""
    return -(-width // LANES) * LANES


def _cpu() -> str:
    """What tells machines apart whose native code may differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


@cache
def load(width: int) -> ctypes.CDLL | None:
    """The kernel for padded `width`, or None where no C compiler is found (told once)."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    compiler = compiler or shutil.which("clang")
    if sys.platform == "win32" or compiler is None:
        log.warning("no C compiler: dictionaries train with dense products, which is slower")
        return None
    source = SOURCE.read_bytes()
    key = hashlib.sha256(
        b"\0".join([source, " ".join([compiler, *FLAGS, str(width)]).encode(), _cpu().encode()])
    ).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sparse-dict"
    library = folder / f"kernel-{key}.so"
    if not library.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            library = Path(tempfile.mkdtemp(prefix="sparse-dict-")) / library.name
        temporary = library.with_suffix(f".{os.getpid()}.tmp")
        command = [compiler, *FLAGS, f"-DD={width}", str(SOURCE), "-o", str(temporary), "-lm"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            reason = (result.stderr.strip().splitlines() or ["no message"])[0]
            log.warning("the C compiler failed (%s): training with dense products instead", reason)
            return None
        temporary.replace(library)
    kernel = ctypes.CDLL(str(library))
    kernel.start_residual.argtypes = [_FLOATS, _INT, _FLOATS]
    kernel.start_residual.restype = None
    kernel.row_floors.argtypes = [_FLOATS] * 2 + [_INT] * 3 + [_FLOATS] * 2
    kernel.row_floors.restype = None
    kernel.encode_block.argtypes = [_FLOATS] * 6 + [_FLOAT, _FLOATS] + [_INT] * 3 + [_FLOATS] * 7
    kernel.encode_block.restype = _INT
    kernel.squared_error.argtypes = [_FLOATS, _INT]
    kernel.squared_error.restype = ctypes.c_double
    kernel.backward.argtypes = [_FLOATS] * 7 + [_INT] + [_FLOAT] * 4 + [_FLOATS] * 4
    kernel.backward.restype = None
    kernel.optimise_vector.argtypes = [_INT] + [_FLOATS] * 4 + [_FLOAT] * 6
    kernel.optimise_vector.restype = None
    kernel.optimise.argtypes = (
        [_INT] + [_FLOATS] * 6 + [_INT] * 2 + [_FLOATS] * 6 + [ctypes.c_int32] + [_FLOAT] * 6
    )
    kernel.optimise.restype = None
    return kernel
