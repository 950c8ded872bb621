"""How features split as dictionaries grow, what error that saves, and if another seed agrees."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import LARGER, SEVERAL_SEEDS, Claim, Found, Lies
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.features import tree
from sparse_dict.analysis.measured.fates import measure
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, over_seeds
from sparse_dict.analysis.measures.splitting import BORN, FATES, KEPT, ORIGINS
from sparse_dict.analysis.measures.two_dictionaries import SHARED_ABOVE
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.tables import FEWEST_SEEDS, Tables

FEWEST, MOST = 10, 0.5  # splits that a claim needs, and above which share it holds
SHADES = figures.BLUE, figures.GREEN, figures.ORANGE, figures.PURPLE, figures.GREY, "0.85"
COLOURS = dict(zip([*FATES, BORN], SHADES, strict=True))
TOO = {  # columns of `split_replication`, and of what
    "splits in the other seed too": ("splits_too", "counterpart"),
    "splits in the other seed in the same way": ("same", "counterpart"),
    "not split here, splits in the other seed": ("unsplit_too", "unsplit"),
}


def show(context: Context) -> Blocks:
    """Fates of features from size to size, trees, and splits in another seed."""
    study = context.tables
    table, courses = study.others["splits"], study.others["split_courses"]
    last = courses[courses["size"] == courses["size"].max()][[*FATES]].sum()
    if n := last.sum():
        shares = "; ".join(f"{last[name] / n:.0%} {name}" for name in FATES[1:])
        several = f" in {seeds} seeds" if (seeds := courses["seed"].nunique()) > 1 else ""
        yield (
            f"Of the {n} living features of size {courses['size'].min()}{several}, "
            f"{last[KEPT] / n:.0%} are kept through all sizes. What first happens to the "
            f"others, as shares of all: {shares}. In {table['stays'].mean():.0%} of the splits "
            "from one size to the next (mean over sizes) a child as good as the parent stays."
        )
    yield context.figure("splits", draw(study, table, courses))
    yield from tree.pictures(context)
    yield Table("Fates from size to size", table.drop(columns=[*ORIGINS][:-1]))
    if len(others := study.others["split_replication"]):
        yield Table("Splits in another seed", replication(others))


def draw(study: Tables, table: pd.DataFrame, courses: pd.DataFrame) -> Figure:
    """What becomes of the smallest dictionary's features, and where those of larger ones are from.

    Means over seeds.
    """
    figure, ((left, right),) = figures.grid(1, 2, 3.4, sharey=True)
    counts = courses.set_index(["seed", "size"])
    shares = counts.div(counts.sum(axis=1), axis=0).groupby("size").mean().rename(index=str)
    origins = table.groupby("to")[[*ORIGINS]].mean().rename(columns=ORIGINS, index=str)
    look: dict[str, Any] = {"color": COLOURS, "stacked": True, "legend": False}
    shares.plot.area(ax=left, lw=0, title=f"Features of size {shares.index[0]}, so far", **look)
    title = "Features of each size, by their parent's fate"
    origins.plot.bar(ax=right, width=0.7, rot=0, title=title, **look)
    for axis in (left, right):
        axis.set(ylim=(0, 1), xlabel="dictionary size")
    figures.percent_axis(left)
    figure.suptitle(f"What becomes of features, {figures.titled(study)}")
    every = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    every |= dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    figure.legend(every.values(), every.keys(), loc="outside lower center", ncols=6)
    return figure


def share(table: pd.DataFrame, part: str, of: str) -> Estimate | None:
    """One count over another: an interval over seeds if there are three, else over features."""
    known = table.groupby("seed")[[part, of]].sum()
    known = known[known[of] > 0]
    if len(known) >= FEWEST_SEEDS:
        return over_seeds([*(known[part] / known[of])])
    n, every = known.sum().astype(int)
    values = np.repeat([1.0, 0.0], [n, every - n])
    return bootstrap([values], lambda drawn: float(drawn[0].mean())) if every else None


def replication(table: pd.DataFrame) -> pd.DataFrame:
    """What other seeds do with the counterparts of features that split, and of others."""
    counted = {what: (share(table, part, of), table[of].sum()) for what, (part, of) in TOO.items()}
    rows = [[what, n, f"{e:.2f}", e.over] for what, (e, n) in counted.items() if e]
    if n := table["splits"].sum():
        have = f"{table['counterpart'].sum() / n:.2f}"
        rows.append(["splits whose parent has a counterpart", n, have, ""])
    return pd.DataFrame(rows, columns=["of features with a counterpart", "n", "share", "over"])


def _replicate(study: Tables) -> Found:
    table = study.others["split_replication"]
    n, found = table["counterpart"].sum(), share(table, "same", "counterpart")
    if n < FEWEST or found is None:
        return Found(f"{n} splits whose parent has a counterpart; needs {FEWEST}")
    too, rest = share(table, "splits_too", "counterpart"), share(table, "unsplit_too", "unsplit")
    any_way, unsplit = (f"{e.value:.0%}" if e else "none" for e in (too, rest))
    here = (
        f"{found.value:.0%} of {n}; the counterpart splits in any way in {any_way}, that of an "
        f"unsplit feature in {unsplit}"
    )
    return Found(here, Lies(MOST)(found), found)


CLAIMS = (
    Claim(
        "splits_replicate", judge=_replicate, needs=(LARGER, SEVERAL_SEEDS), living=False,
        bars={"shared_above": SHARED_ABOVE, "fewest": FEWEST, "most": MOST},
    ),
)  # fmt: skip
ANALYSIS = Analysis("splits", show, CLAIMS, measure, needs=(LARGER,), seconds=(1.1, 3))
