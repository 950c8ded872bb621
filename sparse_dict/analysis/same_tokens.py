"""Rows of two harvests that are of the same tokens, whatever order each was shuffled to."""

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError

Floats = NDArray[np.float32]

READ = 1 << 16  # rows read at a time
FEWEST = 1000


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
    return _taken(first, here[chosen]), _taken(second, there[chosen])


def _origins(activations: Activations) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Document and position of every row as one number, and its token, (rows,) each."""
    found = activations.origins(0, activations.rows)
    assert found is not None
    return (found[:, 0].astype(np.int64) << 32) | found[:, 1], found[:, 2]


def _taken(activations: Activations, rows: NDArray[np.int64]) -> Floats:
    out = np.empty((len(rows), activations.d_in), np.float32)
    for start in np.unique(rows // READ * READ).tolist():
        here = rows // READ * READ == start
        part = activations.read(start, min(start + READ, activations.rows))
        out[here] = part[rows[here] - start]
    return out
