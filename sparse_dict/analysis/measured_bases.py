"""The simpler bases of `measures.bases` on a study's activations, beside its dictionaries."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.activations.side_by_side import open_all
from sparse_dict.activations.store import Activations
from sparse_dict.analysis import harvested
from sparse_dict.analysis.measures.bases import (
    CHUNK,
    LABELS,
    Basis,
    Moments,
    Rows,
    affordable,
    fit,
    mmcs_between,
)
from sparse_dict.analysis.measures.mcs import max_cosine, normalised
from sparse_dict.analysis.study import Entry, Study, seed_groups
from sparse_dict.config import AnalyzeConfig, BaselinesConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress

Wide = NDArray[np.float64]


def activations_of(study: Study, config: AnalyzeConfig) -> Activations:
    """The activations that the study's dictionaries read: the columns of their site.

    They are looked for where `harvested` looks for their record, and may be arrays without one.

    Raises:
        UserError: they are in none of these.
    """
    wanted = (study.entries[0].metrics.get("fingerprints") or {}).get("activations")
    errors = []
    for folders in harvested.folders(config, study):
        try:
            found = open_all(*folders)
        except UserError as error:
            errors.append(error)
            continue
        if found.fingerprint == wanted:
            return found.at(study.site)
        what = "holds other activations than the dictionaries were trained on"
        errors.append(UserError(f"{' and '.join(map(str, folders))} {what}"))
    raise errors[0]


def targets_of(study: Study, config: AnalyzeConfig) -> Activations:
    """What the study's dictionaries reconstruct.

    Raises:
        UserError: as `activations_of`.
    """
    read = activations_of(study, config)
    return read if study.target is None else open_all(*read.folders).at(study.target)


@dataclass(frozen=True, eq=False)
class Measured:
    """All numbers of one study."""

    bases: dict[str, Basis]  # fitted on the first half, by method
    summary: pd.DataFrame  # one row per baseline
    front: pd.DataFrame  # one row per baseline and k
    dictionaries: pd.DataFrame  # one row per dictionary, a column of FVU for each baseline
    rows: tuple[int, int]  # fitted in each half, and measured


def measure(
    study: Study, activations: Activations, settings: BaselinesConfig, seed: int
) -> Measured:
    """Fit all baselines on two disjoint halves; measure them and the dictionaries on held-out rows.

    The rows to fit are the first ones that the dictionaries were trained on, those to measure the
    last ones of the harvest, which no dictionary has seen.

    Raises:
        UserError: there are too few rows, or they are too wide for all methods.
    """
    if not (methods := affordable(settings.methods, activations.d_in)):
        raise UserError(f"rows of {activations.d_in:,} values are too wide for these methods")
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
    with Progress("baselines", len(methods), "methods") as progress:
        for method in methods:
            progress.say(LABELS[method])
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
            progress.advance(1)
    table = pd.DataFrame(front, columns=["method", "baseline", "l0", "fvu"])
    by_k = table.pivot(index="l0", columns="method", values="fvu")
    for row in dictionaries:
        row["k"] = _matched(row["l0"], activations.d_in)
        row |= {f"fvu_{method}": float(by_k[method][row["k"]]) for method in methods}
    frame = pd.DataFrame(dictionaries).drop(columns="axis")
    frame.insert(8, "mmcs_between_seeds", frame["dictionary"].map(_between_seeds(study)))
    return Measured(bases, pd.DataFrame(summary), table, frame, (half, n))


def _matched(l0: float, most: int) -> int:
    """How many codes a baseline keeps that is compared with a dictionary."""
    return min(max(round(l0), 1), most)


def _median(values: Wide) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _dictionary(entry: Entry, rows: Rows, variance: float) -> dict[str, Any]:
    dictionary = entry.trained.dictionary
    moments, error = Moments(entry.size), 0.0
    for part in rows.chunks():
        codes = dictionary.encode(part)
        moments.add(codes)
        error += float(np.square(dictionary.decode(codes) - part, dtype=np.float64).sum())
    return {
        **entry.identity,
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
