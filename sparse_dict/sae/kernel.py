"""Compiles `kernel.c` once per machine and width, and calls it."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from sparse_dict.machine import compiled

SOURCE = Path(__file__).with_name("kernel.c")
LANES = 16  # the width is padded to a multiple of this

# Reassociation is what lets sums be vectorised. Not -ffast-math: it would assume that no value is
# ever NaN, and we must notice one, and linking with it switches denormals off in all of Python.
FLAGS = [
    "-O3", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math",
    "-fno-math-errno", "-freciprocal-math", "-ffp-contract=fast",
]  # fmt: skip

_FLOATS: Any = ctypes.c_void_p
_INT: Any = ctypes.c_int64
_FLOAT: Any = ctypes.c_float


def padded(width: int) -> int:
    """`width` rounded up to what the kernel takes."""
    return -(-width // LANES) * LANES


@cache
def load(width: int) -> ctypes.CDLL | None:
    """The kernel for padded `width`, or None where there is no C compiler."""
    kernel = compiled.library(SOURCE, [*FLAGS, f"-DD={width}"])
    if kernel is None:
        return None
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
