"""Writes activations to shards in a uniformly random order, in bounded memory."""

import hashlib
import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations import store
from sparse_dict.activations.store import SPOOL, Moments, Origins, Rows
from sparse_dict.errors import UserError
from sparse_dict.machine import distributed
from sparse_dict.storage import files
from sparse_dict.tracking import Run

CARDS = 1 << 16  # dealt at once


class Shuffle:
    """Assigns a shard to each of `rows` rows, and an order to the rows of each shard.

    Row i gets the i-th card of a shuffled deck that names each shard as often as it has places; the
    deck is dealt in pieces of `cards`: how many of each shard are among them (multivariate
    hypergeometric), then in which order. So each of the rows! permutations is as likely as any
    other, and it follows from the arguments alone: processes that deal to rows of their own agree.

    Attributes:
        sizes: rows of each shard, int64 (n_shards,).
    """

    def __init__(self, rows: int, shard_rows: int, seed: int, cards: int = CARDS) -> None:
        full, rest = divmod(rows, shard_rows)
        self.rows = rows
        self.sizes = np.array([shard_rows] * full + [rest] * (rest > 0), np.int64)
        self._seed = seed
        self._cards = cards
        self._free = self.sizes.copy()  # places left in each shard behind the last dealt piece
        self._counts = np.random.Generator(np.random.Philox([seed, 0]))
        self._dealt = 0  # pieces
        self._piece = np.empty(0, np.int64)  # the last one's cards

    def deal(self, start: int, stop: int) -> NDArray[np.int64]:
        """Shards of rows start..stop-1, (stop - start,); no call may begin before the last one."""
        parts = []
        while start < stop:
            number = start // self._cards
            while self._dealt <= number:
                n = min(self._cards, self.rows - self._dealt * self._cards)
                counts = self._counts.multivariate_hypergeometric(self._free, n)
                self._free -= counts
                rng = np.random.Generator(np.random.Philox([self._seed, 1, self._dealt]))
                self._piece = rng.permutation(np.repeat(np.arange(len(counts)), counts))
                self._dealt += 1
            first = number * self._cards
            parts.append(self._piece[start - first : stop - first])
            start = min(stop, first + self._cards)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def order(self, shard: int) -> NDArray[np.int64]:
        """The order in which a shard holds the rows dealt to it, (sizes[shard],)."""
        rng = np.random.Generator(np.random.Philox([self._seed, 2, shard]))
        return rng.permutation(int(self.sizes[shard]))


WRITERS = 2  # shards finished at a time: while one waits for the disk, another is sorted
KINDS = ("shard", "origin")  # rows, and where they come from


@dataclass
class Source:
    """Rows to be written: how many, how wide, and what makes them."""

    rows: int
    d_in: int
    fields: dict[str, Any]  # what the manifest says of them
    # Adds all rows to a writer and logs to a run; returns values for the run's summary.
    fill: "Callable[[ShardWriter, Run], dict[str, Any]]"
    fingerprints: Callable[[], dict[str, str]]  # of what they were made from, when all are added


class ShardWriter:
    """Writes rows to shards in a uniformly random order, in the memory of two shards.

    A `Shuffle` assigns a shard to each incoming row. Rows are kept until they would fill a shard,
    then appended to a spool file of each shard. At the end each spool is read, put in order,
    written as ``.npy`` and deleted. The disk holds each row once, except for two shards. Of several
    processes each adds a contiguous part of the rows, in the order of the ranks, to spools of its
    own, then makes every `size`-th shard from those of all ranks: the files are the same, byte for
    byte.

    No file is valid until `finish` has written the manifest; a new writer starts afresh.
    """

    def __init__(
        self, folder: Path, rows: int, d_in: int, shard_rows: int, dtype: str, seed: int
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.d_in = d_in
        self.dtype = np.dtype(dtype)
        self._shuffle = Shuffle(rows, shard_rows, seed)
        kept = min(rows, shard_rows)
        self._kept = [np.empty((kept, d_in), self.dtype), np.empty((kept, 3), np.int32)]
        self._n_kept = 0
        self._added = 0
        self._next = 0  # number of the first row kept
        if distributed.main():
            if (folder / SPOOL).is_dir():  # what an interrupted harvest left
                for path in folder.glob("*.npy"):
                    if store.OURS.fullmatch(path.name):
                        path.unlink()
                remove_spools(folder)
            (folder / SPOOL).mkdir(parents=True, exist_ok=True)
        distributed.barrier()

    @property
    def row_bytes(self) -> int:
        return self.d_in * self.dtype.itemsize + 12

    def begin(self, row: int) -> None:
        """Say that the first row to be added will be number `row` of all: ranks share the work."""
        self._next = row

    def add(self, rows: Rows, origins: Origins) -> None:
        """Take the next `rows`, float32 or as the files hold them, (n, d_in); `origins` (n, 3)."""
        with np.errstate(over="ignore"):  # found below
            stored = rows.astype(self.dtype, copy=False)
        _refuse_unfit(rows, stored)
        self._added += len(rows)
        done = 0
        while done < len(rows):
            at = self._n_kept
            n = min(len(rows) - done, len(self._kept[0]) - at)
            for kept, new in zip(self._kept, (stored, origins), strict=True):
                kept[at : at + n] = new[done : done + n]
            self._n_kept += n
            done += n
            if self._n_kept == len(self._kept[0]):
                self._spool_kept()

    def _spool_kept(self) -> None:
        shards = self._shuffle.deal(self._next, self._next + self._n_kept)
        self._next += self._n_kept
        self._n_kept = 0
        counts = np.bincount(shards, minlength=len(self._shuffle.sizes))
        # a stable order, and for few shards by radix
        order = np.argsort(shards.astype(np.min_scalar_type(len(counts))), kind="stable")
        stops = np.cumsum(counts)
        for shard in np.flatnonzero(counts).tolist():
            chosen = order[stops[shard] - counts[shard] : stops[shard]]
            for kind, kept in zip(KINDS, self._kept, strict=True):
                with self._spool(shard, kind, distributed.rank()).open("ab") as file:
                    file.write(kept[chosen].data)  # `tofile` is silent when the disk is full

    def finish(self, fields: dict[str, Any], inputs: dict[str, str]) -> None:
        """Write the shards and, last, the manifest of `fields` and the fingerprints of `inputs`."""
        self._spool_kept()
        self._kept = []
        missing = self.rows - round(sum(distributed.gather(self._added)))
        if missing:
            raise ValueError(f"{missing} of {self.rows} rows are missing")
        own = range(distributed.rank(), len(self._shuffle.sizes), distributed.size())
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._write_shard, own))
        distributed.barrier()
        if distributed.main():
            self._write_manifest(fields, inputs)
        distributed.barrier()

    def _write_shard(self, i: int) -> None:
        order = self._shuffle.order(i)
        note: dict[str, Any] = {"rows": len(order)}
        for kind, prefix, width, dtype in zip(
            KINDS, ("", "origin_"), (self.d_in, 3), (self.dtype, np.dtype(np.int32)), strict=True
        ):
            spools = [self._spool(i, kind, rank) for rank in range(distributed.size())]
            values = _read_whole(spools, len(order), width, dtype)
            moments = Moments(width) if kind == "shard" else None
            name = f"{kind}-{i:05d}.npy"
            sha256 = self._save(name, values, order, moments)
            note |= {f"{prefix}file": name, f"{prefix}sha256": sha256}
            if moments:
                note |= {"sum": moments.sum.tolist(), "squares": moments.squares.tolist()}
            for path in spools:
                path.unlink(missing_ok=True)
        files.write_json(self._note(i), note)

    def _write_manifest(self, fields: dict[str, Any], inputs: dict[str, str]) -> None:
        moments = Moments(self.d_in)
        shards = []
        notes = [self._note(i) for i in range(len(self._shuffle.sizes))]
        for note in map(files.read_json, notes):
            moments.n += note["rows"]
            moments.sum += note.pop("sum")
            moments.squares += note.pop("squares")
            shards.append(note)
        for place in fields.get("sites", []):
            place["rms"] = moments.rms(*place["columns"])
        manifest = fields | {
            "format_version": store.FORMAT_VERSION,
            "rows": self.rows,
            "d_in": self.d_in,
            "dtype": self.dtype.name,
            "mean": moments.mean.tolist(),
            "rms": moments.rms(),
            "shards": shards,
        }
        own = store.fingerprint_of(manifest, inputs)
        manifest["fingerprints"] = inputs | {"activations": own}
        files.write_json(self.folder / store.MANIFEST, manifest)
        remove_spools(self.folder)

    def _spool(self, shard: int, kind: str, rank: int) -> Path:
        return self.folder / SPOOL / f"{kind}-{shard:05d}.{rank}"

    def _note(self, shard: int) -> Path:
        return self.folder / SPOOL / f"{shard:05d}.json"

    def _save(
        self, name: str, values: NDArray[Any], order: NDArray[np.int64], moments: Moments | None
    ) -> str:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(values)
        )
        digest = hashlib.sha256(header.getvalue())
        with files.replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            file.write(header.getvalue())
            for start in range(0, len(order), store.CACHE_ROWS):
                piece = np.take(values, order[start : start + store.CACHE_ROWS], axis=0)
                digest.update(piece.data)
                file.write(piece.data)
                if moments:
                    moments.add(piece)
        return digest.hexdigest()


def _read_whole(paths: list[Path], n: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    out = np.empty((n, width), dtype)
    left = out.reshape(-1).view(np.uint8).data
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                left = left[file.readinto(left) :]
    if len(left):
        raise ValueError(f"{paths[0].parent}: {len(left)} bytes are missing")
    return out


def _refuse_unfit(rows: Rows, stored: Rows) -> None:
    """See that `rows` are finite as they are `stored`."""
    import torch  # ten times as fast as numpy with float16

    if torch.stack(torch.from_numpy(stored).aminmax()).isfinite().all():
        return
    # of rows that are rounded already the harvest has seen that no value was infinite
    infinite = np.isinf(rows).any() and rows.dtype != np.float16
    if infinite or np.isnan(rows).any():
        raise UserError("activations are not finite")
    raise UserError(f"an activation does not fit {stored.dtype}: set harvest.dtype=float32")


def remove_spools(folder: Path) -> None:
    """Remove the subfolder for unfinished shards, if it is there."""
    shutil.rmtree(folder / SPOOL, ignore_errors=True)
