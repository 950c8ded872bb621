"""Activations on disk: shards of rows, and any folder of ``.npy`` files read in the same way."""

import hashlib
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, Self

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError, advising
from sparse_dict.storage import files, records
from sparse_dict.storage.arrays import Joined, Stored, stored
from sparse_dict.storage.records import Amount, ArrayName, Count, Line, Number, Positive
from sparse_dict.storage.untrusted import visible

Rows = NDArray[np.floating[Any]]
Floats = NDArray[np.float32]
Origins = NDArray[np.int32]

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PRE_ACTIVATIONS = "pre_activations"  # key of the manifest: see pre_activations.py
SPOOL = "partial"  # subfolder that is there from the first row to the manifest
OURS = re.compile(r"(shard|origin)-\d{5}\.npy")
SCAN_ROWS = 1 << 16
TAKE_ROWS = 1 << 13  # read at a time where a few of them are wanted
WHAT = "activations are what harvest.py writes, or a folder of .npy arrays"
CACHE_ROWS = 1 << 10  # few enough to stay in the cache as float64
SCAN_VALUES = 1 << 23  # values that are read at once


class _ShardRecord(TypedDict):  # a file of rows, and the one that says where they come from
    file: ArrayName
    rows: Positive
    sha256: Line
    origin_file: ArrayName
    origin_sha256: Line


class _Regime(TypedDict):  # what was measured of a layer: see `pre_activations.measure`
    layer: Count
    std: Number
    linear: Number


class Manifest(TypedDict):
    """`manifest.json`."""

    format_version: Literal[1]
    rows: Positive
    d_in: Positive
    dtype: Literal["float16", "float32"]
    mean: list[Number]
    rms: Amount
    shards: list[_ShardRecord]
    fingerprints: records.Texts
    site: NotRequired[Line]  # where there is one
    layer: NotRequired[Count]
    sites: NotRequired[list[dict[str, Any]]]  # where there are several
    pre_activations: NotRequired[list[_Regime]]
    config: NotRequired[dict[str, Any]]  # that it was harvested with
    corpus: NotRequired[dict[str, Any]]
    lm_dir: NotRequired[Line]
    lm_commit: NotRequired[Line | None]


class Activations:
    """Rows of activations, one after another across shards, read when they are asked for.

    Our own were shuffled over the whole harvest. A folder of ``.npy`` files made elsewhere is read
    in the order of their names; its mean, RMS and fingerprint cost a pass.
    """

    def __init__(
        self,
        folder: Path,
        shards: list[Stored],
        d_in: int,
        manifest: dict[str, Any] | None = None,
        origins: Sequence[Stored] = (),
    ) -> None:
        self.folder = folder
        self.folders = [folder]  # of each harvest that is read side by side
        self.shards = shards
        self.d_in = d_in
        self.manifest = manifest
        self._rows, self._origins = Joined(shards), Joined(origins)
        self._columns = slice(None)  # of the files', those that are seen
        self._sites: list[tuple[slice, float]] | None = None  # where they are not the manifest's

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open `folder`; files' headers are checked, their contents are not (see `verify`)."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError(f"{folder} does not exist: {WHAT}")
        if (folder / MANIFEST).exists():
            return cls._open_ours(folder)
        paths = visible(folder, "*.npy")
        if (folder / SPOOL).is_dir() or any(OURS.fullmatch(path.name) for path in paths):
            raise UserError(f"{folder} is incomplete: the harvest was interrupted, run it again")
        if not paths:
            raise UserError(f"{folder} holds no .npy files: {WHAT}")
        return cls._open_foreign(folder, paths)

    @classmethod
    def _open_ours(cls, folder: Path) -> Self:
        path = folder / MANIFEST
        with _again(folder):
            manifest = records.read(path, Manifest)
            prints = manifest["fingerprints"]
            if fingerprint_of(dict(manifest), prints) != prints.get("activations"):
                raise UserError(f"{path} has changed since it was written")
            d_in, dtype, listed = manifest["d_in"], np.dtype(manifest["dtype"]), manifest["shards"]
            shards = [stored(folder / s["file"], dtype, (s["rows"], d_in)) for s in listed]
            int32 = np.dtype(np.int32)
            origins = [stored(folder / s["origin_file"], int32, (s["rows"], 3)) for s in listed]
        return cls(folder, shards, d_in, dict(manifest), origins)

    @classmethod
    def _open_foreign(cls, folder: Path, paths: list[Path]) -> Self:
        shards = [Stored(path) for path in paths]
        for array in shards:
            if len(array.shape) != 2 or array.dtype.kind != "f" or array.dtype.itemsize > 8:
                raise UserError(
                    f"{array.path} is {array.dtype} {array.shape}: save .float().reshape(-1, d)"
                )
            if (width := array.shape[1]) != (first := shards[0].shape[1]):
                raise UserError(f"{array.path} is {width} wide, {paths[0].name} is {first}")
        if not first or not sum(map(len, shards)):
            raise UserError(f"{folder} holds .npy files without a single value")
        return cls(folder, shards, first)

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean row, (d_in,)."""
        return self._moments[0]

    @property
    def rms(self) -> float:
        """Root mean square over all entries of all rows."""
        return self._moments[1]

    @property
    def sites(self) -> list[tuple[slice, float]]:
        """The columns and the RMS of each site; foreign arrays count as one site."""
        if self._sites is not None:
            return self._sites
        whole = {"columns": [0, self.d_in], "rms": self.rms}
        places = (self.manifest or {}).get("sites") or [whole]
        return [(slice(*place["columns"]), float(place["rms"])) for place in places]

    @property
    def site_names(self) -> list[str]:
        """As `sae.site` names them, LAYER/SITE; none of foreign arrays."""
        manifest = self.manifest or {}
        places = manifest.get("sites") or [manifest] * ("site" in manifest)
        layers = [f"{p['layer']}/" if p.get("layer") is not None else "" for p in places]
        return [f"{layer}{p['site']}" for layer, p in zip(layers, places, strict=True)]

    def at(self, site: Site | str | None, key: str | None = None) -> "Activations":
        """The same rows, with the columns of one site, or all for None; `key` is what names it."""
        if site is None:
            return self
        site, names = str(site), self.site_names
        if names == [site]:
            return self
        if site not in names:
            there = ", ".join(names) or "sites that have no name"
            asked = f"{key}={site}" if key else f"the site {site}"
            raise UserError(f"{asked} is not in {self.folder}, which holds {there}")
        columns, rms = self.sites[names.index(site)]
        one = copy(self)
        one.d_in = columns.stop - columns.start
        one._columns, one._sites = columns, [(slice(0, one.d_in), rms)]
        one._moments = self.mean[columns], rms, self.fingerprint
        return one

    @property
    def mean_to_spread(self) -> float:
        """The norm of the mean row over the spread about it, the largest of the sites'."""
        return max(mean_to_spread(self.mean[columns], rms) for columns, rms in self.sites)

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
        scanned = moments.at_once * max(1, SCAN_VALUES // (moments.at_once * self.d_in))
        digests = []
        for shard in self.shards:
            digest = hashlib.sha256()
            for start in range(0, len(shard), scanned):
                stored = np.ascontiguousarray(shard[start : start + scanned])
                digest.update(stored.data)
                with np.errstate(over="ignore"):  # of float64 values, found below
                    rows = stored.astype(np.float32)
                bad = np.flatnonzero(~np.isfinite(rows).all(1))
                if len(bad):
                    raise UserError(f"{shard.path} row {start + bad[0]}: not a finite float32")
                moments.add(rows)
            digests.append([shard.path.name, str(shard.dtype), len(shard), digest.hexdigest()])
        return moments.mean, moments.rms(), files.fingerprint([self.d_in, digests])

    def read(self, start: int, stop: int) -> Floats:
        """Rows start..stop-1, (stop - start, d_in)."""
        out = np.empty((stop - start, self.d_in), np.float32)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: Floats) -> None:
        """Fill `out`, (n, d_in) float32, with rows start..start+n-1."""
        for part, where in self._rows.pieces(start, start + len(out)):
            rows = part[:, self._columns]
            if rows.dtype == np.float16 and rows.dtype.isnative:
                import torch  # fifteen times as fast as numpy at this

                torch.from_numpy(out[where]).copy_(torch.from_numpy(rows))
            else:
                out[where] = rows

    def take(self, rows: NDArray[np.int64]) -> Floats:
        """Some rows, in any order, (n, d_in); the files are read once, a piece at a time."""
        out = np.empty((len(rows), self.d_in), np.float32)
        order = np.argsort(rows)
        pieces = np.flatnonzero(np.diff(rows[order] // TAKE_ROWS)) + 1
        for part in np.split(order, pieces) if len(rows) else ():
            start = int(rows[part[0]]) // TAKE_ROWS * TAKE_ROWS
            out[part] = self.read(start, min(start + TAKE_ROWS, self.rows))[rows[part] - start]
        return out

    def origins(self, start: int, stop: int) -> Origins | None:
        """Document, position in it and token of each row, (stop - start, 3); None if unknown."""
        if self.manifest is None:
            return None
        out = np.empty((stop - start, 3), np.int32)
        for part, where in self._origins.pieces(start, stop):
            out[where] = part
        return out

    def verify(self) -> None:
        """See that all shards are those that the manifest records; they are hashed anew."""
        if self.manifest is None:
            return
        with _again(self.folder):
            for shard in self.manifest["shards"]:
                for kind in ("", "origin_"):
                    path = self.folder / shard[f"{kind}file"]
                    files.refuse_change(path, shard[f"{kind}sha256"])


def mean_to_spread(mean: NDArray[np.float64], rms: float) -> float:
    """The norm of the mean row (d_in,) over the spread about it, or 0; `rms` is of the rows."""
    square = float((mean**2).mean())
    variance = rms**2 - square
    return math.sqrt(square / variance) if variance > 0 else 0.0


def fingerprint_of(manifest: dict[str, Any], inputs: dict[str, str]) -> str:
    """The fingerprint of rows that were made from `inputs`, as the rest of their manifest says."""
    apart = ("fingerprints", PRE_ACTIVATIONS, "mean_to_spread")  # the last of older harvests
    rest = {key: value for key, value in manifest.items() if key not in apart}
    inputs = {key: value for key, value in inputs.items() if key != "activations"}
    return files.fingerprint([inputs, rest])


class Moments:
    """Means and mean squares of the columns of rows, summed in float64 as they come."""

    def __init__(self, d_in: int) -> None:
        self.at_once = min(CACHE_ROWS, max(1, SCAN_VALUES // d_in))  # rows that are converted
        self.n = 0
        self.sum = np.zeros(d_in)
        self.squares = np.zeros(d_in)

    def add(self, rows: Rows) -> None:
        """Count `rows`, (n, d_in)."""
        import torch  # fifteen times as fast as numpy at converting float16

        for start in range(0, len(rows), self.at_once):
            part = np.ascontiguousarray(rows[start : start + self.at_once])
            wide = torch.from_numpy(part).double().numpy()
            self.n += len(wide)
            self.sum += wide.sum(0)
            self.squares += np.einsum("ij,ij->j", wide, wide)

    @property
    def mean(self) -> NDArray[np.float64]:
        return self.sum / self.n

    @property
    def variance(self) -> NDArray[np.float64]:
        """Of each column about its own mean, (d_in,)."""
        return np.maximum(self.squares / self.n - self.mean**2, 0)

    def rms(self, start: int = 0, stop: int | None = None) -> float:
        """Root of the mean square of all entries of columns start..stop-1."""
        return math.sqrt(float(self.squares[start:stop].mean()) / self.n)


def _again(folder: Path) -> AbstractContextManager[None]:
    return advising(f"delete {folder / MANIFEST} and harvest again")
