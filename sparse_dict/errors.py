"""The one error that ends a stage with a single line instead of a traceback."""

import errno
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What the machine lacks, by the error number; {} is what the system says.
_LACKS = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "the disk is full or a quota is used up ({}): what was finished is intact; "
        "make room, and the same command goes on from there",
    ),
    **dict.fromkeys(
        (errno.EMFILE, errno.ENFILE),
        "too many files are open ({}): raise the limit, such as ulimit -n 4096",
    ),
    **dict.fromkeys(
        (errno.EACCES, errno.EPERM, errno.EROFS), "no permission to write or read there ({})"
    ),
    errno.ENAMETOOLONG: "a name is too long for this file system",
    errno.EIO: "the disk or the network file system fails ({})",
}
# numpy and safetensors report a failed write in words of their own, without an error number.
_FULL = re.compile(r"No space left on device|File too large| written$")
_ASKED = re.compile(r"allocate ([\d.]+) (\w+)")  # in numpy's and torch's messages

MOST = 2000  # characters of a line
SECRET = 8  # characters, at least

# What wrong types and values in a record that was read from a file may raise.
MALFORMED = (
    KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip


_hidden: set[str] = set()


def hide(secret: str) -> None:
    """Let no line of this process show a secret; a word as short as EMPTY is none."""
    if len(secret) >= SECRET:
        _hidden.add(secret)


def masked(text: str) -> str:
    """`text` without secrets."""
    for secret in _hidden:
        text = text.replace(secret, "***")
    return text


def printable(text: str) -> str:
    """`text` without control characters, which a terminal obeys, and not longer than a screen."""
    text = masked(text)  # before the cut, which might leave half of a secret
    if len(text) > MOST:
        text = f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class UserError(Exception):
    """Something the user can put right: the message is one line that says what and how."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Advised(UserError):
    """An error about a file that says all there is to do, such as that nothing is wrong with it."""


class DamagedOutput(UserError):
    """What a job has made before cannot be read: it cannot go on, but others can."""


def escape_logs() -> None:
    """Let no argument of a log record begin a line of its own or steer the terminal."""
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        if isinstance(self.args, tuple):
            self.args = tuple(
                printable(str(arg)) if isinstance(arg, str | Path | Exception) else arg
                for arg in self.args
            )
        return masked(super().getMessage())


def one_line(error: BaseException, limit: int = 300, *, named: bool = False) -> str:
    """An exception as one line of at most `limit` characters, with its class if `named`."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, Exception) and (lack := lacking(error)):
        return lack
    text = " ".join(str(error).split())
    if named:
        text = f"{type(error).__name__}: {text}"
    elif isinstance(error, KeyError):
        text = f"it lacks {text}"
    text = text or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line that the record at `path` is malformed."""
    try:
        yield
    except MALFORMED as error:
        raise UserError(f"{path} is malformed ({one_line(error)})") from None


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Say of a file that is damaged what to do, unless that is said."""
    try:
        yield
    except Advised:
        raise
    except UserError as error:
        raise Advised(f"{error}: {advice}") from None


def lacking(error: Exception, lower: str | None = None) -> str | None:
    """One line for a full disk, a missing permission, a failing device, too little memory, or None.

    `lower` is what would need less memory. torch, which is not imported, is known by name and text.
    """
    text = " ".join(str(error).split())
    number = error.errno if isinstance(error, OSError) else None
    if _FULL.search(text):
        number = errno.ENOSPC
    if number in _LACKS:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        return where + _LACKS[number].format(text)
    if not (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or number == errno.ENOMEM
        or "can't allocate memory" in text
    ):
        return None
    amount = "no more could"
    if asked := _ASKED.search(text):
        size, unit = asked.groups()
        amount = f"{float(size) / 2**30:,.1f} GiB" if unit == "bytes" else f"{size} {unit}"
        amount += " could not"
    return f"out of memory ({amount} be allocated)" + (f": lower {lower}" if lower else "")
