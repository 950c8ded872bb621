"""Token ids of a corpus on disk: made once, memory-mapped, in windows that ignore shard borders."""

import functools
import hashlib
import logging
from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from sparse_dict.config import DataConfig
from sparse_dict.errors import UserError
from sparse_dict.machine import distributed
from sparse_dict.machine.ahead import ahead
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files
from sparse_dict.text import corpus
from sparse_dict.text.cache import building
from sparse_dict.text.cores import available_cores

log = logging.getLogger(__name__)

FORMAT = 1
SPLITS = ("train", "validation")
SHARD_TOKENS = 2**24
BATCH_DOCUMENTS = 2048
BATCH_CHARS = 2**23


class Encoder(Protocol):
    """What of a tokenizer is needed here: `text.tokenizer.Tokenizer`, or that of another model."""

    @property
    def n_vocab(self) -> int:
        """Ids in all."""

    @property
    def eot(self) -> int:
        """Id of the end of text."""

    @property
    def dtype(self) -> np.dtype:
        """uint16 or uint32."""

    @property
    def fingerprint(self) -> str:
        """Identifies what the ids mean."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, `dtype` (n,), without end of text."""


def prepare(data: DataConfig, tokenizer: Encoder, cache_dir: Path) -> "TokenStore":
    """Encode the corpus into ``cache_dir/tokens/<fingerprint>/``, unless it is there already.

    Every document is followed by `tokenizer.eot`, which counts as its last token. Which split a
    document belongs to depends on its text and `data.val_fraction` alone.

    Raises:
        UserError: the corpus is missing, broken or empty, or an existing store is damaged.
    """
    described = {
        "format": FORMAT,
        "corpus": corpus.describe(data),
        "val_fraction": data.val_fraction,
        "tokenizer": tokenizer.fingerprint,
    }
    name = files.fingerprint(described)
    folder = cache_dir / "tokens" / name
    if not folder.is_dir():
        with building(folder) as fresh:
            splits = _write(corpus.documents(data, cache_dir), data, tokenizer, fresh)
            manifest = {
                "fingerprint": name,
                **described,
                "dtype": tokenizer.dtype.name,
                "n_vocab": tokenizer.n_vocab,
                "eot": tokenizer.eot,
                "splits": splits,
            }
            files.write_json(fresh / "manifest.json", manifest)
    store = TokenStore.open(folder)
    log.info(
        "tokens: %s",
        ", ".join(
            f"{split} {info.tokens:,} of {info.documents:,} documents"
            for split, info in store.splits.items()
        ),
    )
    return store


def in_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out: by a hash of its text, so others do not matter."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


class TokenStream:
    """A sequence of ids across the borders of memory-mapped shards.

    Attributes:
        n_documents: documents in the stream.
        n_bytes: their length as UTF-8, without the ends of text.
    """

    def __init__(self, shards: list[np.ndarray], document_starts: np.ndarray, n_bytes: int) -> None:
        self._shards = shards
        self._ends = np.cumsum([len(shard) for shard in shards], dtype=np.int64)
        self._document_starts = document_starts
        self.n_documents = len(document_starts)
        self.n_bytes = n_bytes

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def window(self, start: int, length: int) -> np.ndarray:
        """Ids at start, ..., start + length - 1: int64 (length,); IndexError if out of range."""
        self._check(start, length)
        out = np.empty(length, np.int64)
        done = 0
        number = int(np.searchsorted(self._ends, start, side="right"))
        while done < length:
            shard = self._shards[number]
            offset = start + done - (int(self._ends[number]) - len(shard))
            part = shard[offset : offset + length - done]
            out[done : done + len(part)] = part
            done += len(part)
            number += 1
        return out

    def origins(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens of a window come from.

        Returns:
            Index of the document in the stream and position in it, int64 (length,) each. The end
            of text is the last position of the document it follows.
        """
        self._check(start, length)
        first, last = np.searchsorted(self._document_starts, [start, start + length - 1], "right")
        documents = np.arange(first - 1, last)
        starts = self._document_starts[first - 1 : last]
        lengths = np.diff([start, *starts[1:], start + length])
        place = np.arange(start, start + length) - np.repeat(starts, lengths)
        return np.repeat(documents, lengths), place

    def _check(self, start: int, length: int) -> None:
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"[{start}, {start + length}) is not within {len(self)} tokens")


@dataclass(frozen=True)
class Split:
    """One part of a store: counts, shard files with their lengths, file of document starts.

    Attributes:
        sha256: of each of these files.
    """

    documents: int
    tokens: int
    bytes: int
    shards: tuple[tuple[str, int], ...]
    document_starts: str
    sha256: dict[str, str]


@dataclass(frozen=True)
class TokenStore:
    """The folder that `prepare` makes.

    Attributes:
        fingerprint: identifies corpus, split and tokenizer.
        manifest: all of ``manifest.json``.
        splits: "train" and "validation".
    """

    folder: Path
    fingerprint: str
    dtype: np.dtype
    n_vocab: int
    eot: int
    manifest: dict[str, Any]
    splits: dict[str, Split]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store and check that its files are those of its manifest, every byte of them.

        The hashes take a second for 2 GB; of several processes only rank 0 takes them.

        Raises:
            UserError: what is missing or does not fit, and that the folder can be deleted.
        """
        try:
            return cls._open(folder)
        except UserError as error:
            raise UserError(f"{error}; delete {folder} to have it made again") from None

    @classmethod
    def _open(cls, folder: Path) -> Self:
        path = folder / "manifest.json"
        manifest = files.read_json(path)
        if manifest.get("format") != FORMAT:
            raise UserError(f"{path}: format {manifest.get('format')!r}, expected {FORMAT}")
        if manifest.get("dtype") not in ("uint16", "uint32"):
            raise UserError(f"{path}: dtype {manifest.get('dtype')!r} is not uint16 or uint32")
        if not isinstance(manifest.get("fingerprint"), str):
            raise UserError(f"{path}: no fingerprint")
        splits = manifest.get("splits")
        if not isinstance(splits, dict) or set(splits) != set(SPLITS):
            raise UserError(f"{path}: splits must be {' and '.join(SPLITS)}")
        store = cls(
            folder=folder,
            fingerprint=manifest["fingerprint"],
            dtype=np.dtype(manifest["dtype"]),
            n_vocab=_count(path, manifest, "n_vocab"),
            eot=_count(path, manifest, "eot"),
            manifest=manifest,
            splits={name: _read_split(path, splits[name]) for name in SPLITS},
        )
        for name in SPLITS:
            store._stream(name)
        if distributed.main():
            store._verify()
        return store

    def split(self, name: str) -> TokenStream:
        """The stream of "train" or "validation", or of "all": the one after the other.

        Raises:
            UserError: that part holds no document.
        """
        streams = [self._stream(part) for part in (SPLITS if name == "all" else (name,))]
        stream = functools.reduce(_concatenated, streams)
        if not len(stream):
            total = sum(split.documents for split in self.splits.values())
            raise UserError(
                f"the {name} part of the corpus is empty: of its {total} documents none falls "
                f"there with data.val_fraction={self.manifest.get('val_fraction')}; give more or "
                "shorter documents, or another data.val_fraction"
            )
        return stream

    def _verify(self) -> None:
        hashes = {k: v for split in self.splits.values() for k, v in split.sha256.items()}
        with ThreadPoolExecutor(available_cores()) as pool:
            found = pool.map(files.sha256_file, [self.folder / name for name in hashes])
            for (name, wanted), digest in zip(hashes.items(), found, strict=True):
                if digest != wanted:
                    raise UserError(f"{self.folder / name} has changed since it was written")

    def _stream(self, name: str) -> TokenStream:
        split = self.splits[name]
        starts = _load(self.folder / split.document_starts, np.dtype(np.int64), split.documents)
        if split.tokens != sum(length for _, length in split.shards):
            raise UserError(f"{self.folder / 'manifest.json'}: {name} shards do not add up")
        shards = [_load(self.folder / file, self.dtype, length) for file, length in split.shards]
        return TokenStream(shards, starts, split.bytes)


def _concatenated(first: TokenStream, second: TokenStream) -> TokenStream:
    return TokenStream(
        first._shards + second._shards,
        np.concatenate([first._document_starts, second._document_starts + len(first)]),
        first.n_bytes + second.n_bytes,
    )


def _count(path: Path, record: dict[str, Any], key: str) -> int:
    value = record.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"{path}: {key} must be a count, not {value!r}")
    return value


def _file_name(path: Path, record: Any) -> str:
    name = record.get("name") if isinstance(record, dict) else None
    if not isinstance(name, str) or Path(name).name != name or not name.endswith(".npy"):
        raise UserError(f"{path}: {name!r} is no name of an .npy file beside it")
    return name


def _read_split(path: Path, record: Any) -> Split:
    if not isinstance(record, dict) or not isinstance(record.get("shards"), list):
        raise UserError(f"{path}: a split must be an object with a list of shards")
    return Split(
        documents=_count(path, record, "documents"),
        tokens=_count(path, record, "tokens"),
        bytes=_count(path, record, "bytes"),
        shards=tuple(
            (_file_name(path, shard), _count(path, shard, "tokens")) for shard in record["shards"]
        ),
        document_starts=_file_name(path, record.get("document_starts")),
        sha256={
            _file_name(path, entry): str(entry.get("sha256"))
            for entry in [*record["shards"], record["document_starts"]]
        },
    )


def _load(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    try:
        values = files.map_array(path, "r")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as an array: {error}") from None
    if values.dtype != dtype or values.shape != (length,):
        raise UserError(
            f"{path} is {values.dtype} {values.shape}, its manifest says {dtype} ({length},)"
        )
    return values


class _SplitWriter:
    """Writes one split's shards as they fill, and its document starts at the end."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype) -> None:
        self._folder = folder
        self._name = name
        self._shard = np.empty(SHARD_TOKENS, dtype)
        self._filled = 0
        self._shards: list[dict[str, Any]] = []
        self._starts = array("q")
        self.tokens = 0
        self._bytes = 0

    def add(self, ids: np.ndarray, eot: int, n_bytes: int) -> None:
        self._starts.append(self.tokens)
        self._bytes += n_bytes
        for part in (ids, np.array([eot], ids.dtype)):
            self.tokens += len(part)
            while len(part):
                taken = part[: len(self._shard) - self._filled]
                self._shard[self._filled : self._filled + len(taken)] = taken
                self._filled += len(taken)
                part = part[len(taken) :]
                if self._filled == len(self._shard):
                    self._flush()

    def close(self) -> dict[str, Any]:
        """Write what is left; the split's part of the manifest."""
        if self._filled:
            self._flush()
        starts = f"{self._name}-documents.npy"
        sha256 = self._save(starts, np.array(self._starts, np.int64))
        return {
            "documents": len(self._starts),
            "tokens": self.tokens,
            "bytes": self._bytes,
            "shards": self._shards,
            "document_starts": {"name": starts, "sha256": sha256},
        }

    def _flush(self) -> None:
        name = f"{self._name}-{len(self._shards):05d}.npy"
        sha256 = self._save(name, self._shard[: self._filled])
        self._shards.append({"name": name, "tokens": self._filled, "sha256": sha256})
        self._filled = 0

    def _save(self, name: str, values: np.ndarray) -> str:
        path = self._folder / name
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        return files.sha256_file(path)


def _write(
    texts: Iterable[str], data: DataConfig, tokenizer: Encoder, folder: Path
) -> dict[str, Any]:
    writers = {name: _SplitWriter(folder, name, tokenizer.dtype) for name in SPLITS}
    # Reading, encoding (itself on all cores) and writing each work on another batch.
    encoded = ((batch, tokenizer.encode_batch(batch)) for batch in ahead(_batches(texts)))
    with Progress("encode", None, "documents") as progress:
        for batch, all_ids in ahead(encoded):
            for text, ids in zip(batch, all_ids, strict=True):
                name = "validation" if in_validation(text, data.val_fraction) else "train"
                writers[name].add(ids, tokenizer.eot, len(text.encode()))
            tokens = sum(writer.tokens for writer in writers.values())
            progress.advance(len(batch), Mtokens=tokens / 1e6)
    if not progress.done:
        raise UserError("the corpus is empty: there is no document to encode")
    return {name: writer.close() for name, writer in writers.items()}


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, bounded in number and, but for one long document, in characters."""
    batch: list[str] = []
    chars = 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if len(batch) == BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
