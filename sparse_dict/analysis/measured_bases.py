"""The simpler bases of `measures.bases` on a study's activations, beside its dictionaries."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.activations.store import Activations
from sparse_dict.analysis.measures.bases import (
    CHUNK,
    LABELS,
    Basis,
    Floats,
    Moments,
    Rows,
    Wide,
    affordable,
    around,
    at_sparsity,
    fit,
    mmcs_between,
)
from sparse_dict.analysis.measures.mcs import max_cosine, normalised
from sparse_dict.analysis.study import Entry, Study, seed_groups
from sparse_dict.config import ActivationsConfig, BaselinesConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.sae.scaling import Scaling

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Measured:
    """All numbers of one study."""

    bases: dict[str, Basis]  # fitted on the first half, by method
    summary: pd.DataFrame  # one row per baseline: rows fitted in each half, and measured
    front: pd.DataFrame  # one row per baseline and k
    # one row per dictionary, with its final FVU and L0, and each baseline's FVU at that L0
    dictionaries: pd.DataFrame
    ks: list[int]
    # squared errors of each row measured: of dictionaries (n,), by name; of baselines (n, len(ks))
    errors: dict[str, Wide]
    of_bases: dict[str, Wide]
    deviations: Wide  # (n,) squared distances from their mean


def measure(
    study: Study, activations: Activations, settings: BaselinesConfig, seed: int
) -> Measured:
    """Fit all baselines on two disjoint halves; measure them and the dictionaries on held-out rows.

    The rows to fit are the first ones that the dictionaries were trained on, those to measure the
    last ones of the harvest, which no dictionary has seen. Where dictionaries saw each site scaled
    by itself, errors are of such rows, as in their own FVU.
    """
    if not (methods := affordable(settings.methods, activations.d_in)):
        raise UserError(f"rows of {activations.d_in:,} values are too wide for these methods")
    held_out = min(int(entry.metrics["eval_rows"]) for entry in study.entries)
    half = min(settings.rows, activations.rows - held_out) // 2
    d_in, balance = activations.d_in, _balance(study, activations)
    read = activations.read if balance is None else lambda *ends: activations.read(*ends) / balance
    halves = [Rows(read, 0, half, d_in), Rows(read, half, 2 * half, d_in)]
    n = min(held_out, settings.rows // 2)
    unseen = Rows(read, activations.rows - n, activations.rows, d_in)
    mean = unseen.mean()
    deviations = np.concatenate([np.square(part - mean).sum(1) for part in unseen.chunks()])

    log.info(
        "baselines: %s of two halves of %s rows, measured on %s others beside the dictionaries",
        ", ".join(LABELS[method] for method in methods), f"{half:,}", f"{n:,}",
    )  # fmt: skip
    errors: dict[str, Wide] = {}
    dictionaries = []
    for entry in study.entries:
        row, errors[entry.name] = _dictionary(entry, unseen, balance)
        dictionaries.append(row)
    wanted = {*settings.ks, *around(row["l0"] for row in dictionaries)}
    ks = sorted({min(k, d_in) for k in wanted})
    bases, of_bases, summary, front = {}, {}, [], []
    with Progress("baselines", len(methods), "methods") as progress:
        for method in methods:
            progress.say(LABELS[method])
            first, second = (fit(method, rows, seed + i) for i, rows in enumerate(halves))
            bases[method] = first if balance is None else first.scaled(balance)
            moments, parts = Moments(len(first.directions)), []
            for part in unseen.chunks():
                codes = first.encode(part)
                moments.add(codes)
                parts.append(first.errors(part, codes, ks))
            of_bases[method] = np.concatenate(parts)
            summary.append(
                {
                    "baseline": LABELS[method],
                    "directions": len(first.directions),
                    "fitted_rows": half,
                    "rows": n,
                    "mmcs_between_halves": mmcs_between(first, second),
                    "kurtosis": _median(moments.kurtosis()),
                }
            )
            front += [
                {"method": method, "baseline": LABELS[method], "l0": k, "fvu": fvu}
                for k, fvu in zip(ks, of_bases[method].sum(0) / deviations.sum(), strict=True)
            ]
            progress.advance(1)
    table = pd.DataFrame(front, columns=["method", "baseline", "l0", "fvu"])
    for row in dictionaries:
        for method, found in of_bases.items():
            left = at_sparsity(ks, found, row["l0"]).sum()
            row[f"fvu_{method}"] = float(left / deviations.sum())
    frame = pd.DataFrame(dictionaries).drop(columns="axis")
    frame.insert(8, "mmcs_between_seeds", frame["dictionary"].map(_between_seeds(study)))
    return Measured(bases, pd.DataFrame(summary), table, frame, ks, errors, of_bases, deviations)


def _balance(study: Study, activations: Activations) -> Floats | None:
    """How large the columns are that dictionaries saw as alike, (d_in,); None if all are."""
    seen = study.entries[0].metrics["config"].get("activations")
    if not seen:
        return None
    balance = Scaling.of(ActivationsConfig(**seen), activations).balance
    return None if (balance == 1).all() else balance


def _median(values: Wide) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def _dictionary(entry: Entry, rows: Rows, balance: Floats | None) -> tuple[dict[str, Any], Wide]:
    """A dictionary's numbers, and the squared error of each of `rows`, in units of `balance`."""
    dictionary, unit = entry.trained.dictionary, 1 if balance is None else balance
    moments, errors = Moments(entry.size), []
    for part in rows.chunks():
        codes = dictionary.encode(part * unit)
        moments.add(codes)
        made = dictionary.decode(codes) / unit
        errors.append(np.square(made - part, dtype=np.float64).sum(1))
    row = {
        **entry.identity,
        "l0": float(entry.metrics["l0"]),
        "fvu": float(entry.metrics["fvu"]),
        "kurtosis": _median(moments.kurtosis()),
    }
    return row, np.concatenate(errors)


def _between_seeds(study: Study) -> dict[str, float]:
    """MMCS of each dictionary with that of the next seed, the last with the first."""
    found = {}
    for group in seed_groups(study):
        rows = [normalised(entry.decoder) for entry in group]
        for i, entry in enumerate(group):
            found[entry.name] = float(max_cosine(rows[i], rows[(i + 1) % len(rows)], CHUNK).mean())
    return found
