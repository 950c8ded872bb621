"""The simpler bases of `measures.bases` on a study's activations, beside its dictionaries."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from sparse_dict.activations.store import Activations
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.measures.bases import Basis, Floats, Wide
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.study import Entry, Study, seed_groups
from sparse_dict.config import ActivationsConfig, BaselinesConfig
from sparse_dict.errors import UserError
from sparse_dict.machine import threads
from sparse_dict.machine.background import mapped
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
    if not (methods := bases.affordable(settings.methods, activations.d_in)):
        raise UserError(f"rows of {activations.d_in:,} values are too wide for these methods")
    held_out = min(int(entry.metrics["eval_rows"]) for entry in study.entries)
    half = min(settings.rows, activations.rows - held_out) // 2
    d_in, balance = activations.d_in, _balance(study, activations)
    n = min(held_out, settings.rows // 2)
    ends = (0, half), (half, 2 * half), (activations.rows - n, activations.rows)
    *halves, unseen = (activations.read(*of) / balance for of in ends)
    deviations = bases.deviations(unseen)
    log.info(
        "baselines: %s of two halves of %s rows, measured on %s others beside the dictionaries",
        ", ".join(bases.LABELS[method] for method in methods), f"{half:,}", f"{n:,}",
    )  # fmt: skip
    jobs = [(method, x, seed + i) for method in methods for i, x in enumerate(halves)]
    fits: list[Basis] = []
    workers = threads.number(len(jobs))  # before each is kept to one
    with Progress("baselines", len(jobs), "fits") as progress, bases.on_one_thread():
        for basis in mapped(lambda job: bases.fit(*job), jobs, workers):
            fits.append(basis)
            progress.advance(1)
    of_dictionaries, rows = {}, []
    for entry in study.entries:
        spread, of_dictionaries[entry.name] = _of_dictionary(entry, unseen, balance)
        of = {key: float(entry.metrics[key]) for key in ("l0", "fvu")}
        rows.append({**entry.identity, **of, "kurtosis": spread})
    dictionaries = pd.DataFrame(rows)
    ks = sorted({min(k, d_in) for k in {*settings.ks, *bases.around(dictionaries["l0"])}})
    of_bases, summary, front = {}, [], []
    for method, first, second in zip(methods, fits[::2], fits[1::2], strict=True):
        baseline = {"baseline": bases.LABELS[method]}
        spread, left = _coded(unseen, first.encode, partial(first.errors, ks=ks))
        numbers = {"mmcs_between_halves": bases.mmcs_between(first, second), "kurtosis": spread}
        counts = {"directions": len(first.directions), "fitted_rows": half, "rows": n}
        summary.append(baseline | counts | numbers)
        fvus = left.sum(0) / deviations.sum()
        front += [{**baseline, "l0": k, "fvu": fvu} for k, fvu in zip(ks, fvus, strict=True)]
        at = [bases.at_sparsity(ks, left, l0).sum() for l0 in dictionaries["l0"]]
        dictionaries[f"fvu_{method}"] = np.array(at) / deviations.sum()
        of_bases[method] = left
    between = dictionaries["dictionary"].map(_between_seeds(study))
    dictionaries.insert(8, "mmcs_between_seeds", between)
    fitted = dict(zip(methods, fits[::2], strict=True))
    if (balance != 1).any():
        fitted = {method: basis.scaled(balance) for method, basis in fitted.items()}
    return Measured(
        fitted, pd.DataFrame(summary), pd.DataFrame(front), dictionaries, ks,
        of_dictionaries, of_bases, deviations,
    )  # fmt: skip


def _balance(study: Study, activations: Activations) -> Floats:
    """How large the columns are that dictionaries saw as alike, (d_in,)."""
    seen = study.entries[0].metrics["config"].get("activations")
    if not seen:
        return np.ones(activations.d_in, np.float32)
    return Scaling.of(ActivationsConfig(**seen), activations).balance


def _of_dictionary(entry: Entry, rows: Floats, balance: Floats) -> tuple[float, Wide]:
    dictionary = entry.trained.dictionary

    def errors(part: Floats, codes: Floats) -> Wide:
        return bases.squares(dictionary.decode(codes) / balance - part)

    return _coded(rows, lambda part: dictionary.encode(part * balance), errors)


def _coded(
    rows: Floats, encode: Callable[[Floats], Floats], errors: Callable[[Floats, Floats], Wide]
) -> tuple[float, Wide]:
    """The median kurtosis of the codes of `rows`, and what `errors` says of both."""
    sums, found = [], []
    for part in bases.chunks(rows):
        codes = encode(part)
        sums.append(bases.powers(codes))
        found.append(errors(part, codes))
    known = pd.Series(bases.kurtosis(np.sum(sums, axis=0), len(rows)))
    return known.replace(np.inf, np.nan).median(), np.concatenate(found)


def _between_seeds(study: Study) -> dict[str, float]:
    """MMCS of each dictionary with that of the next seed, the last with the first."""
    return {
        one.name: float(max_cosine(one.decoder, other.decoder, bases.CHUNK).mean())
        for group in seed_groups(study)
        for one, other in zip(group, [*group[1:], group[0]], strict=True)
    }
