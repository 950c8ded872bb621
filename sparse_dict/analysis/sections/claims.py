"""The claims, as a table at the top of the report: what the other analyses found of each."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from sparse_dict.analysis.claim import OPEN, Judged
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.features.page import PAGE
from sparse_dict.analysis.report.page import Link, Table
from sparse_dict.analysis.study import LABELS

COLUMNS = {
    "claim": "claim", "figure": "its figure", "post": "there", "ours": "here",
    "interval": "95 % interval", "over": "over", "verdict": "verdict",
    "agrees": "agrees with its source",
}  # fmt: skip
AGREES = {True: "yes", False: "no", None: "-"}


def table(claims: Sequence[Judged]) -> pd.DataFrame:
    """The claims that have a number, decided ones first."""
    known = [c for c in claims if c.verdict != OPEN or c.interval is not None]
    known.sort(key=lambda claim: claim.verdict == OPEN)
    frame = pd.DataFrame([asdict(c) for c in known], columns=[*COLUMNS])
    told = "{:.3f} to {:.3f}".format
    frame["interval"] = [told(*c.interval) if c.interval else "-" for c in known]
    frame["over"] = frame["over"].replace("", "-")
    frame["agrees"] = [AGREES[c.agrees] for c in known]
    return frame.rename(columns=COLUMNS)


def lacking(claims: Sequence[Judged]) -> list[tuple[str, list[str]]]:
    """What stands in the way of the others, with the command that adds it, and which they are."""
    groups: dict[str, list[str]] = {}
    for claim in claims:
        if claim.verdict == OPEN and claim.interval is None:
            why = f"needs {claim.needs}: {claim.command}" if claim.needs else claim.ours
            groups.setdefault(why, []).append(claim.claim)
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def show(context: Context) -> Blocks:
    """The table, what the study cannot answer, and the rules behind the verdicts."""
    found, shown = context.claims, context.comparison.main
    yield Table("Claims and verdicts", table(found))
    if groups := lacking(found):
        n = sum(len(claims) for _, claims in groups)
        rows = {
            "what it takes": [why for why, _ in groups],
            "claims": ["; ".join(claims) for _, claims in groups],
        }
        title = f"Claims that this study cannot answer ({n} of {len(found)})"
        yield Table(title, pd.DataFrame(rows), fold=True)
    if shown is not None:
        yield context.comparison.rule
    if shown is not None and shown.axis != "l1":
        yield f"Where a rule says L1, it is {LABELS[shown.axis]} that was varied in this study."
    if context.config.is_on("contexts") and (context.folder / PAGE).exists():
        yield Link("The text that features are active on, to read for oneself", PAGE)
    rules = pd.DataFrame({"claim": [c.claim for c in found], "rule": [c.rule for c in found]})
    yield Table("The rules of the verdicts", rules, fold=True)


ANALYSIS = Analysis("claims", show)
