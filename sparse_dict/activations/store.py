"""Activations on disk: shards of rows, and any folder of ``.npy`` files read in the same way."""

import hashlib
import io
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparse_dict import distributed, files
from sparse_dict.activations.deck import Deck
from sparse_dict.errors import UserError

Rows = NDArray[np.floating[Any]]
Floats = NDArray[np.float32]
Origins = NDArray[np.int32]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPOOL = "partial"  # subfolder that is there from the first row to the manifest
OURS = re.compile(r"(shard|origin)-\d{5}\.npy")
SPOOLED = re.compile(r"\d{5}|\d{5}[.]json|(shard|origin)-\d{5}[.]\d+|[.].*[.]tmp")
WRITERS = 2  # shards finished at a time: while one waits for the disk, another is sorted
KINDS = ("shard", "origin")  # rows, and where they come from
SCAN_ROWS = 1 << 16
CACHE_ROWS = 1 << 10  # few enough to stay in the cache as float64


@dataclass(frozen=True)
class Shard:
    """One file of rows and, for our own, the one that tells where they come from."""

    path: Path
    rows: int
    origin_path: Path | None = None
    sha256: str | None = None
    origin_sha256: str | None = None


class Activations:
    """Rows of activations, one after another across memory-mapped shards.

    Our own rows were shuffled over the whole harvest. A folder of somebody else's ``.npy`` files is
    read in the order of the files' names and its rows are taken to be shuffled already; its mean,
    RMS and fingerprint cost one pass over it when first asked for.
    """

    def __init__(
        self, folder: Path, shards: list[Shard], d_in: int, manifest: dict[str, Any] | None
    ) -> None:
        self.folder = folder
        self.shards = shards
        self.d_in = d_in
        self.manifest = manifest
        self._arrays = [_mapped(shard.path) for shard in shards]
        self._starts = np.cumsum([0] + [shard.rows for shard in shards])  # (shards + 1,)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open `folder`; files' headers are checked, their contents are not (see `verify`).

        Raises:
            UserError: the folder is missing, empty or incomplete, or a file or the manifest is
                malformed, truncated, or does not fit the others.
        """
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: run harvest.py, or set activations_dir")
        if (folder / MANIFEST).exists():
            return cls._open_ours(folder)
        paths = sorted(folder.glob("*.npy"))
        if (folder / SPOOL).is_dir() or any(OURS.fullmatch(path.name) for path in paths):
            raise UserError(f"{folder} is incomplete: the harvest was interrupted, run it again")
        if not paths:
            raise UserError(f"{folder} holds no .npy files: run harvest.py, or set activations_dir")
        return cls._open_foreign(folder, paths)

    @classmethod
    def _open_ours(cls, folder: Path) -> Self:
        path = folder / MANIFEST
        manifest = files.read_json(path)
        try:
            shards, d_in, dtype = _parsed(folder, manifest)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is malformed: {error}") from None
        for shard in shards:
            assert shard.origin_path is not None
            _check_array(shard.path, (shard.rows, d_in), dtype)
            _check_array(shard.origin_path, (shard.rows, 3), np.dtype(np.int32))
        return cls(folder, shards, d_in, manifest)

    @classmethod
    def _open_foreign(cls, folder: Path, paths: list[Path]) -> Self:
        shards = []
        width = None
        for path in paths:
            array = _mapped(path)
            if array.ndim != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8:
                raise UserError(
                    f"{path} is {array.dtype} {array.shape}, not float16, float32 or float64 rows"
                )
            width = array.shape[1] if width is None else width
            if array.shape[1] != width:
                raise UserError(f"{path} is {array.shape[1]} wide, {paths[0].name} is {width}")
            shards.append(Shard(path, len(array)))
        if not width or not sum(shard.rows for shard in shards):
            raise UserError(f"{folder} holds .npy files without a single value")
        return cls(folder, shards, width, None)

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return int(self._starts[-1])

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row, (d_in,)."""
        return self._moments[0]

    @property
    def rms(self) -> float:
        """Root mean square over all entries of all rows."""
        return self._moments[1]

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify the rows and, for our own, how they were made."""
        return self._moments[2]

    @cached_property
    def _moments(self) -> tuple[NDArray[np.float64], float, str]:
        if self.manifest is not None:
            fingerprint = self.manifest["fingerprints"]["activations"]
            return np.array(self.manifest["mean"]), float(self.manifest["rms"]), fingerprint
        moments = Moments(self.d_in)
        digests = []
        for shard, array in zip(self.shards, self._arrays, strict=True):
            digest = hashlib.sha256()
            for start in range(0, shard.rows, SCAN_ROWS):
                stored = np.ascontiguousarray(array[start : start + SCAN_ROWS])
                digest.update(stored.data)
                with np.errstate(over="ignore"):  # of float64 values, found below
                    rows = stored.astype(np.float32)
                bad = np.flatnonzero(~np.isfinite(rows).all(1))
                if len(bad):
                    raise UserError(f"{shard.path} row {start + bad[0]}: not a finite float32")
                moments.add(rows)
            digests.append([shard.path.name, str(array.dtype), shard.rows, digest.hexdigest()])
        return moments.mean, moments.rms(), files.fingerprint([self.d_in, digests])

    def read(self, start: int, stop: int) -> Floats:
        """Rows start..stop-1, (stop - start, d_in)."""
        out = np.empty((stop - start, self.d_in), np.float32)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: Floats) -> None:
        """Fill `out`, (n, d_in) float32, with rows start..start+n-1."""
        self._copy(self._arrays, start, out)

    def origins(self, start: int, stop: int) -> Origins | None:
        """Document, position in it and token of each row, (stop - start, 3); None if unknown."""
        if self.manifest is None:
            return None
        out = np.empty((stop - start, 3), np.int32)
        self._copy(self._origin_arrays, start, out)
        return out

    @cached_property
    def _origin_arrays(self) -> list[NDArray[Any]]:
        return [_mapped(shard.origin_path) for shard in self.shards if shard.origin_path]

    def _copy(self, arrays: list[NDArray[Any]], start: int, out: NDArray[Any]) -> None:
        stop = start + len(out)
        if not 0 <= start <= stop <= self.rows:
            raise IndexError(f"rows {start}..{stop} of {self.rows}")
        i = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < len(out):
            part = arrays[i][start + done - self._starts[i] :][: len(out) - done]
            _convert(part, out[done : done + len(part)])
            done += len(part)
            i += 1

    def changed(self) -> Iterator[Path]:
        """Files that are not those of the manifest; hashes all anew, which reads them whole."""
        for shard in self.shards:
            for path, wanted in (
                (shard.path, shard.sha256),
                (shard.origin_path, shard.origin_sha256),
            ):
                if path and wanted and files.sha256_file(path) != wanted:
                    yield path

    def verify(self) -> None:
        """See that there are no `changed` files.

        Raises:
            UserError: a file is not the one that the manifest describes.
        """
        for path in self.changed():
            raise UserError(f"{path} has changed since it was written: harvest again")


class Moments:
    """Means and mean squares of the columns of rows, summed in float64 as they come."""

    def __init__(self, d_in: int) -> None:
        self.n = 0
        self.sum = np.zeros(d_in)
        self.squares = np.zeros(d_in)

    def add(self, rows: Rows) -> None:
        """Count `rows`, (n, d_in)."""
        import torch  # fifteen times as fast as numpy at converting float16

        for start in range(0, len(rows), CACHE_ROWS):
            part = np.ascontiguousarray(rows[start : start + CACHE_ROWS])
            wide = torch.from_numpy(part).double().numpy()
            self.n += len(wide)
            self.sum += wide.sum(0)
            self.squares += np.einsum("ij,ij->j", wide, wide)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row, (d_in,)."""
        return self.sum / self.n

    def rms(self, start: int = 0, stop: int | None = None) -> float:
        """Root of the mean square of all entries of columns start..stop-1."""
        return math.sqrt(float(self.squares[start:stop].mean()) / self.n)


class ShardWriter:
    """Writes rows to shards in a uniformly random order, in the memory of two shards.

    A `Deck` tells the shard of each incoming row. Rows are kept until they would fill a shard, then
    appended to a spool file of each shard. At the end each spool is read, put into the deck's
    order, written as ``.npy`` and deleted. However many rows there are, at most two shards are in
    memory (the rows kept and those on their way to a spool; at the end two spools), and the disk
    holds each row once, but for two shards. All orders of all rows are equally likely.

    Of several processes (`distributed`) each adds one contiguous part of the rows, the parts in the
    order of the ranks, to spools of its own; then each makes every `size`-th shard, of the spools
    of all ranks. Since the deck knows the place of every row, the files are the same, byte for
    byte, whatever the number of processes.

    Nothing counts until `finish` has written the manifest; a new writer starts afresh.
    """

    def __init__(
        self, folder: Path, rows: int, d_in: int, shard_rows: int, dtype: str, seed: int
    ) -> None:
        self.folder = folder
        self.rows = rows
        self.d_in = d_in
        self.dtype = np.dtype(dtype)
        self._deck = Deck(rows, shard_rows, seed)
        kept = min(rows, shard_rows)
        self._kept = [np.empty((kept, d_in), self.dtype), np.empty((kept, 3), np.int32)]
        self._n_kept = 0
        self._added = 0
        self._next = 0  # number of the first row kept
        if distributed.main():
            start_afresh(folder)
            (folder / SPOOL).mkdir(parents=True, exist_ok=True)
        distributed.barrier()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row and its origin."""
        return self.d_in * self.dtype.itemsize + 12

    def begin(self, row: int) -> None:
        """Say that the first row to be added will be number `row` of all: ranks share the work."""
        self._next = row

    def add(self, rows: Rows, origins: Origins) -> None:
        """Take the next `rows`, float32 or as the files hold them, (n, d_in); `origins` (n, 3).

        Raises:
            UserError: a value is not finite, or too large for the files' dtype.
        """
        with np.errstate(over="ignore"):  # found below
            stored = rows.astype(self.dtype, copy=False)
        if not _finite(stored):
            raise _unfit(rows, self.dtype)
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
        """Append the rows that are kept to the spools."""
        shards = self._deck.deal(self._next, self._next + self._n_kept)
        self._next += self._n_kept
        self._n_kept = 0
        counts = np.bincount(shards, minlength=len(self._deck.sizes))
        # a stable order, and for few shards by radix
        order = np.argsort(shards.astype(np.min_scalar_type(len(counts))), kind="stable")
        stops = np.cumsum(counts)
        for shard in np.flatnonzero(counts).tolist():
            chosen = order[stops[shard] - counts[shard] : stops[shard]]
            for kind, kept in zip(KINDS, self._kept, strict=True):
                with self._spool(shard, kind, distributed.rank()).open("ab") as file:
                    file.write(kept[chosen].data)  # `tofile` is silent when the disk is full

    def finish(self, fields: dict[str, Any], inputs: dict[str, str]) -> None:
        """Write the shards and, last, the manifest: `fields`, ours, and the fingerprints.

        Where `fields` has several `sites`, each is given its RMS. `inputs` are the fingerprints of
        what the activations were made from.
        """
        self._spool_kept()
        self._kept = []
        missing = self.rows - round(sum(distributed.gather(self._added)))
        if missing:
            raise ValueError(f"{missing} of {self.rows} rows are missing")
        own = range(distributed.rank(), len(self._deck.sizes), distributed.size())
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._write_shard, own))
        distributed.barrier()
        if distributed.main():
            self._write_manifest(fields, inputs)
        distributed.barrier()

    def _write_shard(self, i: int) -> None:
        """Make a shard of its spools, and a note for the manifest."""
        order = self._deck.order(i)
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
        notes = [self._note(i) for i in range(len(self._deck.sizes))]
        for note in map(files.read_json, notes):
            moments.n += note["rows"]
            moments.sum += note.pop("sum")
            moments.squares += note.pop("squares")
            shards.append(note)
        for place in fields.get("sites", []):
            place["rms"] = moments.rms(*place["columns"])
        manifest = fields | {
            "format_version": FORMAT_VERSION,
            "rows": self.rows,
            "d_in": self.d_in,
            "dtype": self.dtype.name,
            "mean": moments.mean.tolist(),
            "rms": moments.rms(),
            "shards": shards,
        }
        own = files.fingerprint([inputs, manifest])
        manifest["fingerprints"] = inputs | {"activations": own}
        files.write_json(self.folder / MANIFEST, manifest)
        remove_spools(self.folder)

    def _spool(self, shard: int, kind: str, rank: int) -> Path:
        return self.folder / SPOOL / f"{kind}-{shard:05d}.{rank}"

    def _note(self, shard: int) -> Path:
        return self.folder / SPOOL / f"{shard:05d}.json"

    def _save(
        self, name: str, values: NDArray[Any], order: NDArray[np.int64], moments: Moments | None
    ) -> str:
        """Write ``values[order]`` as ``.npy``; its SHA-256. Piece by piece, each in the cache."""
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, np.lib.format.header_data_from_array_1_0(values)
        )
        digest = hashlib.sha256(header.getvalue())
        with files.replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            file.write(header.getvalue())
            for start in range(0, len(order), CACHE_ROWS):
                piece = np.take(values, order[start : start + CACHE_ROWS], axis=0)
                digest.update(piece.data)
                file.write(piece.data)
                if moments:
                    moments.add(piece)
        return digest.hexdigest()


def _read_whole(paths: list[Path], n: int, width: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The rows of several spools, one after the other, (n, width)."""
    out = np.empty((n, width), dtype)
    left = out.reshape(-1).view(np.uint8).data
    for path in paths:
        if path.exists():
            with path.open("rb") as file:
                left = left[file.readinto(left) :]
    if len(left):
        raise ValueError(f"{paths[0].parent}: {len(left)} bytes are missing")
    return out


def _finite(rows: Rows) -> bool:
    if rows.dtype != np.float16:
        return bool(np.isfinite(rows).all())
    # ten times as fast: infinities and NaN are what has all bits of the exponent
    exponents = rows.view(np.int16) & 0x7C00
    return not (exponents == 0x7C00).any()


def _unfit(rows: Rows, dtype: np.dtype[Any]) -> UserError:
    """Why `rows` cannot be stored."""
    if np.isnan(rows).any() or (rows.dtype != dtype and not np.isfinite(rows).all()):
        return UserError("the model's activations are not finite: train it again")
    if rows.dtype != dtype:
        most = f"an activation of {np.abs(rows).max():.3g} does not fit {dtype}"
        return UserError(f"{most}: set harvest.dtype=float32")
    if dtype == np.float16:  # rounded already: what it was is not known any more
        return UserError("an activation does not fit float16: set harvest.dtype=float32")
    return UserError("the model's activations are not finite: train it again")


def check_output(folder: Path) -> None:
    """Refuse a folder that holds somebody else's arrays.

    Raises:
        UserError: there are ``.npy`` files that no harvest has put there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"activations_dir: {folder} is not a folder")
    if (folder / MANIFEST).exists() or (folder / SPOOL).is_dir():
        return
    if any(folder.glob("*.npy")):
        raise UserError(f"{folder} holds .npy files that harvest.py did not write: choose another")


def start_afresh(folder: Path) -> None:
    """Remove what an interrupted harvest left in `folder`, and nothing else."""
    if not (folder / SPOOL).is_dir():
        return
    for path in folder.glob("*.npy"):
        if OURS.fullmatch(path.name):
            path.unlink()
    remove_spools(folder)


def remove_spools(folder: Path) -> None:
    """Remove the subfolder for unfinished shards, if it is there and holds nothing else."""
    with suppress(FileNotFoundError):
        for path in (folder / SPOOL).iterdir():
            if SPOOLED.fullmatch(path.name):
                path.unlink()
    with suppress(OSError):
        (folder / SPOOL).rmdir()


def _parsed(folder: Path, manifest: dict[str, Any]) -> tuple[list[Shard], int, np.dtype[Any]]:
    """Shards, width and dtype of a manifest.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: it is malformed.
    """
    if manifest["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format version {manifest['format_version']!r} is not {FORMAT_VERSION}")
    d_in = _positive(manifest, "d_in")
    if manifest["dtype"] not in ("float16", "float32"):
        raise ValueError(f"dtype is {manifest['dtype']!r}")
    shards = [
        Shard(
            path=_inside(folder, entry["file"]),
            rows=_positive(entry, "rows"),
            origin_path=_inside(folder, entry["origin_file"]),
            sha256=str(entry["sha256"]),
            origin_sha256=str(entry["origin_sha256"]),
        )
        for entry in manifest["shards"]
    ]
    if len({shard.path for shard in shards}) != len(shards):
        raise ValueError("a shard is listed twice")
    if sum(shard.rows for shard in shards) != _positive(manifest, "rows"):
        raise ValueError("the shards' rows do not add up")
    mean = np.array(manifest["mean"], np.float64)
    if mean.shape != (d_in,) or not np.isfinite(mean).all():
        raise ValueError(f"mean is not {d_in} finite numbers")
    if not math.isfinite(manifest["rms"]) or manifest["rms"] < 0:
        raise ValueError(f"rms is {manifest['rms']!r}")
    if not isinstance(manifest["fingerprints"]["activations"], str):
        raise TypeError("the fingerprint is no text")
    return shards, d_in, np.dtype(manifest["dtype"])


def _positive(entry: dict[str, Any], key: str) -> int:
    value = entry[key]
    if type(value) is not int or value <= 0:
        raise ValueError(f"{key} is {value!r}")
    return value


def _inside(folder: Path, name: str) -> Path:
    if not isinstance(name, str) or Path(name).name != name or not OURS.fullmatch(name):
        raise ValueError(f"{name!r} is no shard's name")
    return folder / name


def _mapped(path: Path) -> NDArray[Any]:
    try:
        # Copy-on-write rather than read-only: torch warns about arrays that it must not write to.
        return files.map_array(path, "c")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: harvest again") from None
    except ValueError as error:
        raise UserError(f"{path} is truncated or no array of numbers: {error}") from None


def _convert(part: NDArray[Any], out: NDArray[Any]) -> None:
    if part.dtype == np.float16 and part.dtype.isnative:
        import torch  # fifteen times as fast as numpy at this

        torch.from_numpy(out).copy_(torch.from_numpy(part))
    else:
        out[:] = part


def _check_array(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    array = _mapped(path)
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path} is {array.dtype} {array.shape}, the manifest says {dtype} {shape}: "
            "harvest again"
        )
