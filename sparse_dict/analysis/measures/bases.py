"""What simpler bases reach: neurons, random directions, PCA, ICA and NMF at matched sparsity.

ICA and NMF cost rows * d_in^2: they are fitted on MOST_ROWS, where rows have more than 128 values
on fewer, at the cost of those (`most_rows`), and left out (`affordable`) where these are too few.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures.intervals import over_seeds, ratio
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.errors import UserError
from sparse_dict.machine.background import in_background

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]

LABELS = {
    "neurons": "neuron basis",
    "random": "random directions",
    "pca": "PCA",
    "ica": "ICA",
    "nmf": "NMF",
}
SIMPLE = ("neurons", "pca", "ica", "nmf")  # those that are no mere control
SOLVED = ("ica", "nmf")  # by iterations; the others are exact and quick
CHUNK = 4096  # rows encoded at a time
MOST_ROWS, WIDEST = 1 << 16, 128  # that the former are fitted on, and of how many values
FEWEST = 4  # rows for each direction that they are fitted on
ICA_ITERATIONS = 200
NMF_PASSES = 100  # at most


@dataclass(frozen=True, eq=False)
class Basis:
    """One baseline, fitted: unit directions with an offset, which does not count as a code.

    Codes are those of row - offset, all but the k of largest magnitude are dropped, and the
    reconstruction is offset + codes @ directions; nothing is refitted once k codes are chosen.
    Neurons, random directions (a uniformly random orthonormal basis) and PCA are orthonormal:
    codes are projections, and dropping the smallest is the best k-sparse approximation. ICA's codes
    are those of its unmixing matrix, in units of its unit-norm directions; NMF's are non-negative.
    The offset is the mean row, for NMF the smallest value of each neuron.
    """

    directions: Floats  # (n, d_in), unit rows
    offset: Floats  # (d_in,)
    project: Callable[[Floats], Floats]  # rows less the offset (m, d_in) to codes (m, n)
    signed: bool  # whether a direction and its opposite are the same
    complete: bool = False  # whether directions are orthonormal, as many as there are columns

    def encode(self, x: Floats) -> Floats:
        """All codes (m, n) of rows `x` (m, d_in)."""
        return self.project(x - self.offset)

    def sparse(self, x: Floats, ks: Sequence[int], codes: Floats | None = None) -> Iterator[Floats]:
        """Reconstructions (m, d_in) from the k largest codes of each row, for each of `ks`."""
        for kept in largest(self.encode(x) if codes is None else codes, ks):
            yield kept @ self.directions + self.offset

    def scaled(self, balance: Floats) -> "Basis":
        """The same for rows whose columns are `balance` (d_in,) times those that it was fitted to.

        Its directions are no longer unit rows, so that its codes stay what they were.
        """
        return replace(
            self, directions=self.directions * balance, offset=self.offset * balance,
            project=lambda centred: self.project(centred / balance), complete=False,
        )  # fmt: skip

    def errors(self, x: Floats, codes: Floats, ks: Sequence[int]) -> Wide:
        """Squared error of each row of `x` (m, d_in), encoded, with k codes, (m, len(ks)).

        What an orthonormal basis drops is the error: the smallest squares.
        """
        if not self.complete:
            made = self.sparse(x, ks, codes)
            return np.stack([squares(rows - x) for rows in made], axis=1)
        ordered = np.sort(np.square(codes, dtype=np.float64), axis=1)
        dropped = np.cumsum(np.pad(ordered, ((0, 0), (1, 0))), axis=1)  # by how many are dropped
        return dropped[:, [max(ordered.shape[1] - k, 0) for k in ks]]


def squares(rows: Floats | Wide) -> Wide:
    """Squared norms of rows (n, d), (n,)."""
    return np.asarray(np.square(rows, dtype=np.float64).sum(1))


def deviations(x: Floats) -> Wide:
    """Squared distances of rows (n, d) from their mean, (n,)."""
    mean = mean_of(x)
    return np.concatenate([squares(part - mean) for part in chunks(x)])


def largest(codes: Floats, ks: Sequence[int]) -> Iterator[Floats]:
    """Codes (m, n) of which all but the k of largest magnitude of a row are 0, for each of `ks`."""
    order = np.argsort(-np.abs(codes), axis=1)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(codes.shape[1])[None], axis=1)
    for k in ks:
        yield np.where(rank < k, codes, 0)


def at_sparsity(ks: Sequence[int], values: Wide, l0: float) -> Wide:
    """What lies at `l0` codes a row on curves (n, len(ks)) over rising whole `ks`, (n,).

    Linear between neighbours: fewer codes on some rows and more on the others. Beyond the ends, the
    value there.
    """
    place = float(np.interp(l0, ks, np.arange(len(ks))))
    left = int(place)
    right, share = min(left + 1, len(ks) - 1), place - left
    return np.asarray((1 - share) * values[:, left] + share * values[:, right])


def around(l0s: Iterable[float]) -> set[int]:
    """The whole numbers of codes on either side of each L0, one or more."""
    return {max(k, 1) for l0 in l0s for k in (math.floor(l0), math.ceil(l0))}


def chunks(x: Floats) -> Iterator[Floats]:
    """All rows in order, some at a time."""
    return (x[start : start + CHUNK] for start in range(0, len(x), CHUNK))


def mean_of(x: Floats) -> Wide:
    """The mean row, (d_in,)."""
    return np.asarray(sum(part.sum(0, dtype=np.float64) for part in chunks(x)) / len(x))


def most_rows(d_in: int) -> int:
    """How many rows of that width ICA and NMF are fitted on, which bounds their time."""
    return MOST_ROWS * WIDEST**2 // max(WIDEST, d_in) ** 2


def affordable(methods: Sequence[str], d_in: int) -> list[str]:
    """The methods without those that would take too long on rows of that width, which are logged.

    ICA of 2,112 values took seven minutes on 10,000 rows.
    """
    slow = [m for m in methods if m in SOLVED and most_rows(d_in) < FEWEST * d_in]
    if slow:
        named = " and ".join(LABELS[method] for method in slow)
        log.info("%s left out: rows of %s values are too wide for them", named, f"{d_in:,}")
    return [method for method in methods if method not in slow]


def fit(method: str, x: Floats, seed: int) -> Basis:
    """Fit a baseline, one of config's BASELINES, to rows `x` (n, d_in)."""
    n, d = x.shape
    if n < 2 * d:
        raise UserError(f"{n} rows are too few to fit {d} directions: use more")
    if method in SOLVED and most_rows(d) < n:
        log.info("%s: fitted on the first %s rows", LABELS[method], f"{most_rows(d):,}")
        x = x[: most_rows(d)]
    if method == "nmf":
        return _nmf(x, seed)
    exact = mean_of(x)
    mean = exact.astype(np.float32)
    match method:
        case "neurons":
            return neurons(mean)
        case "random":
            # The QR factor of a Gaussian matrix, its signs aside, is uniform (Haar).
            gaussian = np.random.default_rng(seed).standard_normal((d, d))
            return _orthogonal(in_background(lambda: np.linalg.qr(gaussian))[0], mean)
        case "pca":
            centred = (part - exact for part in chunks(x))
            scatter = sum(part.T @ part for part in centred)
            return _orthogonal(in_background(lambda: np.linalg.eigh(scatter))[1].T[::-1], mean)
        case "ica":
            return _ica(x, mean, seed)
    raise ValueError(f"unknown baseline {method!r}")


def neurons(mean: Floats) -> Basis:
    """The neuron basis about a mean row (d_in,)."""
    return _orthogonal(np.eye(len(mean)), mean)


def _orthogonal(directions: NDArray[Any], mean: Floats) -> Basis:
    rows = np.ascontiguousarray(directions, np.float32)
    return Basis(rows, mean, lambda centred: centred @ rows.T, signed=True, complete=True)


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Accept what a solver has after its last iteration, converged or not, on one thread.

    FastICA's products of a few hundred columns are 2.4 times slower on two. Around several threads,
    each of which enters it, too.
    """
    import sklearn.decomposition  # noqa: F401  # with the BLAS of scipy, which is limited as well
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of no convergence, and of lost rank
        yield


def _ica(x: Floats, mean: Floats, seed: int) -> Basis:
    """FastICA (Hyvärinen 1999), with as many components as the rows have dimensions."""
    from sklearn.decomposition import FastICA

    rows = x.astype(np.float64) - mean
    variances = np.linalg.eigvalsh(rows.T @ rows)
    rank = int((variances > 1e-10 * variances[-1]).sum())  # whitening would blow up the others
    ica = FastICA(
        rank, whiten="unit-variance", whiten_solver="eigh", max_iter=ICA_ITERATIONS,
        tol=1e-3, random_state=seed,
    )  # fmt: skip
    with on_one_thread():
        ica.fit(rows)
    norms = np.linalg.norm(ica.mixing_, axis=0)  # of the columns, one a component
    unmixing = (ica.components_ * norms[:, None]).astype(np.float32).T
    directions = np.ascontiguousarray((ica.mixing_ / norms).T, np.float32)
    return Basis(directions, mean, lambda centred: centred @ unmixing, signed=True)


def _nmf(x: Floats, seed: int) -> Basis:
    """Non-negative factors of what lies above each neuron's smallest value."""
    from sklearn.decomposition import MiniBatchNMF

    lowest: Floats = x.min(0)
    nmf = MiniBatchNMF(x.shape[1], init="nndsvda", max_iter=NMF_PASSES, random_state=seed)
    with on_one_thread():
        nmf.fit(x - lowest)
    norms = np.linalg.norm(nmf.components_, axis=1).astype(np.float32)
    used = norms > 0
    directions = (nmf.components_[used] / norms[used, None]).astype(np.float32)

    def project(above: Floats) -> Floats:
        # Rows that were not fitted may lie below the smallest value.
        with on_one_thread():
            codes = nmf.transform(np.maximum(above, 0))
        return np.asarray(codes[:, used] * norms[used], np.float32)

    return Basis(directions, lowest, project, signed=False)


def powers(codes: Floats) -> Wide:
    """Sums of the first four powers of codes (rows, n), feature by feature, (4, n)."""
    from scipy.sparse import csc_array

    known = csc_array(codes, dtype=np.float64)  # a dictionary's are mostly zero
    return np.stack([known.power(power).sum(0) for power in (1, 2, 3, 4)])


def kurtosis(sums: Wide, rows: int) -> Wide:
    """Excess kurtosis m4 / m2^2 - 3 of each feature, (n,), from `powers`; nan where none varies."""
    m1, r2, r3, r4 = sums / rows
    m2 = r2 - m1**2
    m4 = r4 - 4 * m1 * r3 + 6 * m1**2 * r2 - 3 * m1**4
    varied = m2 > 1e-12 * np.maximum(r2, 1e-300)
    return np.where(varied, m4 / np.where(varied, m2, 1) ** 2 - 3, np.nan)


def mmcs_between(first: Basis, second: Basis) -> float:
    """MMCS of the directions of two bases; a direction may match the opposite of another."""
    others = second.directions
    if second.signed:
        others = np.concatenate([others, -others])
    return float(max_cosine(first.directions, others, CHUNK).mean())


def compared(
    seeds: Sequence[Sequence[tuple[Wide, float]]],
    curves: Mapping[str, tuple[Sequence[int], Wide]],
    whole: Wide,
    over: str,
) -> dict[str, Any]:
    """Dictionaries against the simple basis that is best on average over all of them.

    Each dictionary, of several seeds, is what it leaves on each row or context, (n,), and its L0; a
    basis' curve what it leaves, (n, len(ks)), by its ks; `whole` (n,) is what both are shares of.
    Found are the `basis`, by its label, the shares that dictionaries, `ours`, and it, `theirs`,
    leave, and how much less the former do: over seeds, of a single one `over` the n.
    """
    theirs = {
        method: [np.mean([at_sparsity(*curve, l0) for _, l0 in of], axis=0) for of in seeds]
        for method, curve in curves.items()
    }
    best = min(theirs, key=lambda method: float(np.sum(theirs[method])))
    ours = [np.mean([left for left, _ in of], axis=0) for of in seeds]
    gains = [their - own for their, own in zip(theirs[best], ours, strict=True)]
    if len(seeds) > 1:
        less = over_seeds([float(gain.sum() / whole.sum()) for gain in gains])
    else:
        less = ratio(gains[0], whole, over)
    own, their = (float(np.mean(of, axis=0).sum() / whole.sum()) for of in (ours, theirs[best]))
    return {"basis": LABELS[best], "ours": own, "theirs": their, **asdict(less)}
