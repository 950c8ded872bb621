"""Local text: txt (a document a file), jsonl and parquet (a document a row)."""

import functools
import glob
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparse_dict.config import FilesData
from sparse_dict.errors import UserError, one_line
from sparse_dict.storage.files import sha256_file
from sparse_dict.storage.untrusted import opened, read_bytes

SUFFIXES = (".txt", ".jsonl", ".parquet")
BATCH_ROWS = 512
CUT = "too much for one document: cut it into several"


def check(data: FilesData) -> None:
    """Quick test: the files exist, have a known suffix, and their first documents can be read."""
    for path in paths(data):
        next(_documents(path, data.text_column), None)


def refuse_one_document(data: FilesData) -> None:
    """Refuse a single ``.txt``: there must be documents both to train on and to validate on."""
    (first, *others) = paths(data)
    if not others and first.suffix.lower() == ".txt":
        raise UserError(f"data.files: {first} is one document: give several, some to be held out")


def describe(data: FilesData, _cache_dir: Path) -> dict[str, Any]:
    """Names, sizes and hashes of the files; where they lie does not matter."""
    listed = [{"name": path.name, **_contents(path)} for path in paths(data)]
    return {"kind": "files", "files": listed, "text_column": data.text_column}


def documents(data: FilesData, _cache_dir: Path) -> Iterator[str]:
    """The documents, file by file in the given order, a glob's matches sorted."""
    for path in paths(data):
        yield from _documents(path, data.text_column)


def _documents(path: Path, column: str) -> Iterator[str]:
    match path.suffix.lower():
        case ".txt":
            try:
                text = read_bytes(path, CUT).decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise UserError(f"{path} is not UTF-8 (byte {error.start})") from None
            yield text.replace("\r\n", "\n").replace("\r", "\n")
        case ".jsonl":
            yield from read_jsonl(path, column)
        case ".parquet":
            yield from _read_parquet(path, column)


def paths(data: FilesData) -> list[Path]:
    """The files that `data.files` means, each once."""
    given = data.files if isinstance(data.files, list) else [data.files]
    if not given or not all(isinstance(item, str) and item for item in given):
        raise UserError(f"data.files must be a path or glob, or a list of them, not {data.files!r}")
    found: dict[Path, Path] = {}
    for item in given:
        for path in _expand(item):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    """The strings under `column`, a line each; blank lines and nulls are passed over."""
    with opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                raise UserError(f"{where}: not UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: not valid JSON ({error})") from None
            if not isinstance(row, dict):
                raise UserError(f"{where}: {type(row).__name__}, not a JSON object")
            if (text := text_of(row, column, where)) is not None:
                yield text


def text_of(row: Mapping[str, Any], column: str, where: str) -> str | None:
    """The text in a row of data, None if it is empty; a complaint begins with `where`."""
    if column not in row:
        raise UserError(f"{where}: {no_column(column, row)}")
    text = row[column]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {column} is {type(text).__name__}, not text")
    return text


def no_column(wanted: str, present: Any) -> str:
    """The message for a missing text column, naming those that are there."""
    there = ", ".join(map(str, present)) or "none"
    return f"no column {wanted!r}; the columns are {there} (data.text_column)"


def _expand(item: str) -> list[Path]:
    path = Path(item).expanduser()
    if path.is_dir():
        raise UserError(f"data.files: {item} is a folder; give files or a glob, e.g. {item}/*.txt")
    if path.exists():
        matches = [path]
    elif any(sign in item for sign in "*?["):
        # like a shell and unlike pathlib, it passes over hidden files and folders
        found = glob.glob(str(path), recursive=True)  # noqa: PTH207
        matches = sorted(match for match in map(Path, found) if match.is_file())
        if not matches:
            raise UserError(f"data.files: nothing matches {item}")
    else:
        raise UserError(f"data.files: {item} does not exist")
    for match in matches:
        if match.suffix.lower() not in SUFFIXES:
            raise UserError(f"data.files: {match} is none of {', '.join(SUFFIXES)}")
    return matches


def _contents(path: Path) -> dict[str, Any]:
    with opened(path) as file:
        state = os.fstat(file.fileno())
    same = (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)
    return {"bytes": state.st_size, "sha256": _sha256(path, same)}


@functools.cache
def _sha256(path: Path, _state: tuple[int, ...]) -> str:
    # A stage describes its corpus several times. The file is the same if its state is: the time of
    # the last change, unlike that of the last writing, cannot be set.
    return sha256_file(path)


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path):
            file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if (n := names.count(column)) != 1:
            what = f"{n} columns have the name {column!r}" if n else no_column(column, names)
            raise UserError(f"{path}: {what}")
        kind = file.schema_arrow.field(column).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if str(kind) not in ("string", "large_string", "string_view"):
            raise UserError(f"{path}: column {column!r} holds {kind}, not text (data.text_column)")
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            for value in batch.column(0):
                if (text := value.as_py()) is not None:
                    yield text
    except UnicodeDecodeError:
        raise UserError(f"{path}: column {column!r} is not UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {one_line(error)}") from None
