"""What befalls a file: each takes its path."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparse_dict.activations.store import fingerprint_of


def flip(path: Path, position: int = -1) -> None:
    """Another bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def written(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def edited(*keys: str | int, **values: Any) -> Callable[[Path], None]:
    """Other values in a JSON record, or in the part of it that the keys lead to."""

    def change(path: Path) -> None:
        whole = part = json.loads(path.read_text())
        for key in keys:
            part = part[key]
        part.update(values)
        path.write_text(json.dumps(whole))

    return change


def resealed(*keys: str | int, **values: Any) -> Callable[[Path], None]:
    """As `edited`, of a harvest's manifest, with a fingerprint that fits."""

    def change(path: Path) -> None:
        edited(*keys, **values)(path)
        manifest = json.loads(path.read_text())
        own = fingerprint_of(manifest, manifest["fingerprints"])
        edited("fingerprints", activations=own)(path)

    return change


def first_line(line: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text("\n".join([line, *path.read_text().splitlines()[1:]]))

    return change
