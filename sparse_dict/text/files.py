"""Local text: txt (a document a file), jsonl and parquet (a document a row)."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_dict.config import FilesData
from sparse_dict.errors import UserError, one_line
from sparse_dict.storage.files import sha256_file

SUFFIXES = (".txt", ".jsonl", ".parquet")
BATCH_ROWS = 512


def check(data: FilesData) -> None:
    """Quick test: the files exist, have a known suffix, and their first line or schema fits.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    for path in paths(data):
        if path.suffix.lower() == ".parquet":
            _open_parquet(path, data.text_column)
        elif path.suffix.lower() == ".jsonl":
            next(read_jsonl(path, data.text_column), None)


def describe(data: FilesData) -> dict[str, Any]:
    """Names, sizes and hashes of the files; where they lie does not matter."""
    listed = [{"name": path.name, **_contents(path)} for path in paths(data)]
    return {"kind": "files", "files": listed, "text_column": data.text_column}


def documents(data: FilesData, _cache_dir: Path) -> Iterator[str]:
    """The documents, file by file in the given order, a glob's matches sorted.

    Raises:
        UserError: a file is missing, unreadable, not UTF-8, or lacks the text column.
    """
    for path in paths(data):
        match path.suffix.lower():
            case ".txt":
                yield _read_txt(path)
            case ".jsonl":
                yield from read_jsonl(path, data.text_column)
            case ".parquet":
                yield from _read_parquet(path, data.text_column)


def paths(data: FilesData) -> list[Path]:
    """The files that `data.files` means, each once.

    Raises:
        UserError: none are given, one is missing or no text file, or a glob matches nothing.
    """
    given = data.files if isinstance(data.files, list) else [data.files]
    if not given or not all(isinstance(item, str) and item for item in given):
        raise UserError(f"data.files must be a path or glob, or a list of them, not {data.files!r}")
    found: dict[Path, Path] = {}
    for item in given:
        for path in _expand(item):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def read_jsonl(path: Path, column: str) -> Iterator[str]:
    """The strings under `column`, a line each; blank lines and nulls are passed over.

    Raises:
        UserError: names the line that is not UTF-8, not a JSON object, or lacks the key.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
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
                if column not in row:
                    raise UserError(f"{where}: {no_column(column, row)}")
                text = row[column]
                if text is None:
                    continue
                if not isinstance(text, str):
                    raise UserError(f"{where}: {column} is {type(text).__name__}, not text")
                yield text
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def no_column(wanted: str, present: Any) -> str:
    """The message for a missing text column, naming those that are there."""
    there = ", ".join(map(str, present)) or "none"
    return f"no column {wanted!r}; there are {there} (data.text_column)"


def _expand(item: str) -> list[Path]:
    path = Path(item).expanduser()
    if path.is_dir():
        raise UserError(f"data.files: {item} is a folder; give files or a glob, e.g. {item}/*.txt")
    if path.exists():
        matches = [path]
    elif any(sign in item for sign in "*?["):
        root = Path(path.anchor)
        pattern = str(path.relative_to(root))
        try:
            matches = sorted(match for match in root.glob(pattern) if match.is_file())
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"data.files: {item} is not a usable glob: {error}") from None
        if not matches:
            raise UserError(f"data.files: nothing matches {item}")
    else:
        raise UserError(f"data.files: {item} does not exist")
    for match in matches:
        if match.suffix.lower() not in SUFFIXES:
            raise UserError(f"data.files: {match} is none of {', '.join(SUFFIXES)}")
    return matches


def _contents(path: Path) -> dict[str, Any]:
    try:
        state = path.stat()
        return {"bytes": state.st_size, "sha256": _sha256(path, state.st_size, state.st_mtime_ns)}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@functools.cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    # A stage describes its corpus several times; size and time tell whether the file is the same.
    return sha256_file(path)


def _read_txt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _open_parquet(path: Path, column: str) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    try:
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {one_line(error)}") from None
    if column not in schema.names:
        raise UserError(f"{path}: {no_column(column, schema.names)}")
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise UserError(f"{path}: column {column!r} holds {kind}, not text (data.text_column)")
    return file


def _read_parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow as pa

    file = _open_parquet(path, column)
    try:
        for batch in file.iter_batches(BATCH_ROWS, columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except UnicodeDecodeError:
        raise UserError(f"{path}: column {column!r} is not UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read as parquet: {one_line(error)}") from None
