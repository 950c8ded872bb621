"""Harvests of the same tokens, such as two models' of one text: side by side, or row by row."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import SCAN_ROWS, Activations, Floats
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.storage.files import fingerprint

FEWEST = 1000  # tokens that two harvests must have in common
TOGETHER = "side_by_side"  # key of the manifest: the harvests' fingerprints


def open_all(*folders: Path) -> Activations:
    """The activations in a folder, or those of several side by side."""
    parts = [Activations.open(folder) for folder in folders]
    return parts[0] if len(parts) == 1 else SideBySide(parts)


class SideBySide(Activations):
    """Rows of several harvests of the same tokens; each one's sites are named after its study."""

    def __init__(self, parts: list[Activations]) -> None:
        for part in parts[1:]:
            refuse_other_tokens(parts[0], part)
        self.parts = parts
        self._stops = np.cumsum([part.d_in for part in parts]).tolist()
        names = [part.folder.resolve().parent.name for part in parts]
        if len({*names}) < len(names):
            names = [str(part.folder) for part in parts]
        sites = []
        for name, part, stop in zip(names, parts, self._stops, strict=True):
            for site, (columns, rms) in zip(part.site_names or ["rows"], part.sites, strict=True):
                first = stop - part.d_in
                ends = [first + columns.start, first + columns.stop]
                sites.append({"site": f"{name}: {site}", "columns": ends, "rms": rms})
        prints = [part.fingerprint for part in parts]
        manifest = {
            "sites": sites,
            "rows": parts[0].rows,
            TOGETHER: prints,
            "fingerprints": {"activations": fingerprint(prints)},
        }
        super().__init__(parts[0].folder, parts[0].shards, self._stops[-1], manifest)
        self.folders = [part.folder for part in parts]
        square = sum(part.d_in * part.rms**2 for part in parts) / self.d_in
        mean = np.concatenate([part.mean for part in parts])
        self._moments = mean, math.sqrt(square), fingerprint(prints)

    def at(self, site: Site | str | None, key: str | None = None) -> Activations:
        if site is not None:
            asked = f"{key}={site}" if key else f"the site {site}"
            raise UserError(f"{asked}: of harvests side by side all columns are read")
        return self

    def read_into(self, start: int, out: Floats) -> None:
        for part, stop in zip(self.parts, self._stops, strict=True):
            out[:, stop - part.d_in : stop] = part.read(start, start + len(out))

    def verify(self) -> None:
        for part in self.parts:
            part.verify()


def refuse_other_tokens(one: Activations, other: Activations) -> None:
    """See that row i of two harvests is of the same token of the same text, for every i."""
    if one.rows != other.rows:
        raise UserError(f"{one.folder} has {one.rows:,} rows, {other.folder} {other.rows:,}")
    for start in range(0, one.rows, SCAN_ROWS):
        stop = min(start + SCAN_ROWS, one.rows)
        ours, theirs = one.origins(start, stop), other.origins(start, stop)
        if ours is None or theirs is None:
            unknown = one if ours is None else other
            raise UserError(f"{unknown.folder} does not say where its rows come from")
        for i in np.flatnonzero((ours != theirs).any(1))[:1].tolist():
            places = " and ".join(str(tuple(found[i].tolist())) for found in (ours, theirs))
            raise UserError(
                f"row {start + i} of {one.folder} and {other.folder} is of other text: {places}"
            )


def paired(first: Activations, second: Activations, most: int) -> tuple[Floats, Floats]:
    """At most `most` rows of each, (n, d) and (n, e), row by row of the same token of the text.

    Foreign arrays do not say where their rows come from: two folders with equally many rows are
    taken to have them in the same order.
    """
    own = first.manifest is not None and second.manifest is not None
    if not own and first.rows != second.rows:
        raise UserError(
            f"{first.folder} has {first.rows:,} rows, {second.folder} {second.rows:,}, and nothing "
            "says which are of the same token"
        )
    if not own or first.fingerprint == second.fingerprint:
        stop = min(most, first.rows)
        return first.read(0, stop), second.read(0, stop)
    (places, tokens), (other_places, other_tokens) = _origins(first), _origins(second)
    _, here, there = np.intersect1d(places, other_places, assume_unique=True, return_indices=True)
    if len(here) < FEWEST:
        raise UserError(
            f"{first.folder} and {second.folder} have {len(here)} tokens in common: harvest the "
            "same text, with the same tokenizer and number of tokens"
        )
    if (tokens[here] != other_tokens[there]).any():
        raise UserError(
            f"{first.folder} and {second.folder} are of other text or another tokenizer"
        )
    chosen = np.argsort(here)[:most]  # in the shuffled order: a sample
    return first.take(here[chosen]), second.take(there[chosen])


def _origins(activations: Activations) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Document and position of every row as one number, and its token, (rows,) each."""
    found = activations.origins(0, activations.rows)
    assert found is not None
    return (found[:, 0].astype(np.int64) << 32) | found[:, 1], found[:, 2]
