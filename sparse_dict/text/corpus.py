"""What all sources of text offer: `check`, `describe` and `documents`, by the config's class."""

from array import array
from collections.abc import Iterable, Iterator
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
        raise UserError("data=toy gives activations, no text: begin with harvest.py experiment=toy")
    return SOURCES[type(data)]


def check(data: DataConfig, validated: bool = False) -> None:
    """Test in under a second that the corpus is there; `validated`: some is to be held out."""
    _source(data).check(data)
    if validated and isinstance(data, FilesData):
        files.refuse_one_document(data)


def describe(data: DataConfig, cache_dir: Path) -> dict[str, Any]:
    """What identifies the corpus, as JSON; two equal descriptions give the same documents."""
    return _source(data).describe(data, cache_dir)


def refuse_change(described: dict[str, Any], now: dict[str, Any]) -> None:
    """See that a corpus that was `described` before it was read is the same afterwards."""
    if described != now:
        before = described.get("files", [])
        names = [file["name"] for file in now.get("files", []) if file not in before]
        raise UserError(
            f"the corpus changed while it was read ({', '.join(names[:3]) or 'not the same files'})"
            ": leave it alone and run the same command again"
        )


class Documents:
    """The corpus as a stream in a fixed order: no blank document, none twice, all valid UTF-8.

    `state` and `keys` are of a stream that broke off, to go on behind the last document it gave.
    """

    def __init__(
        self,
        data: DataConfig,
        cache_dir: Path,
        state: dict[str, Any] | None = None,
        keys: Iterable[int] = (),
    ) -> None:
        self._texts = _source(data).documents(data, cache_dir, *([state] if state else []))
        self.keys = array("Q", keys)  # a hash of each document given so far and in earlier streams

    def __iter__(self) -> Iterator[str]:
        return unique(self._texts, self.keys)

    def state(self) -> dict[str, Any] | None:
        """Where the stream is, as JSON; None of a source that can only begin anew."""
        return self._texts.state() if isinstance(self._texts, hub.Stream) else None
