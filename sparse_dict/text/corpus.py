"""What all sources of text offer: `check`, `describe` and `documents`, by the config's class."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sparse_dict.config import DataConfig, DocstringsData, FilesData, HubData, ToyData
from sparse_dict.errors import UserError
from sparse_dict.text import docstrings, files, hub
from sparse_dict.text.cleaning import unique

SOURCES = {DocstringsData: docstrings, FilesData: files, HubData: hub}


def _source(data: DataConfig | ToyData) -> ModuleType:
    if isinstance(data, ToyData):
        raise UserError("data=toy is no text but activations: begin with harvest.py experiment=toy")
    return SOURCES[type(data)]


def check(data: DataConfig, validated: bool = False) -> None:
    """Test in under a second that the corpus is there; writes nothing, asks no network.

    `validated`: some of it is to be held out.

    Raises:
        UserError: what is missing.
    """
    _source(data).check(data)
    if validated and isinstance(data, FilesData):
        files.refuse_one_document(data)


def describe(data: DataConfig) -> dict[str, Any]:
    """What identifies the corpus, as JSON; two equal descriptions give the same documents.

    Raises:
        UserError: what is missing.
    """
    described: dict[str, Any] = _source(data).describe(data)
    return described


def documents(data: DataConfig, cache_dir: Path) -> Iterator[str]:
    """The corpus as a stream in a fixed order: no blank document, none twice, all valid UTF-8.

    Raises:
        UserError: while iterating, when a source is missing or broken.
    """
    return unique(_source(data).documents(data, cache_dir))
