"""The post's claims, as a table at the top of the report: what the other analyses found of each."""

from collections.abc import Sequence

import pandas as pd

from sparse_dict.analysis.claims import Claim
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.features.page import PAGE
from sparse_dict.analysis.report.page import Link, Section, Table
from sparse_dict.analysis.study import LABELS

AGREES = {True: "yes", False: "no", None: "-"}


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The claims as the report's first table."""
    return pd.DataFrame(
        {
            "claim": [c.claim for c in claims],
            "its figure": [c.figure for c in claims],
            "there": [c.post for c in claims],
            "here": [c.ours for c in claims],
            "95 % interval": [
                f"{c.interval[0]:.3f} to {c.interval[1]:.3f}" if c.interval else "-" for c in claims
            ],
            "over": [c.over or "-" for c in claims],
            "verdict": [c.verdict for c in claims],
            "agrees with its source": [AGREES[c.agrees] for c in claims],
        }
    )


def section(context: Context) -> Section:
    """The table at the top, and the rules behind the verdicts."""
    found, shown = context.claims, context.comparison.main
    section = Section(
        "The post's claims",
        [
            "Each claim of the post “[Replication] Conjecture's Sparse Coding in Small "
            "Transformers”, and of later papers on agreement between seeds, with the "
            "value given there, the value here and a 95 % interval. The verdict follows from the "
            "interval by the rule listed below; “undecided” means that the interval "
            "contains the rule's limit, that the study lacks what the claim needs, or that the "
            "dictionaries concerned explain nothing. The last column says whether the verdict is "
            "that of the post or paper, which may itself be that a claim does not hold; “-” where "
            "it is undecided or where none makes the claim.",
            Table("Claims and verdicts", table(found)),
        ],
    )
    if shown is not None:
        section.blocks.append(context.comparison.rule)
    if shown is not None and shown.axis != "l1":
        section.blocks.append(
            f"Where a rule says L1, it is {LABELS[shown.axis]} that was varied in this study."
        )
    if context.config.is_on("contexts") and (context.folder / PAGE).exists():
        section.blocks.append(
            Link("The text that features are active on, to read for oneself", PAGE)
        )
    rules = pd.DataFrame({"claim": [c.claim for c in found], "rule": [c.rule for c in found]})
    section.blocks.append(Table("The rules of the verdicts", rules, fold=True))
    return section


ANALYSIS = Analysis("claims", section)
