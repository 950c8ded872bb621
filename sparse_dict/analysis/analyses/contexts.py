"""Text that features are active on: a page of its own, and a few in the report (figure 7)."""

from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.features import contexts, page, tree
from sparse_dict.analysis.report.page import Section


def section(context: Context) -> Section:
    """A few features in the report; all of them in `features.html` and `features.json`."""
    gathered = contexts.gather(context.config, context.comparison, tree.nodes(context))
    if isinstance(gathered, contexts.Gallery):
        page.write(gathered, context.folder)
    return page.section(gathered)


ANALYSIS = Analysis("contexts", section)
