"""All analyses, one module each; `sparse_dict.config.ANALYSES` lists them in the report's order."""

from dataclasses import asdict
from importlib import import_module

from sparse_dict.analysis.claims import Claim, honest
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.report import overview
from sparse_dict.analysis.report.page import Section
from sparse_dict.config import ANALYSES
from sparse_dict.machine.progress import Progress


def load() -> list[Analysis]:
    """All analyses, in the report's order."""
    return [import_module(f"{__name__}.{name}").ANALYSIS for name in ANALYSES]


def judge(context: Context, analysis: Analysis) -> list[Claim]:
    """The claims of an analysis: undecided where it is off, none if it does not apply."""
    if not analysis.applies(context):
        return []
    if not context.config.is_on(analysis.name):
        return [text.undecided(f"{analysis.name} is off") for text in analysis.statements]
    return honest(context.comparison, analysis.statements, analysis.claims(context))


def make(context: Context) -> dict[str, Section]:
    """The sections of the report, by the name of their analysis; fills `context.claims`.

    Raises:
        UserError: `contexts.features` names a feature that does not exist, or one-to-one matching
            would not fit in memory.
    """
    config, study = context.config, context.study
    claims, *others = load()
    chosen = {a.name for a in others if config.is_on(a.name) and a.applies(context)}
    made: dict[str, Section | None] = {}
    with Progress("analyze", len(chosen), "analyses") as progress:
        for analysis in others:
            if analysis.name in chosen:
                progress.say(analysis.name)
            if config.is_on(claims.name):
                context.claims += judge(context, analysis)
            if analysis.name in chosen:
                made[analysis.name] = analysis.section(context)
                progress.advance(1)
    sections = {
        # shown first and made last: it links to what others write
        claims.name: claims.section(context) if config.is_on(claims.name) else None,
        "study": overview.section(study, config),
        **made,
        "left_out": overview.left_out(study),
        "configs": overview.configs(study, asdict(config)),
    }
    return {name: section for name, section in sections.items() if section is not None}
