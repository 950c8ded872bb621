"""What simpler bases reach: neurons, random directions, PCA, ICA and NMF at matched sparsity.

A baseline is a set of unit directions with an offset that it is given for free: a row's codes are
taken with respect to row - offset, all but the k codes of largest magnitude are dropped, and the
reconstruction is offset + codes @ directions. Neurons, random directions (a uniformly random
orthonormal basis) and PCA are complete and orthogonal: their codes are projections, and dropping
the smallest is the best k-sparse approximation. ICA's codes are those of its unmixing matrix, in
units of its unit-norm directions; NMF's are non-negative. As for a dictionary's, nothing is fitted
anew once the k codes are chosen. Offsets: the mean row, for NMF the smallest value of each neuron,
which makes the rest non-negative. Dictionaries have no offset.

Rows are read a chunk at a time, so memory does not grow with `baselines.rows`: PCA sums up the
covariance, NMF learns from one batch after another; ICA, which needs its rows at once, takes the
first IN_MEMORY of them (the rows of a harvest are shuffled).
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.activations.store import Activations
from sparse_dict.analysis.measures.mcs import max_cosine, normalised
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import UNTOLD, Draw, Section, Table
from sparse_dict.analysis.study import Entry, Study, seed_groups
from sparse_dict.config import AnalyzeConfig, BaselinesConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.folder import Dictionary
from sparse_dict.storage import files

Floats = NDArray[np.float32]
Wide = NDArray[np.float64]

LABELS = {
    "neurons": "neuron basis",
    "random": "random directions",
    "pca": "PCA",
    "ica": "ICA",
    "nmf": "NMF",
}
MARKERS = "os^DvPX*"  # one a family
CHUNK = 4096  # rows encoded at a time
IN_MEMORY = 1 << 16  # rows that a solver may hold at once
ICA_ITERATIONS = 200
NMF_BATCH = 1024
NMF_PASSES = 100  # over rows in memory, at most
NMF_ROWS = 1 << 20  # seen in all, at least, where there are more
NMF_FORGET = 0.7  # what an old row weighs after a whole pass (scikit-learn's default)


@dataclass(frozen=True, eq=False)
class Basis:
    """One baseline, fitted."""

    directions: Floats  # (n, d_in), unit rows
    offset: Floats  # (d_in,)
    project: Callable[[Floats], Floats]  # rows less the offset (m, d_in) to codes (m, n)
    signed: bool  # whether a direction and its opposite are the same

    def encode(self, x: Floats) -> Floats:
        """All codes (m, n) of rows `x` (m, d_in)."""
        return self.project(x - self.offset)

    def sparse(self, x: Floats, ks: Sequence[int]) -> Iterator[Floats]:
        """Reconstructions (m, d_in) from the k largest codes of each row, for each of `ks`."""
        codes = self.encode(x)
        order = np.argsort(-np.abs(codes), axis=1)
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(codes.shape[1])[None], axis=1)
        for k in ks:
            yield np.where(rank < k, codes, 0) @ self.directions + self.offset


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows start, ..., stop - 1 of width `d_in`, which `read` gives piece by piece."""

    read: Callable[[int, int], Floats]  # start and stop to (stop - start, d_in)
    start: int
    stop: int
    d_in: int

    @classmethod
    def of(cls, x: Floats) -> "Rows":
        """Rows that are in memory, (m, d_in)."""
        return cls(lambda start, stop: x[start:stop], 0, len(x), x.shape[1])

    def __len__(self) -> int:
        return self.stop - self.start

    def chunks(self, size: int = CHUNK) -> Iterator[Floats]:
        """All rows in order, `size` at a time."""
        for start in range(self.start, self.stop, size):
            yield self.read(start, min(start + size, self.stop))

    def first(self, n: int) -> Floats:
        """The first `n` rows, or all if there are fewer."""
        return self.read(self.start, min(self.start + n, self.stop))

    def mean(self) -> Wide:
        """The mean row, (d_in,)."""
        return np.asarray(sum(x.sum(0, dtype=np.float64) for x in self.chunks()) / len(self))

    def scatter(self, mean: Wide) -> Wide:
        """Sum over rows of the outer product of a row less `mean` with itself, (d_in, d_in)."""
        found = np.zeros((self.d_in, self.d_in))
        for x in self.chunks():
            centred = x - mean
            found += centred.T @ centred
        return found


def fit(method: str, rows: Rows, seed: int) -> Basis:
    """Fit a baseline, one of config's BASELINES.

    Raises:
        UserError: there are too few rows, or the solver fails on them.
    """
    d = rows.d_in
    if len(rows) < 2 * d:
        raise UserError(f"{len(rows)} rows are too few to fit {d} directions: use more")
    if method == "nmf":
        return _nmf(rows, seed)
    exact = rows.mean()
    mean = exact.astype(np.float32)
    match method:
        case "neurons":
            return _orthogonal(np.eye(d), mean)
        case "random":
            # The QR factor of a Gaussian matrix, its signs aside, is uniform (Haar).
            return _orthogonal(np.linalg.qr(_rng(seed).standard_normal((d, d)))[0], mean)
        case "pca":
            return _orthogonal(np.linalg.eigh(rows.scatter(exact))[1].T[::-1], mean)
        case "ica":
            return _ica(rows.first(IN_MEMORY), mean, seed)
    raise ValueError(f"unknown baseline {method!r}")


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _orthogonal(directions: NDArray[Any], mean: Floats) -> Basis:
    rows = np.ascontiguousarray(directions, np.float32)
    return Basis(rows, mean, lambda centred: centred @ rows.T, signed=True)


@contextmanager
def _bounded() -> Iterator[None]:
    """Takes what a solver has after its last iteration, on one thread.

    FastICA's products of a few hundred columns are 2.4 times slower on two.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it could go on, that rank is lost
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
    with _bounded():
        ica.fit(rows)
    norms = np.linalg.norm(ica.mixing_, axis=0)  # of the columns, one a component
    unmixing = (ica.components_ * norms[:, None]).astype(np.float32).T
    directions = np.ascontiguousarray((ica.mixing_ / norms).T, np.float32)
    return Basis(directions, mean, lambda centred: centred @ unmixing, signed=True)


def _nmf(rows: Rows, seed: int) -> Basis:
    """Non-negative factors of what lies above each neuron's smallest value."""
    from sklearn.decomposition import MiniBatchNMF

    lowest: Floats = np.min([x.min(0) for x in rows.chunks()], axis=0)
    whole = len(rows) <= IN_MEMORY
    # Given a batch, scikit-learn takes it for the whole of the data.
    forget = NMF_FORGET if whole else NMF_FORGET ** (NMF_BATCH / len(rows))
    nmf = MiniBatchNMF(
        rows.d_in, init="nndsvda", batch_size=NMF_BATCH, max_iter=NMF_PASSES,
        forget_factor=forget, random_state=seed,
    )  # fmt: skip
    with _bounded():
        if whole:
            nmf.fit(rows.first(IN_MEMORY) - lowest)
        else:
            for _ in range(-(-NMF_ROWS // len(rows))):
                for x in rows.chunks(NMF_BATCH):
                    nmf.partial_fit(x - lowest)
    norms = np.linalg.norm(nmf.components_, axis=1).astype(np.float32)
    used = norms > 0
    directions = (nmf.components_[used] / norms[used, None]).astype(np.float32)

    def project(above: Floats) -> Floats:
        # Rows that were not fitted may lie below the smallest value.
        with _bounded():
            codes = nmf.transform(np.maximum(above, 0))
        return np.asarray(codes[:, used] * norms[used], np.float32)

    return Basis(directions, lowest, project, signed=False)


# --- measures -------------------------------------------------------------------------------------


class Moments:
    """Sums of the first four powers of codes, feature by feature, as rows come."""

    def __init__(self, n: int) -> None:
        self._rows = 0
        self._active = 0
        self._sums = np.zeros((4, n))

    def add(self, codes: Floats) -> None:
        """Count `codes`, (rows, n)."""
        self._rows += len(codes)
        row, feature = np.nonzero(codes)  # a dictionary's are mostly zero
        self._active += len(row)
        values = codes[row, feature].astype(np.float64)
        powers = values.copy()
        for sums in self._sums:
            sums += np.bincount(feature, weights=powers, minlength=len(sums))
            powers *= values

    @property
    def l0(self) -> float:
        """Codes that are not zero in a row, mean."""
        return self._active / self._rows

    def kurtosis(self) -> Wide:
        """Excess kurtosis m4 / m2^2 - 3 of each feature, (n,); nan where codes never vary."""
        m1, r2, r3, r4 = self._sums / self._rows
        m2 = r2 - m1**2
        m4 = r4 - 4 * m1 * r3 + 6 * m1**2 * r2 - 3 * m1**4
        varied = m2 > 1e-12 * np.maximum(r2, 1e-300)
        return np.where(varied, m4 / np.where(varied, m2, 1) ** 2 - 3, np.nan)


def mmcs_between(first: Basis, second: Basis) -> float:
    """MMCS of the directions of two bases; a direction may match the opposite of another."""
    others = normalised(second.directions)
    if second.signed:
        others = np.concatenate([others, -others])
    return float(max_cosine(normalised(first.directions), others, CHUNK).mean())


def activations_of(study: Study, folder: Path) -> Activations:
    """The activations that the study's dictionaries were trained on.

    Raises:
        UserError: they are not in `folder`.
    """
    found = Activations.open(folder)
    fingerprint = (study.entries[0].metrics.get("fingerprints") or {}).get("activations")
    if found.fingerprint != fingerprint:
        raise UserError(f"{folder} holds other activations than the dictionaries were trained on")
    return found


@dataclass(frozen=True, eq=False)
class Measured:
    """All numbers of one study."""

    bases: dict[str, Basis]  # fitted on the first half, by method
    summary: pd.DataFrame  # one row a baseline
    front: pd.DataFrame  # one row a baseline and k
    dictionaries: pd.DataFrame  # one row a dictionary, a column of FVU for each baseline
    rows: tuple[int, int]  # fitted in each half, and measured


def measure(
    study: Study, activations: Activations, settings: BaselinesConfig, seed: int
) -> Measured:
    """Fit all baselines on two disjoint halves; measure them and the dictionaries on held-out rows.

    The rows to fit are the first ones that the dictionaries were trained on, those to measure the
    last ones of the harvest, which no dictionary has seen.

    Raises:
        UserError: there are too few rows.
    """
    held_out = min(int(entry.metrics["eval_rows"]) for entry in study.entries)
    half = min(settings.rows, activations.rows - held_out) // 2
    read, d_in = activations.read, activations.d_in
    halves = [Rows(read, 0, half, d_in), Rows(read, half, 2 * half, d_in)]
    n = min(held_out, settings.rows // 2)
    unseen = Rows(read, activations.rows - n, activations.rows, d_in)
    variance = float(np.trace(unseen.scatter(unseen.mean())))  # as the errors: summed over rows

    dictionaries = [_dictionary(entry, unseen, variance) for entry in study.entries]
    matched = {_matched(row["l0"], activations.d_in) for row in dictionaries}
    ks = sorted(matched | {k for k in settings.ks if k <= activations.d_in})
    bases, summary, front = {}, [], []
    for method in settings.methods:
        first, second = (fit(method, rows, seed + i) for i, rows in enumerate(halves))
        bases[method] = first
        moments, errors = Moments(len(first.directions)), np.zeros(len(ks))
        for part in unseen.chunks():
            moments.add(first.encode(part))
            for i, found in enumerate(first.sparse(part, ks)):
                errors[i] += np.square(found - part, dtype=np.float64).sum()
        summary.append(
            {
                "baseline": LABELS[method],
                "directions": len(first.directions),
                "mmcs_between_halves": mmcs_between(first, second),
                "kurtosis": _median(moments.kurtosis()),
            }
        )
        front += [
            {"method": method, "baseline": LABELS[method], "l0": k, "fvu": error / variance}
            for k, error in zip(ks, errors, strict=True)
        ]
    table = pd.DataFrame(front, columns=["method", "baseline", "l0", "fvu"])
    by_k = table.pivot(index="l0", columns="method", values="fvu")
    for row in dictionaries:
        row["k"] = _matched(row["l0"], activations.d_in)
        row |= {f"fvu_{method}": float(by_k[method][row["k"]]) for method in settings.methods}
    frame = pd.DataFrame(dictionaries)
    frame.insert(8, "mmcs_between_seeds", frame["dictionary"].map(_between_seeds(study)))
    return Measured(bases, pd.DataFrame(summary), table, frame, (half, n))


def _matched(l0: float, most: int) -> int:
    """How many codes a baseline keeps that is compared with a dictionary."""
    return min(max(round(l0), 1), most)


def _median(values: Wide) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _dictionary(entry: Entry, rows: Rows, variance: float) -> dict[str, Any]:
    dictionary: Dictionary = entry.trained.dictionary
    moments, error = Moments(entry.size), 0.0
    for part in rows.chunks():
        codes = dictionary.encode(part)
        moments.add(codes)
        error += float(np.square(dictionary.decode(codes) - part, dtype=np.float64).sum())
    return {
        "dictionary": entry.name,
        "family": entry.family,
        "dict_size": entry.size,
        "l1": entry.l1,
        "level": entry.level,
        "seed": entry.seed,
        "l0": moments.l0,
        "fvu": error / variance,
        "kurtosis": _median(moments.kurtosis()),
    }


def _between_seeds(study: Study) -> dict[str, float]:
    """MMCS of each dictionary with that of the next seed, the last with the first."""
    found = {}
    for group in seed_groups(study):
        rows = [normalised(entry.decoder) for entry in group]
        for i, entry in enumerate(group):
            found[entry.name] = float(max_cosine(rows[i], rows[(i + 1) % len(rows)], CHUNK).mean())
    return found


# --- report ---------------------------------------------------------------------------------------


def curves(
    dictionaries: pd.DataFrame,
    baselines: pd.DataFrame,
    value: str,
    label: str,
    title: str,
    limits: tuple[float, float] = (0, 1.05),
) -> Figure:
    """`value` against L0: a marked line a dictionary size, a plain one a baseline.

    A line joins dictionaries that differ only in how sparse they were made; families have markers
    of their own. Needs the columns family, dict_size, level, seed, l0 and `value`; baseline, l0 and
    `value`.
    """
    figure, axis = plt.subplots(figsize=(figures.WIDTH, 3.8))
    sizes = sorted(dictionaries["dict_size"].unique())
    shades = dict(zip(sizes, sns.color_palette("viridis", len(sizes)).as_hex(), strict=True))
    families = list(dict.fromkeys(dictionaries["family"]))
    markers = {name: MARKERS[i % len(MARKERS)] for i, name in enumerate(families)}
    for (family, size, _), line in dictionaries.groupby(["family", "dict_size", "seed"]):
        line = line.sort_values("level")
        marker = markers[str(family)]
        axis.plot(line["l0"], line[value], color=shades[size], marker=marker, ms=4, lw=0.8)
    for size in sizes:
        axis.plot([], [], color=shades[size], marker="o", ms=4, lw=0.8, label=f"dictionary, {size}")
    for family in families if len(families) > 1 else []:
        marker = markers[family]
        axis.plot([], [], color="0.4", ls="", marker=marker, ms=4, label=family or "(plain)")
    colours = (figures.GREY, "black", figures.ORANGE, figures.RED, figures.PURPLE)
    styles = ("-", ":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
    for i, (name, line) in enumerate(baselines.groupby("baseline", sort=False)):
        axis.plot(line["l0"], line[value], color=colours[i], ls=styles[i], lw=1.3, label=name)
    axis.set_ylim(*limits)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("active codes in a row (dictionaries: L0, mean)")
    axis.set_ylabel(label)
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_title(title)
    return figure


def section(study: Study, config: AnalyzeConfig, draw: Draw) -> tuple[Section, Measured | None]:
    """Baselines beside the dictionaries; `baselines.csv` and `baselines_matched.csv`.

    None, with the reason in the section, if the activations are not there or too few.
    """
    title, settings = "Simpler bases", config.baselines
    assert settings is not None
    try:
        activations = activations_of(study, Path(config.activations_dir))
        activations.verify()  # their rows are read here
        found = measure(study, activations, settings, config.seed)
    except UserError as error:
        return Section(title, [UNTOLD.format(error)]), None
    folder = Path(config.analysis_dir)
    front = found.front.drop(columns="method")
    files.write_text(folder / "baselines.csv", front.to_csv(index=False))
    files.write_text(folder / "baselines_matched.csv", found.dictionaries.to_csv(index=False))
    half, n = found.rows
    sampled = f" (ICA: on {IN_MEMORY:,} of them)" if half > IN_MEMORY else ""
    text = (
        f"Each basis was fitted on {half:,} rows{sampled} and has its codes cut to the k largest "
        "of a row; the codes are projections for neurons, random directions and PCA (orthogonal), "
        "those of the unmixing matrix for ICA, non-negative ones for NMF. Each is given an offset "
        "for free: the mean row, for NMF the smallest value of each neuron. Dictionaries have "
        "none, and their L1 penalty shrinks their codes. FVU, L0 and kurtosis are measured on the "
        f"same {n:,} held-out rows."
    )
    picture = draw(
        "baselines",
        curves(
            found.dictionaries, found.front, "fvu", "FVU: share of variance unexplained",
            "Reconstruction by dictionaries and by simpler bases",
        ),
        "Simpler bases at matched sparsity",
        "Towards the lower left is better. A dictionary's codes vary in number from row to row, a "
        "basis keeps k on each. Values above 1.05 are cut: ICA's and NMF's directions are not "
        "orthogonal, so few of their codes may fit worse than none.",
    )  # fmt: skip
    shown = {"mmcs_between_halves": "MMCS between halves of the rows"}
    summary = Table("Baselines", found.summary.rename(columns=shown))
    seeds = (
        "MMCS between halves compares the directions that two disjoint halves of the rows give "
        "(plain maximum, opposite directions being the same but for NMF); the neuron basis is "
        "fixed, and random directions give what chance does. Dictionaries were not trained on "
        "halves: where there are several seeds, the table below has their MMCS with the next seed "
        "on the same rows, which another sample cannot lower: not the same measure. "
        "Kurtosis is the median over features of the excess kurtosis of all codes, 0 for a "
        "normal law: a basis is privileged if it is high."
    )
    table = found.dictionaries.drop(columns=["dict_size", "l1", "level", "seed", "family"])
    columns = {f"fvu_{m}": f"FVU {LABELS[m]}" for m in settings.methods}
    columns["mmcs_between_seeds"] = "MMCS between seeds (same rows)"
    if found.dictionaries["mmcs_between_seeds"].isna().all():
        table = table.drop(columns="mmcs_between_seeds")
    matched = Table(
        "Dictionaries, and each basis with k codes (k: L0, rounded)",
        table.rename(columns=columns), fold=len(table) > 12,
    )  # fmt: skip
    return Section(title, [text, picture, seeds, summary, matched]), found
