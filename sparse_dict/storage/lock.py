"""One process at a time in an output folder, by a lock that the kernel releases (`filelock`).

The lock is on the file ``.lock``, which names its holder and is removed at the end. On NFS it holds
between machines unless the mount says ``local_lock=flock``; Lustre needs the mount option
``flock``. Where the file system knows no locks, a warning is all that can be given.
"""

import atexit
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sparse_dict.errors import UserError, one_line
from sparse_dict.storage.untrusted import read_bytes, refuse_links

log = logging.getLogger(__name__)

FILE = ".lock"
LOOK_S = 0.3  # for how long `holder` in other processes may keep the lock, at most
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

_held: set[Path] = set()


@contextmanager
def holding(*folders: Path, wait: bool = False) -> Iterator[None]:
    """Keep other processes out of `folders`, made if need be; with `wait`, one there is waited for.

    Within one process it may be nested. Folders made and still empty at the end are removed.
    """
    with ExitStack() as stack:
        for folder in dict.fromkeys(folder.absolute() for folder in folders):
            if folder not in _held:
                refuse_links(folder)
                stack.enter_context(_holding(folder, wait))
        yield


def hold_until_exit(folders: Iterable[Path]) -> None:
    """As `holding`, for the rest of the process' life."""
    stack = ExitStack()
    stack.enter_context(holding(*folders))
    atexit.register(stack.close)


def holder(folder: Path) -> str | None:
    """The process that works in `folder`, if one does; writes nothing (as `filelock` would)."""
    path = folder / FILE
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)
    except BlockingIOError:
        return _named(path)
    except OSError:
        pass
    return None


@contextmanager
def _holding(folder: Path, wait: bool) -> Iterator[None]:
    path = folder / FILE
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    # any thread may release it, and no file of another kind stands in for a missing flock
    lock = FileLock(path, thread_local=False, fallback_to_soft=False)
    try:
        _acquire(lock, folder, wait)
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_named(path)}: wait until it ends, or choose another name="
        ) from None
    except OSError as error:
        lock.release()
        if error.errno not in _NO_LOCKS:
            raise UserError(one_line(error, named=True)) from None
        log.warning("%s: no locks on this file system; start nothing else there", folder)
    _held.add(folder)
    try:
        yield
    finally:
        _held.discard(folder)
        with suppress(OSError):
            path.unlink()
            for parent in made:
                parent.rmdir()
        lock.release()


def _acquire(lock: FileLock, folder: Path, wait: bool) -> None:
    said = False
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(LOOK_S, poll_interval=0.01)
        except FileNotFoundError:
            continue  # the process that held it has removed the folder
        except Timeout:
            if not wait:
                raise
            if not said:
                log.info("waiting for %s, which makes %s", _named(folder / FILE), folder)
            said = True


def _named(path: Path) -> str:
    with suppress(UserError):
        return " ".join(read_bytes(path).decode(errors="replace").split()) or "another process"
    return "another process"
