"""Activations on disk: shards of rows, and any folder of ``.npy`` files read in the same way."""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparse_dict.errors import UserError, malformed
from sparse_dict.storage import files

Rows = NDArray[np.floating[Any]]
Floats = NDArray[np.float32]
Origins = NDArray[np.int32]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
SPOOL = "partial"  # subfolder that is there from the first row to the manifest
OURS = re.compile(r"(shard|origin)-\d{5}\.npy")
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
            raise UserError(f"{path} is malformed ({malformed(error)}): harvest again") from None
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
        """Files that are not those of the manifest; hashes all anew, which reads them whole.

        The manifest itself, if its own fingerprint does not fit.
        """
        if self.manifest is not None:
            prints = self.manifest["fingerprints"]
            if fingerprint_of(self.manifest, prints) != prints["activations"]:
                yield self.folder / MANIFEST
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


def fingerprint_of(manifest: dict[str, Any], inputs: dict[str, str]) -> str:
    """The fingerprint of rows that were made from `inputs`, as the rest of their manifest says."""
    rest = {key: value for key, value in manifest.items() if key != "fingerprints"}
    inputs = {key: value for key, value in inputs.items() if key != "activations"}
    return files.fingerprint([inputs, rest])


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
