"""Reconstruction against sparsity: FVU and L0 of every dictionary."""

from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.report.overview import overview
from sparse_dict.analysis.report.page import Section


def section(context: Context) -> Section:
    """Reconstruction against sparsity."""
    figure = curves(
        overview(context.study), None, "fvu", "FVU: share of variance unexplained",
        "Sparsity against reconstruction; towards the lower left is better", (0, None),
    )  # fmt: skip
    picture = context.draw(
        "frontier", figure, "FVU against L0",
        "Each point is a dictionary; a line joins those that differ only in how sparse they were "
        "made. FVU is the squared error over the variance of the activations, L0 the mean number "
        "of active features, both on the evaluation rows.",
    )  # fmt: skip
    return Section("Reconstruction against sparsity", [picture])


ANALYSIS = Analysis("frontier", section)
