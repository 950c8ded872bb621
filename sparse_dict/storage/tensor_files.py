"""safetensors files that are either whole or absent; checkpoints, which detect a later change."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from sparse_dict.errors import MALFORMED, Advised, UserError, one_line
from sparse_dict.storage import files, records
from sparse_dict.storage.untrusted import opened

Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")

RECORD, DIGEST = "record", "sha256"  # in a checkpoint's header
UNREADABLE = (SafetensorError, OSError, *MALFORMED)


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to `path` atomically."""
    files.write_bytes(path, save(_contiguous(arrays)))


def write_checkpoint(
    path: Path, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]
) -> None:
    """Replace the checkpoint at `path`: arrays, and a JSON-able record in the file's header."""
    whole = _contiguous(arrays)
    text = json.dumps(record)
    files.write_bytes(path, save(whole, {RECORD: text, DIGEST: _digest(whole, text)}))


def read(path: Path, recorded: str | None = None) -> Arrays:
    """The arrays of a file, whose SHA-256 is compared with the `recorded` one."""
    try:
        data = _whole(path)
        arrays = load(data)
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from None
    files.refuse_change(path, recorded, data)
    return arrays


def read_record(path: Path, kind: type[T]) -> T:
    """The record of a checkpoint, whose arrays are not read."""
    try:
        with _header(path) as file:
            return records.fitting(json.loads(file.metadata()[RECORD]), kind)
    except UNREADABLE as error:
        raise damaged(path, error) from None


def read_checkpoint(path: Path) -> Arrays:
    """The arrays of a checkpoint."""
    try:
        with _header(path) as file:
            header = file.metadata()
            text, digest = header[RECORD], header[DIGEST]
        arrays = load(_whole(path))
        if _digest(arrays, text) != digest:
            raise ValueError("it has changed since it was written")
    except UNREADABLE as error:
        raise damaged(path, error) from None
    return arrays


@contextmanager
def _header(path: Path) -> Iterator[Any]:
    """The opened file, whose header says how large it must be: that it is no larger is checked."""
    with opened(path), safe_open(path, framework="numpy") as file:
        yield file


def _whole(path: Path) -> bytes:
    """All of a file, if it is as large as its header says."""
    with _header(path):
        return path.read_bytes()


def damaged(path: Path, error: Exception) -> UserError:
    """The error to raise where reading a checkpoint has raised `error`."""
    reason = " ".join(one_line(error).split())
    return Advised(f"{path} is damaged ({reason}): delete it to start over")


def _contiguous(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _digest(arrays: Arrays, record: str) -> str:
    digest = hashlib.sha256(record.encode())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode())
        digest.update(arrays[name].reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
