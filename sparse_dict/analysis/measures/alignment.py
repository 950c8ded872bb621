"""Maps from the activations of one model or layer to those of another, on the same tokens."""

from dataclasses import dataclass

import numpy as np

from sparse_dict.analysis.measures import Floats
from sparse_dict.analysis.measures.mcs import assign


@dataclass(frozen=True)
class Alignment:
    """How directions of one space are read in another; lengths do not count."""

    name: str
    matrix: Floats  # (d, e): a row of the first space times it is one of the second
    explained: float  # share of the second's variance, on tokens that it was not fitted on


def fit(first: Floats, second: Floats) -> list[Alignment]:
    """Identity, permutation and rotation, as far as the widths allow.

    The first half of the rows is fitted to, the second one measured on. Each map may scale all
    directions alike; a permutation is the one-to-one matching of largest sum of correlations (Li et
    al. 2015, arXiv 1511.07543), a rotation the solution of the orthogonal Procrustes problem
    (Schoenemann 1966), which with unequal widths keeps what fits into the smaller one.
    Rows (n, d) and (n, e) are of the same tokens.
    """
    half = len(first) // 2
    means = first[:half].mean(0, dtype=np.float64), second[:half].mean(0, dtype=np.float64)
    x, y = first - means[0], second - means[1]
    fitted, held_out = (x[:half], y[:half]), (x[half:], y[half:])
    cross = fitted[0].T @ fitted[1]  # (d, e)
    u, _, vt = np.linalg.svd(cross, full_matrices=False)
    maps = {"rotation": u @ vt}
    if cross.shape[0] == cross.shape[1]:
        spread = [np.sqrt(np.square(part).sum(0)) for part in fitted]
        partners, _ = assign(cross / np.maximum(np.outer(*spread), 1e-30))
        eye = np.eye(len(cross))
        maps = {"identity": eye, "permutation": eye[partners], **maps}
    return [Alignment(name, m, _explained(m, fitted, held_out)) for name, m in maps.items()]


def _explained(matrix: Floats, fitted: tuple[Floats, ...], held_out: tuple[Floats, ...]) -> float:
    """Share of the variance explained by the map, with the scale that suits the fitted rows."""
    mapped = fitted[0] @ matrix
    scale = float((mapped * fitted[1]).sum() / max(float(np.square(mapped).sum()), 1e-30))
    error = np.square(held_out[1] - scale * (held_out[0] @ matrix)).sum()
    return float(1 - error / max(float(np.square(held_out[1]).sum()), 1e-30))
