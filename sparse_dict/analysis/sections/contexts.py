"""Text that features are active on: a page of its own, and a few in the report (figure 7)."""

from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.features import page, top_contexts, tree


def show(context: Context) -> Blocks:
    """A few features; all of them go to `features.html` and `features.json`."""
    gallery = top_contexts.gather(context, tree.shown(context))
    page.write(gallery, context.folder)
    yield page.sample(gallery)


ANALYSIS = Analysis("contexts", show, seconds=(0, 6))
