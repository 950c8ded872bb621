"""Harvests of the same tokens, such as two models' of one text, read as one: side by side."""

import math
from pathlib import Path

import numpy as np

from sparse_dict.activations.store import SCAN_ROWS, Activations, Floats
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.storage.files import fingerprint

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
        raise UserError(
            f"{one.folder} holds {one.rows:,} rows, {other.folder} {other.rows:,}: not the same"
        )
    for start in range(0, one.rows, SCAN_ROWS):
        stop = min(start + SCAN_ROWS, one.rows)
        ours, theirs = one.origins(start, stop), other.origins(start, stop)
        if ours is None or theirs is None:
            unknown = one if ours is None else other
            raise UserError(f"{unknown.folder} does not say where its rows come from")
        for i in np.flatnonzero((ours != theirs).any(1))[:1].tolist():
            places = " and ".join(str(tuple(found[i].tolist())) for found in (ours, theirs))
            raise UserError(
                f"{one.folder} and {other.folder} are not of the same text row for row: document, "
                f"position and token of row {start + i} are {places}"
            )
