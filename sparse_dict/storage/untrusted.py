"""The checks on everything that comes from elsewhere: the files of a study, a corpus, a cache."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from sparse_dict.errors import Advised, UserError, lacking

MOST_BYTES = 2**28  # of a record, a document, a line: what is read in one piece
WRITTEN_ON = (".log", ".yaml", ".jsonl")  # by Hydra and logging, which do not replace files
LFS = b"version https://git-lfs.github.com/spec/"  # begins what Git leaves in place of a large file


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading."""
    try:
        # O_NONBLOCK: to open a pipe that nobody writes to would wait
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", closefd=True) as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise UserError(f"{path} is a pipe, a socket or a device, not a file")
            if file.peek(len(LFS)).startswith(LFS):
                raise Advised(f"{path} is a Git LFS pointer, not the file: git lfs pull fetches it")
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise Advised(lacking(error) or f"{path} cannot be read: {error.strerror}") from None


def read_bytes(path: Path, advice: str = "too large for such a file") -> bytes:
    """All of a file that is read in one piece."""
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES >> 20} MiB, {advice}")
        return file.read()


def visible(folder: Path, pattern: str) -> list[Path]:
    """What a shell's glob finds in `folder`, sorted: no hidden files."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


# A run of wandb's, which another one never writes to. Its link to a log is absolute, so that in a
# copy of the study it leads out.
ENDED = re.compile(r"(offline-)?run-\d{8}_\d{6}-")


def refuse_links(path: Path, study: Path | None = None) -> None:
    """See that what is written to `path`, or to a folder in it, stays inside the study.

    A study from elsewhere may link to anywhere. `study` is the folder above `path` by default;
    links that lead to it are the user's own. What is written on becomes a file of its own where a
    copy of the study by hard links shares it.
    """
    top = study if study is not None and study in path.parents else path.parent
    root = top.resolve()
    between = [p for p in (path, *path.parents) if top in p.parents]
    for folder, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not ENDED.match(name)]
        between += [Path(folder, name) for name in (*folders, *names)]
    for found in between:
        if found.is_symlink() and not found.resolve().is_relative_to(root):
            raise UserError(f"{found} is a link out of {top}: remove it")
        if not os.path.lexists(found):
            continue
        state = found.lstat()
        if stat.S_IFMT(state.st_mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise UserError(f"{found} is a pipe, a socket or a device, not a file: remove it")
        if stat.S_ISREG(state.st_mode) and state.st_nlink > 1 and found.suffix in WRITTEN_ON:
            copy = found.with_name(f".{found.name}.tmp")
            copy.unlink(missing_ok=True)
            shutil.copy2(found, copy)
            copy.replace(found)
