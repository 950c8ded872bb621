"""Files that are either whole or absent: atomic writes, strict JSON, tables, hashes."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_dict.errors import UserError
from sparse_dict.storage import untrusted

SEAL = "fingerprint"  # of a record, within it


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it is synced and renamed to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # it might be a link to somewhere else
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinity become errors."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a table atomically; its columns are the keys of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_json(path: Path, recorded: str | None = None) -> dict[str, Any]:
    """Read a JSON object from a file, whose SHA-256 is compared with the `recorded` one."""
    data = untrusted.read_bytes(path)
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, not a JSON object")
    refuse_change(path, recorded, data)
    return value


def refuse_change(path: Path, recorded: str | None, data: bytes | None = None) -> None:
    """See that a file, or what was read from it, has the SHA-256 that was `recorded`, if any."""
    found = sha256_file(path) if data is None else hashlib.sha256(data).hexdigest()
    if recorded not in (None, found):
        raise UserError(f"{path} has changed since it was written")


def sha256_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of those of the named files of `folder` that are there."""
    there = [name for name in names if (folder / name).exists()]
    return {name: sha256_file(folder / name) for name in there}


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with untrusted.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """Sixteen hexadecimal digits that identify a JSON-able value, whatever its key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """A record with its own fingerprint in it, by which `is_sealed` detects a later change."""
    return record | {SEAL: fingerprint(record)}


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record is unchanged since `sealed`; True for older ones, which have no seal."""
    rest = {key: value for key, value in record.items() if key != SEAL}
    return record.get(SEAL) in (None, fingerprint(rest))
