"""Arrays of numbers in ``.npy`` files, and several of them read as one."""

import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparse_dict.annotations import Tensor
from sparse_dict.errors import UserError, one_line
from sparse_dict.storage.untrusted import opened

Rows = NDArray[np.floating[Any]] | Tensor  # what public functions take


def as_rows(values: Any, what: str, width: int | None = None, dtype: Any = np.float32) -> Any:
    """Rows (n, width) of numpy or torch as an array of `dtype` that may be written to."""
    if hasattr(values, "detach"):  # torch
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    array = np.asarray(values)
    if array.ndim != 2 or width not in (None, array.shape[1]):
        wanted = "(rows, columns)" if width is None else f"(rows, {width})"
        raise UserError(f"{what} must be of the shape {wanted}, not {array.shape}")
    if array.dtype.kind != "f":
        raise UserError(f"{what} must be floating-point numbers, not {array.dtype}")
    return array.astype(dtype, copy=not array.flags.writeable)  # which torch warns of


class Stored:
    """The rows of a ``.npy`` file of numbers, of its `shape` and `dtype`, read when asked for.

    It is not memory-mapped: a mapped file that is cut short ends the process without a message, and
    each mapping holds one of the few files that a process may have open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with opened(path) as file:
            try:
                version = np.lib.format.read_magic(file)
                # versions 2 and 3 differ in names of columns alone
                reader = f"read_array_header_{min(version[0], 2)}_0"
                self.shape, self._fortran, self.dtype = getattr(np.lib.format, reader)(file)
                if any(type(n) is not int or n < 0 for n in self.shape) or self.dtype.hasobject:
                    raise ValueError(f"it holds {self.dtype} {self.shape}")
                self._row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
                self._offset = file.tell()
                size = self._offset + self.shape[0] * self._row_bytes
                if (there := file.seek(0, io.SEEK_END)) < size:
                    raise ValueError(f"it has {there} of {size} bytes")
            except UserError:
                raise
            except Exception as error:  # a malformed header may raise nearly anything
                why = f"{path} is truncated or not an array of numbers: {one_line(error)}"
                raise UserError(why) from None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        start, stop, _ = rows.indices(len(self))
        n = max(stop - start, 0)
        order: Literal["C", "F"] = "F" if self._fortran else "C"
        out = np.empty((n, *self.shape[1:]), self.dtype, order)
        # in Fortran's order each column is a piece of its own
        pieces = out.reshape(n, -1, order="F").T if self._fortran else [out]
        step = self.dtype.itemsize if self._fortran else self._row_bytes
        with opened(self.path) as file:
            for i, piece in enumerate(pieces):
                file.seek(self._offset + (i * len(self) + start) * step)
                if file.readinto(piece.reshape(-1).view(np.uint8).data) < piece.nbytes:
                    raise UserError(f"{self.path} was cut short while it was read")
        return out


def stored(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Stored:
    """The array at `path`, which must be `dtype` and `shape`."""
    array = Stored(path)
    if array.dtype != dtype or array.shape != shape:
        raise UserError(f"{path} is {array.dtype} {array.shape}, its manifest says {dtype} {shape}")
    return array


class Joined:
    """The rows of several arrays, one array after the other."""

    def __init__(self, arrays: Sequence[NDArray[Any] | Stored]) -> None:
        self.arrays = arrays
        # the first row of each and, last, rows in all
        self.starts = np.cumsum([0, *map(len, arrays)], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def pieces(self, start: int, stop: int) -> Iterator[tuple[NDArray[Any], slice]]:
        """The parts of arrays that rows start..stop-1 are made of, and where in these each lies."""
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"rows {start}..{stop} of {len(self)}")
        i = int(np.searchsorted(self.starts, start, side="right")) - 1
        done = 0
        while done < stop - start:
            first = start + done - int(self.starts[i])
            n = min(len(self.arrays[i]) - first, stop - start - done)
            if n:
                yield self.arrays[i][first : first + n], slice(done, done + n)
            done += n
            i += 1
