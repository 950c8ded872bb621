"""The one error that ends a stage with a single line instead of a traceback."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ASKED = re.compile(r"allocate ([\d.]+) (\w+)")  # in numpy's and torch's messages
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}

# What wrong types and values in a record that was read from a file may raise.
MALFORMED = (
    KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


def printable(text: str) -> str:
    """`text` without control characters, which a terminal obeys: any file may hold some."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """Something the user can put right: the message is one line that says what and how."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def escape_logs() -> None:
    """Let no argument of a log record begin a line of its own or steer the terminal."""
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    """A log record whose arguments are `printable`; its format is ours."""

    def getMessage(self) -> str:
        if isinstance(self.args, tuple):
            self.args = tuple(
                printable(str(arg)) if isinstance(arg, str | Path | Exception) else arg
                for arg in self.args
            )
        return super().getMessage()


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's message as one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@contextmanager
def reading(path: Path, advice: str = "") -> Iterator[None]:
    """Say in one line that the record at `path` is malformed, and what to do.

    Raises:
        UserError: what is done with the record raises one of `MALFORMED`.
    """
    try:
        yield
    except MALFORMED as error:
        line = f"{path} is malformed ({malformed(error)})"
        raise UserError(f"{line}: {advice}" if advice else line) from None


def malformed(error: Exception) -> str:
    """What is wrong with a record, from the exception that reading it has met."""
    return f"it lacks {error}" if isinstance(error, KeyError) else one_line(error)


def with_class(error: BaseException) -> str:
    """An error's message as one line, with its class unless it is a `UserError`."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def explained(error: Exception) -> str | None:
    """One line for a full disk, a missing permission or a failing device; None for other errors.

    numpy and safetensors report a failed write in words of their own, without an error number.
    """
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
    if (
        number in _FULL
        or (isinstance(error, OSError) and text.endswith(" written"))
        or "No space left on device" in text
        or "File too large" in text
    ):
        return (
            f"{where}the disk is full or a quota is used up ({text}): what was finished is intact; "
            "make room, and the same command goes on from there"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"{where}too many files are open ({text}): raise the limit, such as ulimit -n 4096"
    if number == errno.ENAMETOOLONG:
        return f"{where}a name is too long for this file system"
    if number in _FORBIDDEN:
        return f"{where}no permission to write or read there ({text})"
    if number == errno.EIO:
        return f"{where}the disk or the network file system fails ({text})"
    return None


def memory(error: Exception) -> str | None:
    """How much memory could not be allocated; None if `error` is not about memory.

    torch is not imported: its own class of error is recognised by name, and on the CPU by text.
    """
    text = " ".join(str(error).split())
    if not (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or "can't allocate memory" in text
    ):
        return None
    asked = _ASKED.search(text)
    if asked is None:
        return "no more could be allocated"
    size, unit = asked.groups()
    amount = f"{float(size) / 2**30:,.1f} GiB" if unit == "bytes" else f"{size} {unit}"
    return f"{amount} could not be allocated"
