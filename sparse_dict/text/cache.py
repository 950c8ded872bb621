"""Cache folders that are either whole or absent, whoever else builds the same one."""

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STALE_S = 24 * 3600.0


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
