"""Which rows of the activations a dictionary sees: all but the last, or a part of these.

The last ones are for evaluation. Parts are made of blocks: rows of one context resemble each
other, and halves that share contexts would be less different than two samples of text are.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations
from sparse_dict.config.sae import SAETrainingConfig
from sparse_dict.errors import UserError

BLOCK_ROWS = 8192  # at least: 32 contexts of 256


def training_rows(activations: Activations, eval_rows: int, batch_size: int) -> int:
    """How many rows at the beginning of the harvest are for training.

    Raises:
        UserError: the harvest is too small for the batch size and the evaluation rows.
    """
    rows = activations.rows - eval_rows
    if rows < batch_size:
        raise UserError(
            f"{activations.folder} has {activations.rows:,} rows: too few for "
            f"training.eval_rows={eval_rows} and training.batch_size={batch_size}; lower them"
        )
    return rows


class Rows:
    """The rows that `training.rows` selects, in the order in which they are seen.

    Attributes:
        rows: how many there are; one that is selected several times counts each time.
        d_in: their width.

    Raises:
        UserError: there are too few.
    """

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
                f"{activations.folder} has {rows:,} rows for training: too few for "
                f"training.rows={training.rows}, which takes blocks of {self._block:,}; "
                "harvest more, or lower training.batch_size"
            )
        self.rows = len(self._blocks) * self._block

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
    """Which of `n` blocks: those of one half of a random split, or n drawn with replacement."""
    rng = np.random.default_rng([training.rows_seed, n])
    if training.rows == "bootstrap":
        return rng.integers(n, size=n) if n > 1 else np.empty(0, np.int64)
    split, half = rng.permutation(n), n // 2
    return np.sort(split[:half] if training.rows == "half_a" else split[half : 2 * half])
