"""Activations whose features are known: sparse sums of random directions, as in the toy models.

After "Taking features out of superposition with sparse autoencoders" (Sharkey et al. 2022) and the
code published for its replication. Row x = sum_i c_i f_i without noise; the features f_i are
uniform on the sphere; c_i is nonzero with probability p_i, which falls as decay^i and is scaled
such that sum_i p_i is the wanted mean number of active features.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict import tracking
from sparse_dict.activations.writer import ShardWriter, Source
from sparse_dict.config import HarvestStageConfig, ToyData
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files, tensor_files

Floats = NDArray[np.float32]

TRUTH = "truth.safetensors"  # features (n_features, d_in) and probabilities (n_features,)
CHUNK = 1 << 15  # rows made at a time


class Toy:
    """Draws rows of one toy model; `seed` decides its features, correlations and rows."""

    def __init__(self, data: ToyData, seed: int) -> None:
        self.data = data
        # ShardWriter shuffles with Philox(seed): rows must not come from the same stream.
        self._rng = np.random.default_rng([seed, 0x70])
        features = self._rng.standard_normal((data.n_features, data.d_in))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        self.features = features.astype(np.float32)  # (n_features, d_in), unit rows
        self.probabilities = probabilities(data)  # (n_features,)
        if data.correlated:
            from scipy.special import ndtri

            factor = np.linalg.cholesky(correlation_matrix(data.n_features, self._rng))
            self._factor = factor.T.astype(np.float32)
            self._bars = ndtri(self.probabilities).astype(np.float32)

    def rows(self, n: int) -> tuple[Floats, Floats]:
        """`n` more rows (n, d_in) and their codes (n, n_features)."""
        shape = (n, self.data.n_features)
        if self.data.correlated:
            # A Gaussian copula: feature i is active where the i-th of n_features correlated normal
            # variables lies below its p_i quantile, so each keeps its own probability.
            normal = self._rng.standard_normal(shape, np.float32) @ self._factor
            active = normal < self._bars
        else:
            active = self._rng.random(shape, np.float32) < self.probabilities
        values = self._rng.random(int(active.sum()), np.float32)
        if self.data.value == "product":
            values *= self._rng.random(len(values), np.float32)
        codes = np.zeros(shape, np.float32)
        codes[active] = values
        return codes @ self.features, codes


def probabilities(data: ToyData) -> NDArray[np.float64]:
    """How likely each feature is to be active, (n_features,)."""
    falling = data.decay ** np.arange(data.n_features)
    return np.asarray(data.n_active * falling / falling.sum())


def correlation_matrix(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random positive-definite correlation matrix, (n, n).

    As in the published code: a symmetrised matrix of U(0, 1) entries whose diagonal is raised until
    the smallest eigenvalue is positive; here divided to have ones on the diagonal.
    """
    matrix = rng.random((n, n))
    matrix = (matrix + matrix.T) / 2
    lowest = np.linalg.eigvalsh(matrix)[0]
    if lowest < 0:
        matrix -= 1.001 * lowest * np.eye(n)
    scale = np.sqrt(np.diag(matrix))
    return np.asarray(matrix / np.outer(scale, scale))


def source(config: HarvestStageConfig) -> Source:
    """`harvest.n_tokens` rows, and beside them, in `activations_dir`, the true features."""
    toy, rows = Toy(config.data, config.seed), config.harvest.n_tokens
    path = Path(config.activations_dir) / TRUTH

    def fill(writer: ShardWriter, _run: tracking.Run) -> dict[str, Any]:
        truth: dict[str, NDArray[Any]]
        truth = {"features": toy.features, "probabilities": toy.probabilities}
        tensor_files.write(path, truth)
        active = 0
        with Progress("toy activations", rows, "rows") as progress:
            for start in range(0, rows, CHUNK):
                n = min(CHUNK, rows - start)
                x, codes = toy.rows(n)
                origins = np.zeros((n, 3), np.int32)
                origins[:, 0] = np.arange(start, start + n)  # no documents: the row's own number
                writer.add(x, origins)
                active += int(np.count_nonzero(codes))
                progress.advance(n)
        return {"site": "toy", "active_per_row": active / rows}

    def fingerprints() -> dict[str, str]:
        return {"truth": files.fingerprint(files.sha256_file(path))}

    return Source(rows, config.data.d_in, {"site": "toy"}, fill, fingerprints)
