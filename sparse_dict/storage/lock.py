"""One process at a time in an output folder: an advisory lock that the kernel releases.

The lock is on the file ``.lock``, which names its holder and is removed at the end. Where a killed
process left it behind, nobody holds it and the next process takes it over. A forked child inherits
the lock and keeps it until it ends, which is right: it may still be writing.

Network file systems: on NFS, Linux maps the lock to one that the server keeps, so that it holds
between machines, unless the mount says ``local_lock=flock``; Lustre needs the mount option
``flock``. Where the file system knows no locks, a warning is all that can be given.
"""

import atexit
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sparse_dict.errors import UserError, explained
from sparse_dict.storage import links

log = logging.getLogger(__name__)

FILE = ".lock"
LOOK_S = 0.3  # how long `holder` of other processes may have the lock, at most
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

# by process and folder: the file's descriptor, and the folders made for it, deepest first
_held: dict[tuple[int, Path], tuple[int, list[Path]]] = {}


@contextmanager
def holding(*folders: Path) -> Iterator[None]:
    """Keep other processes out of `folders`, which are made if need be.

    Within one process it may be nested. Folders made and still empty at the end are removed.

    Raises:
        UserError: another process works there, the folder cannot be written to, or a file that is
            written in place is a link.
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys(folder.absolute() for folder in folders):
            if (os.getpid(), folder) not in _held:
                links.refuse(folder)
                _take(folder)
                stack.callback(_release, os.getpid(), folder)
        yield


def hold_until_exit(folders: Iterable[Path]) -> None:
    """The same for the rest of the process' life."""
    stack = ExitStack()
    stack.enter_context(holding(*folders))
    atexit.register(stack.close)


def holder(folder: Path) -> str | None:
    """The process that works in `folder`, if one does; writes nothing."""
    try:
        descriptor = os.open(folder / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _take(folder: Path) -> None:
    path = folder / FILE
    descriptor = -1
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            try:
                descriptor = os.open(path, flags, 0o644)
            except FileNotFoundError:  # its holder has just removed the folder
                continue
            _lock(descriptor)
            if _is_at(path, descriptor):
                break
            os.close(descriptor)  # its holder has just removed it: lock the one there now
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BlockingIOError:
        name = _named(descriptor)
        os.close(descriptor)
        raise UserError(
            f"{folder} is in use by {name}: wait until it ends, or choose another name="
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            log.warning("%s: no locks on this file system; start nothing else there", folder)
        else:
            if descriptor >= 0:
                os.close(descriptor)
            line = explained(error) or f"{type(error).__name__}: {error}"
            raise UserError(line) from None
    _held[os.getpid(), folder] = descriptor, made


def _lock(descriptor: int) -> None:
    """Take the lock; who only looks (`holder`) shares it for an instant, which is no refusal."""
    until = time.monotonic() + LOOK_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
        time.sleep(0.01)


def _release(pid: int, folder: Path) -> None:
    if pid != os.getpid():  # a forked child: the lock is its parent's
        return
    descriptor, made = _held.pop((pid, folder))
    with suppress(OSError):
        if _is_at(folder / FILE, descriptor):
            (folder / FILE).unlink()
        for path in made:
            path.rmdir()
    os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _named(descriptor: int) -> str:
    """What the holder wrote of itself."""
    text = os.pread(descriptor, 200, 0).decode(errors="replace")
    return " ".join(text.split()) or "another process"
