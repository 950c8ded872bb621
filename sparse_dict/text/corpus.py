"""One face for all corpora: `check`, `describe` and `documents` by the kind of the config."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparse_dict.config import DataConfig, DocstringsData, FilesData, HubData, ToyData
from sparse_dict.errors import UserError
from sparse_dict.text import docstrings, files, hub
from sparse_dict.text.cleaning import unique


def check(data: DataConfig) -> None:
    """Test in under a second that the corpus is there; writes nothing, asks no network.

    Raises:
        UserError: what is missing.
    """
    match data:
        case DocstringsData():
            docstrings.check(data)
        case FilesData():
            files.check(data)
        case HubData():
            hub.check(data)
        case ToyData():
            raise UserError(
                "data=toy is no text but activations: begin with harvest.py experiment=toy"
            )
        case _:
            raise TypeError(f"{type(data).__name__} is no corpus")


def describe(data: DataConfig) -> dict[str, Any]:
    """What identifies the corpus, as JSON; two equal descriptions give the same documents.

    Raises:
        UserError: what is missing.
    """
    match data:
        case DocstringsData():
            return docstrings.describe(data)
        case FilesData():
            return files.describe(data)
        case HubData():
            return hub.describe(data)
        case _:
            raise TypeError(f"{type(data).__name__} is no corpus")


def documents(data: DataConfig, cache_dir: Path) -> Iterator[str]:
    """The corpus as a stream in a fixed order: no blank document, none twice, all valid UTF-8.

    Raises:
        UserError: while iterating, when a source is missing or broken.
    """
    match data:
        case DocstringsData():
            return docstrings.documents(data, cache_dir)
        case FilesData():
            return unique(files.documents(data))
        case HubData():
            return unique(hub.documents(data))
        case _:
            raise TypeError(f"{type(data).__name__} is no corpus")
