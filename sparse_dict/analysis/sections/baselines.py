"""What simpler bases reach at matched sparsity, beside the dictionaries."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from sparse_dict.analysis.claim import Claim, Found, Lies, Need
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measured import simpler_bases
from sparse_dict.analysis.measured.simpler_bases import Measured
from sparse_dict.analysis.measures.bases import LABELS, SIMPLE, compared
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.tables import FEWEST_SEEDS, Tables
from sparse_dict.config import BaselinesConfig
from sparse_dict.errors import UserError


def fitted(context: Context) -> Measured:
    """The simpler bases, fitted and measured on the activations.

    Raises:
        UserError: the activations are not there, are damaged or too few.
    """
    if context.study.target is not None:
        raise UserError("a basis maps no site to another, as transcoders do")
    context.activations.verify()
    settings = context.settings(BaselinesConfig)
    return simpler_bases.measure(context.study, context.activations, settings, context.config.seed)


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Baselines beside the dictionaries, and the best of them."""
    found = context.once(fitted)
    tables = {
        "baselines": found.front,
        "baselines_matched": found.dictionaries,
        "baselines_fitted": found.summary,
    }
    level = judged(context.tables)
    known = {m: (found.ks, found.of_bases[m]) for m in SIMPLE if m in found.of_bases}
    if known:
        seeds = [[(found.errors[name], l0) for name, l0 in of.items()] for of in level]
        best = compared(seeds, known, found.deviations, "rows")
        fvus = context.tables.level.set_index("dictionary")["fvu"]  # on all evaluation rows
        fvu = float(fvus[[name for of in level for name in of]].mean())
        tables["baselines_best"] = pd.DataFrame([best | {"ours": fvu}])
    return tables


def judged(study: Tables) -> list[dict[str, float]]:
    """The dictionaries that are compared with the best basis, with their L0; for each seed.

    Those of the chosen level, of all seeds if there are three or more, else of the lowest.
    """
    seeds = [
        dict(zip(part["dictionary"], part["l0"], strict=True))
        for _, part in study.level.groupby("seed")
    ]
    return seeds if len(seeds) >= FEWEST_SEEDS else seeds[:1]


def standing(study: Tables, key: str) -> tuple["pd.Series[Any]", Estimate] | None:
    """The row of the table `key`_best, and how much less dictionaries leave; None if unknown."""
    if f"{key}_best" not in study.others:
        return None
    best = study.others[f"{key}_best"].iloc[0]
    return best, Estimate(**best[["value", "low", "high", "over"]])


def show(context: Context) -> Iterator[Block]:
    """The curves, and what was fitted."""
    others, d = context.tables.others, context.study.d_in
    fits, matched = others["baselines_fitted"], others["baselines_matched"]
    half, n = fits[["fitted_rows", "rows"]].max()
    note = f"Fitted on {half:,} rows, ICA and NMF on fewer of them, and measured on {n:,} others."
    names = {LABELS[method] for method in context.settings(BaselinesConfig).methods}
    if left_out := sorted(names - {*fits["baseline"]}):
        note += f" {' and '.join(left_out)} would take too long on rows of {d:,} values."
    figure = curves(
        matched.rename(columns={"dict_size": "size"}), others["baselines"], "fvu",
        "FVU: share of variance unexplained",
    )  # fmt: skip
    yield context.figure("baselines", figure, note)
    halves = {"mmcs_between_halves": "MMCS between halves of the rows"}
    yield Table("Baselines", fits.rename(columns=halves))
    dropped = ["dict_size", "l1", "level", "seed", "family"]
    if matched["mmcs_between_seeds"].isna().all():
        dropped.append("mmcs_between_seeds")
    columns = {f"fvu_{method}": f"FVU {label}" for method, label in LABELS.items()}
    columns["mmcs_between_seeds"] = "MMCS between seeds (same rows)"
    shown = matched.drop(columns=dropped).rename(columns=columns)
    title = (
        "Dictionaries, and each basis with as many codes (between whole k: some rows with either)"
    )
    yield Table(title, shown, fold=len(shown) > 12)


BASES = Need(
    "simpler bases that could be fitted",
    "python analyze.py {name} 'analysis=[claims,baselines,loss_recovered]'",
    lambda study: standing(study, "baselines") is not None,
)


def _reconstruct(study: Tables) -> Found:
    known = standing(study, "baselines")
    assert known is not None
    best, less = known
    here = f"FVU {best['ours']:.3f}, {best['theirs']:.3f} of {best['basis']}"
    return Found(here, Lies(0)(less), less)


CLAIMS = (Claim("reconstruct_better", judge=_reconstruct, needs=(BASES,), living=False),)
ANALYSIS = Analysis("baselines", show, CLAIMS, measure, seconds=(8, 0.4))
