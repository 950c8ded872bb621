"""Whether the rows that dictionaries are measured on are like those that they are trained on."""

import math

import numpy as np
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations

PIECES, PIECE = 256, 64  # of each part so many pieces of so many rows are looked at, evenly spaced
# What does not matter, however sure it is: of the squared distance of the means over the summed
# variance, and of the distance of two distributions
SHIFT, DISTANCE = 0.05, 0.1


def warning(activations: Activations, eval_rows: int) -> str | None:
    """What to say of arrays whose last rows differ from the rest; None if they do not.

    A harvest of ours is shuffled. Of n and m rows that are, the squared distance of the means is
    1/n + 1/m of the summed variance on average; and the distributions of how far rows lie from the
    mean differ by more than 3 sqrt(1/n + 1/m) once in thirty million times (Kolmogorov and
    Smirnov: 2 exp(-2 3^2)), whatever their tails.
    """
    start = activations.rows - eval_rows
    if activations.manifest is not None or min(start, eval_rows) < 2:
        return None
    rest, last = _sample(activations, 0, start), _sample(activations, start, activations.rows)
    noise = 1 / len(rest) + 1 / len(last)
    mean = rest.mean(0)
    far, far_last = (np.sort(np.linalg.norm(rows - mean, axis=1)) for rows in (rest, last))
    spread = math.sqrt(np.square(far).mean())
    shift = float(np.linalg.norm(last.mean(0) - mean)) / spread if spread else 0.0
    both = np.concatenate([far, far_last])
    shares = (np.searchsorted(part, both, "right") / len(part) for part in (far, far_last))
    distance = float(np.abs(np.subtract(*shares)).max())
    if shift**2 <= max(SHIFT, 25 * noise) and distance <= max(DISTANCE, 3 * math.sqrt(noise)):
        return None
    return (
        f"{activations.folder} is not shuffled: its last {eval_rows:,} rows, which dictionaries "
        f"are measured on, lie {np.median(far_last):.3g} from the mean of the others, which lie "
        f"{np.median(far):.3g} from it (medians), and their own mean {shift * spread:.3g}: FVU, L0 "
        "and dead features are of other rows than those that are learned; save the rows in random "
        "order"
    )


def _sample(activations: Activations, start: int, stop: int) -> NDArray[np.float64]:
    """Rows of a part, (n, d_in): all of it if it is small."""
    if stop - start <= PIECES * PIECE:
        return activations.read(start, stop).astype(np.float64)
    firsts = np.linspace(start, stop - PIECE, PIECES).astype(int).tolist()
    return np.concatenate([activations.read(i, i + PIECE) for i in firsts]).astype(np.float64)
