"""Which features of dictionaries of several sites, or two models, are shared and which exclusive.

By the relative norms of their decoder rows at two sites (Lindsey et al. 2024), with two tests of
those that look exclusive, for an L1 penalty makes shared features look so (Minder et al. 2025).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.activations.store import MANIFEST
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.study import Entry, setting
from sparse_dict.config import ActivationsConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.scaling import Scaling
from sparse_dict.storage import files

Floats = NDArray[np.floating[Any]]

EXCLUSIVE, SHARED = 0.1, (0.4, 0.6)  # relative norms: up to the first from either end; within
LEFT = 0.2  # of an exclusive feature at the other site, above which it is there as well
TWIN = 0.7  # correlation of codes, above which two exclusive features are one
BINS = 40
SORTS = ["first_only", "shared", "second_only", "between"]


@dataclass(frozen=True)
class Neighbours:
    """Two sites of a row, one beside the other, with their columns."""

    first: str
    second: str
    columns: tuple[slice, slice]

    def __str__(self) -> str:
        return f"{self.first} and {self.second}"

    def norms(self, rows: Floats) -> Floats:
        """Those of the parts of rows (n, d) at both, (2, n)."""
        return np.stack([np.linalg.norm(rows[:, part], axis=1) for part in self.columns])


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Relative norms of every feature, what becomes of those that look exclusive, and counts.

    Raises:
        UserError: the activations are not there.
    """
    both, x, balance = neighbours(context), context.evaluation_rows(), _balance(context)
    comparison = context.comparison
    entries = [e for family in context.study.families for e in comparison.shown_of(family)]
    features = pd.concat(
        [part for entry in entries for part in tested(entry, x, balance, both)], ignore_index=True
    )
    return {"crosscoders": counts(context, features), "crosscoder_features": features}


def neighbours(context: Context) -> list[Neighbours]:
    """Each site with the next one of a row."""
    activations = context.activations
    places = (activations.manifest or {}).get("sites", [])
    names = [str(place["site"]) for place in places]
    every = list(zip(names, (columns for columns, _ in activations.sites), strict=False))
    return [Neighbours(a, b, (one, other)) for (a, one), (b, other) in pairwise(every)]


def _balance(context: Context) -> Floats:
    """What decoder rows are divided by to be as they were in training."""
    seen = context.study.entries[0].metrics["config"].get("activations") or {}
    try:
        config = ActivationsConfig(**seen)
    except TypeError as error:
        raise UserError(f"a dictionary's config: activations: {error}") from None
    return Scaling.of(config, context.activations).balance


def tested(
    entry: Entry, x: Floats, balance: Floats, both: list[Neighbours]
) -> Iterator[pd.DataFrame]:
    """Where each feature is, and whether it is at the other site as well, by rows `x` (rows, d).

    With all other features as they are, the part of feature k that fits best is
    W_dec[k] + sum_rows c_k error / sum_rows c_k^2. Columns: `relative`, the second site's share of
    both norms; `sort`, where that puts it; `left_over`, the norm of the part that fits best at the
    site where its own is smaller, over that at the other, and by chance, with the rows in another
    order; `twin`, the highest correlation of an exclusive feature's code with one of a feature
    exclusive to the other site.
    """
    dictionary, rows = entry.trained.dictionary, entry.decoder / balance
    codes = dictionary.encode(x).astype(np.float64)
    error = (x - dictionary.reconstruct(x)) / balance
    weight = np.maximum((codes**2).sum(0), 1e-30)[:, None]
    best = rows + codes.T @ error / weight
    moved = np.roll(codes, len(codes) // 2, axis=0).T @ error / weight
    centred = codes - codes.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-30)
    at = np.arange(entry.size)
    for pair in both:
        norms, fitted, noise = (pair.norms(part) for part in (rows, best, moved))
        relative = norms[1] / np.maximum(norms.sum(0), 1e-30)
        shared = (relative >= SHARED[0]) & (relative <= SHARED[1])
        sort = np.select(
            [~entry.alive, relative <= EXCLUSIVE, relative >= 1 - EXCLUSIVE, shared],
            ["dead", "first_only", "second_only", "shared"],
            "between",
        )
        weaker = np.where(relative > 0.5, 0, 1)
        own, twin = np.maximum(fitted[1 - weaker, at], 1e-30), np.zeros(entry.size)
        first, second = sort == "first_only", sort == "second_only"
        if first.any() and second.any():
            correlation = centred[:, first].T @ centred[:, second]
            twin[first], twin[second] = correlation.max(1), correlation.max(0)
        yield pd.DataFrame(
            {
                "dictionary": entry.name, "sites": str(pair), "feature": at, "relative": relative,
                "sort": sort, "left_over": fitted[weaker, at] / own,
                "left_over_chance": noise[weaker, at] / own, "twin": twin,
            }
        )  # fmt: skip


def counts(context: Context, features: pd.DataFrame) -> pd.DataFrame:
    """A row a dictionary and pair of sites: features of each sort, and tests of the exclusive."""
    by = ["dictionary", "sites"]
    found = pd.crosstab([features[key] for key in by], features["sort"])
    found = found.reindex(columns=SORTS, fill_value=0)
    found.insert(0, "alive", found.sum(axis=1))
    found["exclusive"] = found["first_only"] + found["second_only"]
    only = features[features["sort"].isin(["first_only", "second_only"])]
    above = pd.Series({"left_over": LEFT, "left_over_chance": LEFT, "twin": TWIN})
    tests = only[above.index].gt(above).groupby([only[key] for key in by]).mean()
    known = context.tables.dictionaries.set_index("dictionary")
    known["sparsity"] = [setting(*of) for of in known[["axis", "level"]].itertuples(index=False)]
    known = known.rename(columns={"size": "dict_size"})
    order = features[by].drop_duplicates()
    table = order.join(known[["kind", "dict_size", "sparsity", "fvu", "l0"]], on="dictionary")
    table = table.join(found, on=by).join(tests.rename(columns={"twin": "twins"}), on=by)
    return table.drop(columns="dictionary").reset_index(drop=True)


def show(context: Context) -> Iterator[Block]:
    """Relative norms, how many features are shared and exclusive, and whether they are."""
    table, features = (
        context.tables.others[name] for name in ("crosscoders", "crosscoder_features")
    )
    yield context.figure("crosscoders", draw(features.merge(context.tables.dictionaries)))
    doubtful = ["exclusive", "left_over", "left_over_chance", "twins"]
    yield Table("Shared and exclusive features", table.drop(columns=doubtful))
    title = f"Are they exclusive? On {len(context.evaluation_rows()):,} rows"
    yield Table(title, table[["kind", "dict_size", "sites", *doubtful]])


def draw(features: pd.DataFrame) -> Figure:
    """Histograms of relative norms: a row a kind, a column a pair of sites, a line a size."""
    kinds, pairs = (list(features[key].unique()) for key in ("kind", "sites"))
    sizes = sorted(features["size"].unique())
    colours = dict(zip(sizes, figures.shades(len(sizes)), strict=True))
    figure, axes = plt.subplots(
        len(kinds), len(pairs), squeeze=False, sharex=True,
        figsize=(min(figures.WIDTH, 1 + 3.6 * len(pairs)), 0.8 + 2.8 * len(kinds)),
    )  # fmt: skip
    living = features[features["sort"] != "dead"]
    for (kind, pair, size), part in living.groupby(["kind", "sites", "size"], sort=False):
        axes[kinds.index(kind), pairs.index(pair)].hist(
            part["relative"], BINS, range=(0, 1), histtype="step", lw=1.2, color=colours[size],
            label=str(size),
        )  # fmt: skip
    for (row, column), axis in np.ndenumerate(axes):
        for bar in (EXCLUSIVE, 1 - EXCLUSIVE):
            axis.axvline(bar, color="0.5", ls="--", lw=0.8)
        first, _, second = pairs[column].partition(" and ")
        axis.set_title(f"{kinds[row]}\n{first} (left)\nand {second} (right)")
        axis.set_ylabel("features" if column == 0 else "")
    for axis in axes[-1]:
        axis.set_xlabel("second one's share")
    figures.below(figure, axes[0, 0], 8, "dictionary size")
    figure.suptitle("Relative norms of decoder rows")
    return figure


def _of_several_sites(context: Context) -> bool:
    """Whether rows hold several sites and dictionaries see all, as far as can be told at once."""
    folders = context.config.activations_dirs
    if context.study.site is not None or context.study.target is not None:
        return False
    if len(folders) > 1:
        return True
    try:
        places = files.read_json(folders[0] / MANIFEST).get("sites")
    except UserError:
        return False
    return isinstance(places, list) and len(places) > 1


ANALYSIS = Analysis("crosscoders", show, (), measure, applies=_of_several_sites)
