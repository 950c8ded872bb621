"""Which rows of the activations a dictionary sees: all but the last, or a part of these.

The last ones are for evaluation. Parts are made of blocks: rows of one context resemble each
other, and halves that share contexts would be less different than two samples of text are.
"""

import logging
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations, Moments
from sparse_dict.config.stages import SAETrainingConfig
from sparse_dict.errors import UserError

log = logging.getLogger(__name__)

BLOCK_ROWS = 8192  # at least: 32 contexts of 256
READ = 4096  # rows read at a time
# Evaluation rows differ from all rows if their mean lies this far off, in units of the spread of
# rows, and further than MEAN_ERRORS standard errors of a mean; or if they spread so much more or
# less.
FAR, MEAN_ERRORS, SPREAD = 0.1, 5, 1.5
# The RMS of rows. A value of 1e19, whose square is more than float32 holds, makes that of 1e14
# others 1e12; of errors, which are squares, records hold no more than 1e18.
SMALL, LARGE = 1e-12, 1e8


def training_rows(activations: Activations, eval_rows: int, batch_size: int) -> int:
    """How many rows at the beginning of the harvest are for training."""
    rows = activations.rows - eval_rows
    if rows < batch_size:
        raise UserError(
            f"{activations.folder} has {activations.rows:,} rows: too few for "
            f"training.eval_rows={eval_rows} and training.batch_size={batch_size}; lower them"
        )
    return rows


def moments_of(activations: Activations, start: int, stop: int) -> Moments:
    """Means and variances of the columns of rows start..stop-1."""
    found = Moments(activations.d_in)
    for first in range(start, stop, READ):
        found.add(activations.read(first, min(first + READ, stop)))
    return found


def check_evaluation_rows(activations: Activations, eval_rows: int) -> None:
    """See that the last rows vary and can be squared, and tell where they are unlike the rest."""
    if not SMALL < activations.rms < LARGE:
        raise UserError(
            f"{activations.folder}: scale its rows to an RMS near 1, not {activations.rms:.3g}"
        )
    last = moments_of(activations, activations.rows - eval_rows, activations.rows)
    variance = float(last.variance.mean())
    if variance <= 1e-12 * activations.rms**2:
        raise UserError(
            f"{activations.folder}: its last {eval_rows:,} rows are all the same: shuffle it"
        )
    if activations.manifest is not None:  # a harvest of ours is shuffled
        return
    mean, whole = activations.mean, activations.rms**2 - float((activations.mean**2).mean())
    off = math.sqrt(float(((last.mean - mean) ** 2).mean()) / whole)
    spread = math.sqrt(variance / whole)
    if off > max(FAR, MEAN_ERRORS / math.sqrt(eval_rows)) or not 1 / SPREAD < spread < SPREAD:
        log.warning(
            "not shuffled: FVU is of the last %s rows of %s, whose mean lies %.2f spreads from all "
            "rows', and which spread %.2f times as far", eval_rows, activations.folder, off, spread,
        )  # fmt: skip


class Rows:
    """The rows that `training.rows` selects, in the order in which they are seen."""

    def __init__(self, activations: Activations, training: SAETrainingConfig) -> None:
        self._activations = activations
        self.d_in = activations.d_in
        rows = training_rows(activations, training.eval_rows, training.batch_size)
        self._block = rows
        self._blocks = np.zeros(1, np.int64)  # numbers of blocks, in order
        if training.rows != "all":
            batches = -(-BLOCK_ROWS // training.batch_size)
            self._block = batches * training.batch_size
            self._blocks = _blocks(training, rows // self._block)
        if not len(self._blocks):
            raise UserError(
                f"{rows:,} rows are too few for blocks of {self._block:,} (training.rows)"
            )
        self.rows = len(self._blocks) * self._block  # each as often as it is selected

    def read_into(self, start: int, out: NDArray[Any]) -> None:
        """Put the selected rows from `start` on into `out`, (n, d_in)."""
        filled = 0
        while filled < len(out):
            block, within = divmod(start + filled, self._block)
            count = min(self._block - within, len(out) - filled)
            first = int(self._blocks[block]) * self._block + within
            self._activations.read_into(first, out[filled : filled + count])
            filled += count


def _blocks(training: SAETrainingConfig, n: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([training.rows_seed, n])
    if training.rows == "bootstrap":
        return rng.integers(n, size=n) if n > 1 else np.empty(0, np.int64)
    split, half = rng.permutation(n), n // 2
    return np.sort(split[:half] if training.rows == "half_a" else split[half : 2 * half])
