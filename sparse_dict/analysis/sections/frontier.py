"""Reconstruction against sparsity: FVU and L0 of every dictionary."""

from collections.abc import Iterator

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.page import Block


def show(context: Context) -> Iterator[Block]:
    """Reconstruction against sparsity."""
    known, site = context.tables.dictionaries, context.tables.about.site
    figure = curves(
        known[known["site"] == site], None, "fvu", "FVU: share of variance unexplained",
        (0, None),
    )  # fmt: skip
    yield context.figure("frontier", figure)


ANALYSIS = Analysis("frontier", show)
