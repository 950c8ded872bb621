"""Arrays of numbers in ``.npy`` files, memory-mapped, and several of them read as one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.errors import UserError, explained, one_line


def mapped(
    path: Path, dtype: np.dtype[Any] | None = None, shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """Map a ``.npy`` file of numbers; nothing else, be it a zip archive or pickled objects.

    Raises:
        UserError: the file is missing, may not be read, or is truncated; or it does not hold
            `dtype` and `shape`, if these are given.
    """
    try:
        # Copy-on-write rather than read-only: torch warns about arrays that it must not write to.
        array = np.lib.format.open_memmap(path, mode="c")
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except Exception as error:  # a malformed header may raise nearly anything
        line = explained(error) if isinstance(error, OSError) else None
        why = f"{path} is truncated or no array of numbers: {one_line(error)}"
        raise UserError(line or why) from None
    if dtype is not None and (array.dtype != dtype or array.shape != shape):
        raise UserError(f"{path} is {array.dtype} {array.shape}, its manifest says {dtype} {shape}")
    return array


class Joined:
    """The rows of several arrays, one array after the other.

    Attributes:
        starts: the first row of each array and, last, rows in all, int64 (arrays + 1,).
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pieces(self, start: int, stop: int) -> Iterator[tuple[NDArray[Any], slice]]:
        """The parts of arrays that rows start..stop-1 are made of, and where among these each is.

        Raises:
            IndexError: there are no such rows.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of {len(self)}")
        i = int(np.searchsorted(self.starts, start, side="right")) - 1
        done = 0
        while done < stop - start:
            part = self.arrays[i][start + done - int(self.starts[i]) :][: stop - start - done]
            yield part, slice(done, done + len(part))
            done += len(part)
            i += 1


def count(record: Mapping[str, Any], key: str, least: int = 0) -> int:
    """A whole number of a manifest.

    Raises:
        KeyError, ValueError: it is not there, or not a number of at least `least`.
    """
    value = record[key]
    if type(value) is not int or value < least:
        raise ValueError(f"{key} is {value!r}")
    return value


def file_name(name: Any, pattern: str = r"[\w-]+\.npy") -> str:
    """The name of a file beside a manifest.

    Raises:
        ValueError: it is not like `pattern`, which matches nothing that leads elsewhere.
    """
    if not isinstance(name, str) or not re.fullmatch(pattern, name, re.ASCII):
        raise ValueError(f"{name!r} is no name of an .npy file beside it")
    return name
