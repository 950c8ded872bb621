"""Whether the rows that dictionaries are measured on are like those that they are trained on."""

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations

PIECES, PIECE = 256, 64  # of each part so many pieces of so many rows are looked at, evenly spaced
SHARE = 0.05  # of the variance: a difference below it does not matter to an FVU


def warning(activations: Activations, eval_rows: int) -> str | None:
    """What to say of arrays whose last rows differ from the rest; None if they do not.

    A harvest of ours is shuffled. Of n and m rows that are, the squared distance of the means is
    1/n + 1/m of the summed variance on average, and the two variances differ by their standard
    errors. Told is what is beyond SHARE by 25 times the former, or by six of the latter.
    """
    start = activations.rows - eval_rows
    if activations.manifest is not None or min(start, eval_rows) < 2:
        return None
    rest, last = _sample(activations, 0, start), _sample(activations, start, activations.rows)
    sizes = 1 / len(rest) + 1 / len(last)
    (mean, squares), (mean_last, squares_last) = _moments(rest), _moments(last)
    variance = squares.mean()
    if not variance:
        return None
    shift = float(np.square(mean_last - mean).sum() / variance)
    ratio = float(squares_last.mean() / variance)
    error = np.sqrt(squares.var() / len(rest) + squares_last.var() / len(last)) / variance
    if shift <= SHARE + 25 * sizes and abs(ratio - 1) <= SHARE + 6 * error:
        return None
    return (
        f"{activations.folder} is not shuffled: its last {eval_rows:,} rows, which dictionaries "
        f"are measured on, have {ratio:.2g} times the variance of the others, and their mean lies "
        f"{np.sqrt(shift):.2g} times the others' spread from theirs: FVU, L0 and dead features are "
        "of other rows than those that are learned; save the rows in random order"
    )


def _sample(activations: Activations, start: int, stop: int) -> NDArray[np.float64]:
    """Rows of a part, (n, d_in): all of it if it is small."""
    if stop - start <= PIECES * PIECE:
        return activations.read(start, stop).astype(np.float64)
    firsts = np.linspace(start, stop - PIECE, PIECES).astype(int).tolist()
    return np.concatenate([activations.read(i, i + PIECE) for i in firsts]).astype(np.float64)


def _moments(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean row, and each row's squared distance from it."""
    mean = rows.mean(0)
    return mean, np.square(rows - mean).sum(1)
