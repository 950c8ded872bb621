"""Reconstruction against sparsity: FVU and L0 of every dictionary."""

from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.report.curves import curves


def show(context: Context) -> Blocks:
    """Reconstruction against sparsity."""
    known, site = context.tables.dictionaries, context.tables.about.site
    figure = curves(
        known[known["site"] == site], None, "fvu", "FVU: share of variance unexplained",
        (0, None),
    )  # fmt: skip
    yield context.figure("frontier", figure)


ANALYSIS = Analysis("frontier", show)
