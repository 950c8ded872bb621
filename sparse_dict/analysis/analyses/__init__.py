"""All analyses, one module each; `sparse_dict.config.ANALYSES` lists them in the report's order."""

from sparse_dict.analysis.claims import Claim, honest
from sparse_dict.analysis.context import Analysis, Context


def judge(context: Context, analysis: Analysis) -> list[Claim]:
    """The claims of an analysis: undecided where it is off, none if it does not apply."""
    if not analysis.applies(context):
        return []
    if not context.config.is_on(analysis.name):
        return [text.undecided(f"{analysis.name} is off") for text in analysis.statements]
    return honest(context.comparison, analysis.statements, analysis.claims(context))
