"""The checks on everything that comes from elsewhere: the files of a study, a corpus, a cache.

Reading goes through `opened`: a regular file of a plausible size, never a pipe or a device, which
would wait or go on for ever. Folders that are written to pass `refuse_links`. What records hold is
checked by `checked`, once, where they are read.
"""

import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from sparse_dict.errors import UserError, lacking

MOST_BYTES = 2**28  # of a record, a document, a line: what is read in one piece
LFS = b"version https://git-lfs.github.com/spec/"  # begins what Git leaves in place of a large file


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Raises:
        UserError: it does not exist, is of another kind, may not be read, or is only Git's pointer
            to a file; or a read within fails.
    """
    try:
        # O_NONBLOCK: to open a pipe that nobody writes to would wait
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", closefd=True) as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{path} is a pipe, a socket or a device, not a file")
            if file.peek(len(LFS)).startswith(LFS):
                raise UserError(
                    f"{path} is a Git LFS pointer, not the file: git lfs pull fetches it"
                )
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise UserError(lacking(error) or f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        if "null" not in str(error):  # of a path; the rest is the reader's
            raise
        raise UserError(f"{path} is not the name of a file") from None


def read_bytes(path: Path, advice: str = "too large for such a file") -> bytes:
    """All of a file that is read in one piece.

    Raises:
        UserError: as `opened`, or it is larger than `MOST_BYTES`, which `advice` comments on.
    """
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES >> 20} MiB, {advice}")
        return file.read()


def visible(folder: Path, pattern: str) -> list[Path]:
    """What a shell's glob finds in `folder`, sorted: no hidden files."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def refuse_links(path: Path, study: Path | None = None) -> None:
    """See that what is written to `path`, or to a folder in it, stays inside the study.

    A study from elsewhere may link to anywhere. `study` is the folder above `path` by default;
    links that lead to it, such as ``outputs``, are the user's own.

    Raises:
        UserError: `path`, a folder between it and the study, or anything below it is a link out.
    """
    top = study if study is not None and study in path.parents else path.parent
    root = top.resolve()
    between = [p for p in (path, *path.parents) if top in p.parents]
    for folder, folders, names in os.walk(path):
        between += [Path(folder, name) for name in (*folders, *names)]
    for found in between:
        if found.is_symlink() and not found.resolve().is_relative_to(root):
            raise UserError(
                f"{found} is a link out of {top}, and what is written there would go elsewhere: "
                "remove it"
            )


# --- values of records ------------------------------------------------------------------------


Check = Callable[[Any], bool]


def count(value: Any) -> bool:
    """A whole number from 0 to 2^48."""
    return type(value) is int and 0 <= value < 1 << 48


def positive(value: Any) -> bool:
    """A whole number from 1 to 2^48."""
    return count(value) and value > 0


def whole(value: Any) -> bool:
    """A whole number of at most 64 bits."""
    return type(value) is int and -(1 << 63) <= value < 1 << 64


def number(value: Any) -> bool:
    """A number below 1e18."""
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e18


def amount(value: Any) -> bool:
    """A number from 0 to 1e18."""
    return number(value) and value >= 0


def text(value: Any) -> bool:
    """A line of text."""
    return isinstance(value, str) and value.isprintable()


def shown(value: Any) -> bool:
    """A truth value or a line of text without a $, which begins a formula in a figure."""
    return isinstance(value, bool) or (text(value) and "$" not in value)


def mapping(value: Any) -> bool:
    """A JSON object."""
    return isinstance(value, dict)


def listing(value: Any) -> bool:
    """A list of JSON objects."""
    return isinstance(value, list) and all(map(mapping, value))


def texts(value: Any) -> bool:
    """A JSON object of lines of text."""
    return isinstance(value, dict) and all(map(text, value)) and all(map(text, value.values()))


def checked(record: dict[str, Any], path: Path, values: Mapping[str, Check]) -> dict[str, Any]:
    """`record`, read from `path`, if its `values` are of the kind and in the range they must be.

    Keys are dotted, "" is the record; one that ends with ``?`` may be missing or null.

    Raises:
        UserError: the first value that is not.
    """
    for key, check in values.items():
        value: Any = record
        for part in filter(None, key.removesuffix("?").split(".")):
            value = value.get(part) if isinstance(value, dict) else None
        if not check(value) and not (value is None and key.endswith("?")):
            what = (check.__doc__ or "").rstrip(".").lower()
            there = "missing" if value is None else f"{value!r:.60}"
            raise UserError(f"{path} is malformed: {key.removesuffix('?')} is {there}, not {what}")
    return record
