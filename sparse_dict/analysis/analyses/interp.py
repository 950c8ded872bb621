"""Explanations of features by a chat model, where `interp.base_url` names one."""

from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.interp import ask
from sparse_dict.analysis.report.page import Section
from sparse_dict.config import InterpConfig


def section(context: Context) -> Section | None:
    """The explanations with their scores; None without a chat model to ask."""
    if context.settings(InterpConfig).base_url is None:
        return None
    return ask.section(context.comparison, context.config)


ANALYSIS = Analysis("interp", section)
