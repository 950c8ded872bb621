"""Text that features are active on: a page of its own, and a few in the report (figure 7)."""

from collections.abc import Iterator

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.features import contexts, page, tree
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.report.page import Block


def show(context: Context) -> Iterator[Block]:
    """A few features; all of them go to `features.html` and `features.json`."""
    gallery = contexts.gather(context, tree.shown(context))
    page.write(gallery, context.folder)
    yield page.sample(gallery)


ANALYSIS = Analysis("contexts", show, seconds=(0, 6))
