"""Which rows of the activations are for training: all but the last, which are for evaluation."""

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError


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
