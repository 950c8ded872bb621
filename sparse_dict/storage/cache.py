"""Cache folders that are either whole or absent, though several processes may want one."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from sparse_dict.errors import advising
from sparse_dict.storage import files, lock, records

HASHES = "sha256.json"  # of a folder's files, where they do not say so themselves
RESUME = "resume.safetensors"  # in a folder that is half made: what it takes to go on with it


def ensure_sealed(folder: Path, make: Callable[[Path], None]) -> None:
    """As `ensure`, with a note of the SHA-256 of all files, which is compared if it is there."""

    def make_and_seal(fresh: Path) -> None:
        make(fresh)
        hashes = {path.name: files.sha256_file(path) for path in sorted(fresh.iterdir())}
        files.write_json(fresh / HASHES, hashes)

    path = folder / HASHES
    if path.exists():  # not in the folders of earlier versions
        with advising(f"delete {folder} to have it made again"):
            for name, sha256 in records.read(path, records.Texts).items():
                files.refuse_change(folder / Path(name).name, sha256)
    ensure(folder, make_and_seal)


def ensure(folder: Path, make: Callable[[Path], None]) -> None:
    """Let `make` fill a fresh folder and rename it to `folder`, unless that is there.

    One process does it and the others wait. What it leaves where it fails or is killed is removed
    by the next, or handed to its `make` if there is a `RESUME` file in it.
    """
    if folder.is_dir():
        return
    place = folder.with_name(f".{folder.name}")
    fresh = place / "fresh"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lock.holding(place, wait=True):
        if not folder.is_dir():
            _remove_useless(fresh)
            fresh.mkdir(exist_ok=True)
            try:
                make(fresh)
                fresh.rename(folder)
            finally:
                _remove_useless(fresh)
    with suppress(OSError):
        place.rmdir()  # a killed process had made it


def _remove_useless(fresh: Path) -> None:
    if not (fresh / RESUME).exists():
        shutil.rmtree(fresh, ignore_errors=True)
