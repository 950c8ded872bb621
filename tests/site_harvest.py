"""Writes harvests of several sites, from rows that are given."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sparse_dict.activations.writer import ShardWriter


def harvest_of(folder: Path, rows: Mapping[str, np.ndarray], seed: int = 0) -> Path:
    """The rows of each site (n, width), side by side; of one site, as a harvest of it has them.

    Their order on disk depends on their number and the seed alone.
    """
    parts = [np.asarray(part, np.float32) for part in rows.values()]
    stops = np.cumsum([part.shape[1] for part in parts]).tolist()
    if len(parts) == 1:
        ((layer, name),) = (site.split("/") for site in rows)
        fields = {"layer": int(layer), "site": name}
    else:
        fields = {
            "sites": [
                {"site": site, "columns": [stop - part.shape[1], stop]}
                for site, part, stop in zip(rows, parts, stops, strict=True)
            ]
        }
    both = np.concatenate(parts, 1)
    writer = ShardWriter(folder, len(both), both.shape[1], len(both) // 3 + 1, "float32", seed)
    origins = np.zeros((len(both), 3), np.int32)
    origins[:, 1] = np.arange(len(both))
    writer.add(both, origins)
    writer.finish(fields, {})
    return folder
