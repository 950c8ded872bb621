"""Token ids of a corpus on disk: made once, read in windows that ignore shard borders."""

import hashlib
import logging
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from typing_extensions import TypedDict

from sparse_dict.config import DataConfig
from sparse_dict.errors import UserError, advising, reading
from sparse_dict.machine import distributed
from sparse_dict.machine.background import prefetched
from sparse_dict.machine.progress import Progress
from sparse_dict.machine.threads import available_cores
from sparse_dict.storage import files, records
from sparse_dict.storage.arrays import Joined, Stored, stored
from sparse_dict.storage.cache import RESUME, ensure
from sparse_dict.storage.records import ArrayName, Count, Line
from sparse_dict.storage.tensor_files import read_checkpoint, read_record, write_checkpoint
from sparse_dict.text import corpus

log = logging.getLogger(__name__)

FORMAT = 1
SPLITS = ("train", "validation")
SHARD_TOKENS = 2**24
BATCH_DOCUMENTS = 2048
BATCH_CHARS = 2**23

_End = tuple[dict[str, Any] | None, int]  # a stream's state, and how many documents it gave


class _FileRecord(TypedDict):  # a file beside the manifest
    name: ArrayName
    sha256: Line


class _ShardRecord(_FileRecord):  # a file of ids
    tokens: Count


class _WriterRecord(TypedDict):  # one part of the corpus, half written
    shards: list[_ShardRecord]
    tokens: Count
    bytes: Count


class _SplitRecord(_WriterRecord):  # one part of the corpus
    documents: Count
    document_starts: _FileRecord


class Manifest(TypedDict):
    """`manifest.json` of a store."""

    format: Literal[1]
    fingerprint: Line
    corpus: dict[str, Any]
    val_fraction: float
    tokenizer: Line
    dtype: Literal["uint16", "uint32"]
    n_vocab: Count
    eot: Count
    splits: dict[str, _SplitRecord]


class _Resume(TypedDict):  # where a stream broke off
    state: dict[str, Any]
    train: _WriterRecord
    validation: _WriterRecord


class Encoder(Protocol):
    """The part of a tokenizer that is needed here: of `text.tokenizer`, or of another model."""

    n_vocab: int  # ids in all
    eot: int  # id of the end of text
    dtype: np.dtype[Any]  # uint16 or uint32
    fingerprint: str  # identifies what the ids mean

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, `dtype` (n,), without end of text."""


def prepare(data: DataConfig, tokenizer: Encoder, cache_dir: Path) -> "TokenStore":
    """Encode the corpus into ``cache_dir/tokens/<fingerprint>/``, unless it is there already.

    Every document is followed by `tokenizer.eot`, which counts as its last token. Which split a
    document belongs to depends on its text and `data.val_fraction` alone.
    """
    described: dict[str, Any] = {
        "format": FORMAT,
        "corpus": corpus.describe(data, cache_dir),
        "val_fraction": data.val_fraction,
        "tokenizer": tokenizer.fingerprint,
    }
    name = files.fingerprint(described)
    folder = cache_dir / "tokens" / name

    def make(fresh: Path) -> None:
        splits = _encode(data, tokenizer, cache_dir, fresh)
        corpus.refuse_change(described["corpus"], corpus.describe(data, cache_dir))
        manifest = {
            "fingerprint": name,
            **described,
            "dtype": tokenizer.dtype.name,
            "n_vocab": tokenizer.n_vocab,
            "eot": tokenizer.eot,
            "splits": splits,
        }
        files.write_json(fresh / "manifest.json", manifest)

    ensure(folder, make)
    store = TokenStore.open(folder)
    for split, stream in store.streams.items():
        log.info("tokens: %s %s of %d documents", split, len(stream), len(stream.document_starts))
    return store


def in_validation(text: str, fraction: float) -> bool:
    """Whether a document is held out: by a hash of its text, so others do not matter."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"split").digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


class TokenStream:
    """A sequence of ids across the borders of shards; `document_starts` are int64 (documents,)."""

    def __init__(self, shards: Sequence[np.ndarray | Stored], document_starts: np.ndarray) -> None:
        self.shards = Joined(shards)
        self.document_starts = document_starts

    def __len__(self) -> int:
        return len(self.shards)

    def window(self, start: int, length: int) -> np.ndarray:
        """Ids at start, ..., start + length - 1: int64 (length,); IndexError if out of range."""
        out = np.empty(max(length, 0), np.int64)
        for part, where in self.shards.pieces(start, start + length):
            out[where] = part
        return out

    def origins(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Document in the stream and position in it of a window's tokens, int64 (length,) each.

        The end of text is the last position of the document it follows.
        """
        first, last = np.searchsorted(self.document_starts, [start, start + length - 1], "right")
        documents = np.arange(first - 1, last)
        starts = self.document_starts[first - 1 : last]
        lengths = np.diff([start, *starts[1:], start + length])
        place = np.arange(start, start + length) - np.repeat(starts, lengths)
        return np.repeat(documents, lengths), place


@dataclass(frozen=True)
class TokenStore:
    """The folder that `prepare` makes."""

    folder: Path
    manifest: Manifest  # its fingerprint identifies corpus, split and tokenizer
    streams: dict[str, TokenStream]  # of `SPLITS`; one of them may be empty

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a store, every byte of whose files is checked; of several processes by rank 0."""
        path = folder / "manifest.json"
        with advising(f"delete {folder} to have it made again"):
            manifest = records.read(path, Manifest)
            with reading(path):
                splits = {name: manifest["splits"][name] for name in SPLITS}
            dtype = np.dtype(manifest["dtype"])
            streams = {name: _stream(folder, split, dtype) for name, split in splits.items()}
            if distributed.main():
                recorded: list[_FileRecord] = [
                    file for split in splits.values() for file in split["shards"]
                ]
                recorded += [split["document_starts"] for split in splits.values()]
                with ThreadPoolExecutor(available_cores()) as pool:
                    paths = [folder / file["name"] for file in recorded]
                    hashes = [file["sha256"] for file in recorded]
                    list(pool.map(files.refuse_change, paths, hashes))
        return cls(folder, manifest, streams)

    def split(self, name: str) -> TokenStream:
        """The stream of "train" or "validation", or of "all": the one after the other."""
        train, validation = (self.streams[part] for part in SPLITS)
        if name == "all":
            starts = [train.document_starts, validation.document_starts + len(train)]
            shards = [*train.shards.arrays, *validation.shards.arrays]
            stream = TokenStream(shards, np.concatenate(starts))
        else:
            stream = self.streams[name]
        if not len(stream):
            raise UserError(f"no document falls into {name}: give more, or raise val_fraction")
        return stream


def _stream(folder: Path, split: _SplitRecord, dtype: np.dtype[Any]) -> TokenStream:
    shards = [stored(folder / s["name"], dtype, (s["tokens"],)) for s in split["shards"]]
    starts = folder / split["document_starts"]["name"]
    return TokenStream(shards, stored(starts, np.dtype(np.int64), (split["documents"],))[:])


class _SplitWriter:
    """Writes one split's shards as they fill; `record` and `arrays` are what it takes to go on."""

    def __init__(
        self,
        folder: Path,
        name: str,
        end: np.ndarray,
        record: _WriterRecord | None,
        kept: Mapping[str, np.ndarray],
    ) -> None:
        self.folder, self.name = folder, name
        self.end = end  # the end of text, (1,)
        self.record: _WriterRecord = record or {"shards": [], "tokens": 0, "bytes": 0}
        self.starts = array("q", kept.get(f"{name}.starts", end[:0]).tolist())  # of each document
        self.pending = [kept.get(f"{name}.pending", end[:0])]  # what is in no shard yet

    def add(self, ids: np.ndarray, n_bytes: int) -> None:
        self.starts.append(self.record["tokens"])
        self.record["tokens"] += len(ids) + 1
        self.record["bytes"] += n_bytes
        self.pending += [ids, self.end]
        if self.record["tokens"] >= SHARD_TOKENS * (len(self.record["shards"]) + 1):
            self._flush()

    def _flush(self, last: bool = False) -> None:
        """Write whole shards of what is pending, and at the end a smaller one."""
        whole = np.concatenate(self.pending)
        while len(whole) >= SHARD_TOKENS or (last and len(whole)):
            part, whole = whole[:SHARD_TOKENS], whole[SHARD_TOKENS:]
            name = f"{self.name}-{len(self.record['shards']):05d}.npy"
            self.record["shards"].append({**self._saved(name, part), "tokens": len(part)})
        self.pending = [whole]

    def close(self) -> _SplitRecord:
        self._flush(last=True)
        starts = self._saved(f"{self.name}-documents.npy", np.array(self.starts, np.int64))
        return {**self.record, "documents": len(self.starts), "document_starts": starts}

    def arrays(self) -> dict[str, np.ndarray]:
        starts, pending = np.array(self.starts, np.int64), np.concatenate(self.pending)
        return {f"{self.name}.starts": starts, f"{self.name}.pending": pending}

    def _saved(self, name: str, values: np.ndarray) -> _FileRecord:
        path = self.folder / name
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, values, allow_pickle=False)
        return {"name": name, "sha256": files.sha256_file(path)}


def _encode(
    data: DataConfig, tokenizer: Encoder, cache_dir: Path, folder: Path
) -> dict[str, _SplitRecord]:
    """Write the corpus to `folder`; of a stream that breaks off what is done is kept."""
    path, end = folder / RESUME, np.array([tokenizer.eot], tokenizer.dtype)
    kept: dict[str, np.ndarray] = {"keys": end[:0]}
    record: Any = {}
    if path.exists():
        kept, record = read_checkpoint(path), read_record(path, _Resume)
    writers = {name: _SplitWriter(folder, name, end, record.get(name), kept) for name in SPLITS}
    documents = corpus.Documents(data, cache_dir, record.get("state"), kept["keys"].tolist())

    def n_shards() -> int:
        return sum(len(writer.record["shards"]) for writer in writers.values())

    def keep(state: dict[str, Any] | None, n_keys: int) -> None:
        if state is not None:  # the source can go on there
            arrays = {"keys": np.array(documents.keys[:n_keys], np.uint64)}
            for writer in writers.values():
                arrays |= writer.arrays()
            records = {name: writer.record for name, writer in writers.items()}
            write_checkpoint(path, arrays, {"state": state, **records})

    # Reading, encoding (itself on all cores) and writing each work on another batch.
    read = prefetched(_batches(documents))
    encoded = prefetched((*batch, tokenizer.encode_batch(batch[0])) for batch in read)
    before = sum(len(writer.starts) for writer in writers.values())
    if before:
        log.info("going on behind %s documents", f"{before:,}")
    last: _End = (None, 0)
    written = n_shards()
    with Progress("encode", None, "documents", before) as progress:
        try:
            for texts, after, all_ids in encoded:
                for text, ids in zip(texts, all_ids, strict=True):
                    held = in_validation(text, data.val_fraction)
                    writer = writers["validation" if held else "train"]
                    writer.add(ids, len(text.encode()))
                last = after
                if n_shards() > written:
                    written = n_shards()
                    keep(*last)
                tokens = sum(writer.record["tokens"] for writer in writers.values())
                progress.advance(len(texts), Mtokens=tokens / 1e6)
        except UserError:
            keep(*last)
            raise
    if not progress.done:
        raise UserError("the corpus is empty: there is no document to encode")
    splits = {name: writer.close() for name, writer in writers.items()}
    path.unlink(missing_ok=True)
    return splits


def _batches(documents: corpus.Documents) -> Iterator[tuple[list[str], _End]]:
    """Lists of texts, bounded in number and, but for one long document, in characters."""
    batch: list[str] = []
    chars = 0
    for text in documents:
        batch.append(text)
        chars += len(text)
        if len(batch) == BATCH_DOCUMENTS or chars >= BATCH_CHARS:
            yield batch, (documents.state(), len(documents.keys))
            batch, chars = [], 0
    if batch:
        yield batch, (documents.state(), len(documents.keys))
