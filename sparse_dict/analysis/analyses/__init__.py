"""All analyses, one module each; `sparse_dict.config.ANALYSES` lists them in the report's order."""

from dataclasses import asdict
from importlib import import_module

from sparse_dict.analysis.claims import Claim
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.report import overview
from sparse_dict.analysis.report.page import Section
from sparse_dict.config import ANALYSES


def load() -> list[Analysis]:
    """All analyses, in the report's order."""
    return [import_module(f"{__name__}.{name}").ANALYSIS for name in ANALYSES]


def judge(context: Context) -> list[Claim]:
    """The claims of all analyses that apply; those of an analysis that is off are undecided."""
    found: list[Claim] = []
    for analysis in load():
        if not analysis.applies(context):
            continue
        if context.config.is_on(analysis.name):
            found += analysis.claims(context)
        else:
            found += [text.undecided(f"{analysis.name} is off") for text in analysis.statements]
    return found


def make(context: Context) -> dict[str, Section]:
    """The sections of the report, by the name of their analysis; fills `context.claims` first.

    Raises:
        UserError: `contexts.features` names what does not exist, or one-to-one matching would not
            fit in memory.
    """
    config, study = context.config, context.study
    if config.is_on("claims"):
        context.claims = judge(context)
    chosen = {a.name: a for a in load() if config.is_on(a.name) and a.applies(context)}
    claims = chosen.pop("claims", None)  # shown first and made last: it links to what others write
    made = {name: analysis.section(context) for name, analysis in chosen.items()}
    sections: dict[str, Section | None] = {
        "claims": claims.section(context) if claims is not None else None,
        "study": overview.section(study, config),
        **made,
        "left_out": overview.left_out(study),
        "configs": overview.configs(study, asdict(config)),
    }
    return {name: section for name, section in sections.items() if section is not None}
