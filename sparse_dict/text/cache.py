"""Cache folders that are either whole or absent, though several processes may build one."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparse_dict.errors import UserError
from sparse_dict.storage import files

STALE_S = 24 * 3600.0
HASHES = "sha256.json"  # of a folder's files, where they do not say so themselves


def seal(folder: Path) -> None:
    """Note the SHA-256 of all files of a folder that is being built."""
    hashes = {path.name: files.sha256_file(path) for path in sorted(folder.iterdir())}
    files.write_json(folder / HASHES, hashes)


def is_there(folder: Path) -> bool:
    """Whether a sealed folder is there; its files are hashed anew.

    Raises:
        UserError: a file has changed since it was written.
    """
    if not folder.is_dir():
        return False
    if (folder / HASHES).exists():  # not in the folders of earlier versions
        for name, sha256 in files.read_json(folder / HASHES).items():
            path = folder / Path(name).name
            if not path.is_file() or files.sha256_file(path) != sha256:
                raise UserError(f"{path} has changed since it was written: delete {folder}")
    return True


@contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Give a fresh folder beside `folder`; on success it is renamed to `folder`.

    If another process finished `folder` meanwhile, its result stays and ours is dropped. On an
    exception the fresh folder is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        yield fresh
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _remove_stale(parent: Path) -> None:
    """Remove what killed processes left behind: hidden folders untouched for a day."""
    for left in parent.glob(".*"):
        try:
            if left.is_dir() and time.time() - left.stat().st_mtime > STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        except FileNotFoundError:
            continue  # another process was quicker
