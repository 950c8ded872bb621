"""Compiles `kernel.c` once per machine and width, and mirrors its structs."""

import ctypes
from functools import cache
from pathlib import Path

from sparse_dict.machine import compiled

SOURCE = Path(__file__).with_name("kernel.c")
LANES = 16  # the width is padded to a multiple of this


class DictionaryStruct(ctypes.Structure):
    """`struct dictionary` of `dictionary.h`."""

    POINTERS = (
        "W_enc", "W_dec", "b", "m_enc", "v_enc", "m_dec", "v_dec", "m_b", "v_b",
        "b_dec", "m_b_dec", "v_b_dec",
        "log_threshold", "m_threshold", "v_threshold", "batch_floor", "last_fired", "sums",
        "G_enc", "G_dec", "G_b", "G_threshold",
    )  # fmt: skip
    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_int64) for name in ("size", "k", "together")),
        *((name, ctypes.c_float) for name in ("band", "floor_pace")),
        *((name, ctypes.c_int32) for name in ("bf16", "project", "aligned")),
    )


class NumbersStruct(ctypes.Structure):
    """`struct numbers` of `dictionary.h`."""

    _fields_ = (
        *(
            (name, ctypes.c_float)
            for name in ("rate", "beta1", "beta2", "root", "eps", "scale", "penalty", "l0")
        ),
        ("added", ctypes.c_int32),
    )


def padded(width: int) -> int:
    """`width` rounded up to what the kernel takes."""
    return -(-width // LANES) * LANES


@cache
def load(width: int) -> ctypes.CDLL | None:
    """The kernel for rows of at most `width` columns; None where there is no C compiler."""
    flags = [*compiled.EXACT, "-pthread", f"-DD={padded(width)}"]
    functions = {"step_open": "pni>p", "step_run": "ppnpppnn>i", "step_close": "p"}
    return compiled.library(SOURCE, flags, **functions)
