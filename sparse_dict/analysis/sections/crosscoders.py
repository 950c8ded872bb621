"""Which features of dictionaries of several sites, or two models, are shared or exclusive."""

from itertools import product

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.exclusive import EXCLUSIVE, measure, of_several_sites
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table


def show(context: Context) -> Blocks:
    """Relative norms, how many features are shared and exclusive, and whether they are."""
    others = context.tables.others
    table, features = others["crosscoders"], others["crosscoder_features"]
    yield context.figure("crosscoders", draw(features.merge(context.tables.dictionaries)))
    doubtful = ["exclusive", "left_over", "left_over_chance", "twins"]
    yield Table("Shared and exclusive features", table.drop(columns=doubtful))
    title = f"Are they exclusive? On {len(context.evaluation_rows()):,} rows"
    yield Table(title, table[["kind", "dict_size", "sites", *doubtful]])


def draw(features: pd.DataFrame) -> Figure:
    """Histograms of relative norms: a row a kind, a column a pair of sites, a line a size."""
    living, n = features[features["sort"] != "dead"], features["sites"].nunique()
    grid = figures.facets(
        sns.displot, living, "dictionary size", x="relative", hue="size", row="kind", col="sites",
        palette=figures.shades(living["size"].nunique()), element="step", fill=False, bins=40,
        binrange=(0, 1), height=2.8, aspect=min(figures.WIDTH / n, 4.6) / 2.8,
    )  # fmt: skip
    grid.set_titles("{row_name}\n{col_name}").set_axis_labels("second one's share", "features")
    for axis, bar in product(grid.axes.flat, (EXCLUSIVE, 1 - EXCLUSIVE)):
        axis.axvline(bar, color="0.5", ls="--", lw=0.8)
    return grid.figure


ANALYSIS = Analysis("crosscoders", show, measure=measure, applies=of_several_sites)
