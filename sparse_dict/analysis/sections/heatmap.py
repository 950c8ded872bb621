"""MMCS with larger dictionaries by size and sparsity: the post's figure 1."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.analysis.claim import (
    LARGER,
    TRAIN,
    Claim,
    Found,
    Lies,
    Need,
    Sizes,
    both,
    mean_of_means,
)
from sparse_dict.analysis.comparison import GAUSSIAN, VARIANTS, Comparison, Variant
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.study import Chain, setting
from sparse_dict.analysis.tables import Tables

MATCH_TABLE_SIZE = 4096  # the table of all variants matches dictionaries up to this size


def show(context: Context) -> Iterator[Block]:
    """MMCS over size and sparsity, the number of high features, and a table of all variants."""
    comparison, chain, study = context.comparison, context.comparison.main, context.tables
    assert chain is not None  # LARGER is there
    cells = by_family(study, context.study.families)
    shown, bar = comparison.shown, study.threshold
    title = f"MMCS with larger dictionaries\n{shown}"
    mmcs = figures.heatmaps(cells, "mmcs", title, "MMCS", ".2f")
    yield context.figure("heatmap_mmcs", mmcs, f"Shown: {shown}.")
    for key, of in (("high_features", "all"), ("high_features_alive", "alive")):
        if of == "all" or (cells["dead"] > 0).any():
            column = "n_above" if of == shown.features else "n_above_alive"
            title = f"Features with MCS above {bar:g}\n{shown.of(of)}"
            yield context.figure(key, figures.heatmaps(cells, column, title, "features", ".0f"))
    yield Table(f"All variants, at {chain.setting}", _variants(comparison, chain))


def by_family(study: Tables, families: tuple[str, ...]) -> pd.DataFrame:
    """The main site's dictionaries that have a larger one, a panel for each family, in order."""
    every = study.dictionaries.assign(panel=study.dictionaries["family"])
    of = every[(every["site"] == study.about.site) & (every["next_size"] > 0)]
    return of.sort_values("family", key=lambda names: names.map(families.index), kind="stable")


def _variants(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """MMCS of the main chain in all variants, a column per size; and the random expectation."""
    table = []
    for variant in VARIANTS:
        row: dict[str, Any] = {"variant": str(variant)}
        for entry in chain.entries[:-1]:
            largest = max(p.size for p in comparison.partners(entry, variant.against))
            matched = variant.matching == "max" or variant == comparison.shown
            known = matched or largest <= MATCH_TABLE_SIZE
            values = comparison.counted(entry, variant) if known else np.empty(0)
            row[str(entry.size)] = float(values.mean()) if len(values) else np.nan
        table.append(row)
    for against, label in (("next", "next size"), ("all_larger", "mean of all larger")):
        variant = Variant("max", against, "all")
        exact = {str(e.size): comparison.random_mean(e, variant) for e in chain.entries[:-1]}
        table.append({"variant": f"random directions, {label} (exact)", **exact})
        like = {str(e.size): comparison.gaussian_mean(e, variant) for e in chain.entries[:-1]}
        table.append({"variant": f"{GAUSSIAN}, {label} (simulated)", **like})
    return pd.DataFrame(table)


def grid(study: Tables) -> pd.DataFrame:
    """The main family's dictionaries at levels with all sizes of the main one, of main seeds."""
    known = study.dictionaries
    own = known[(known["site"] == study.about.site) & (known["family"] == study.about.family)]
    own = own[(own["next_size"] > 0) & own["seed"].isin(study.level["seed"])]
    sizes = study.main["size"].nunique()
    return own.groupby("level").filter(lambda part: part["size"].nunique() == sizes)


def _interior(study: Tables) -> Found:
    """Whether the L1 of the highest MMCS lies inside the grid."""
    cells, seed = grid(study), study.main["seed"].min()
    means = cells.groupby(["level", "seed"])["mmcs"].mean()
    over_seeds, shown = means.groupby("level").mean(), means.xs(seed, level="seed")
    levels = over_seeds.index.to_numpy(float)
    first, *_, last = levels
    best = float(levels[over_seeds.to_numpy().argmax()])
    if best in (first, last):
        return Found(f"best at {setting('l1', best)}, the end of the grid")
    end = first if shown[first] >= shown[last] else last
    here = study.joined(cells[(cells["seed"] == seed) & cells["level"].isin([best, end])])
    parts = {
        float(str(level)): [mcs.dropna().to_numpy(float) for _, mcs in part.groupby("size")["mcs"]]
        for level, part in here.groupby("level")
    }
    k = len(parts[best])
    estimate = bootstrap(
        [*parts[best], *parts[end]],
        lambda drawn: (
            mean_of_means(dict(enumerate(drawn[:k]))) - mean_of_means(dict(enumerate(drawn[k:])))
        ),
    )
    told = f"best at {setting('l1', best)}, {estimate.value:+.3f} against the better end"
    return Found(told, Lies(0)(estimate), estimate)


def _means(sizes: Sizes) -> Any:
    """MMCS, and what random directions and Gaussian rows reach, averaged over sizes."""
    return np.mean([values.mean(0) for values in sizes.values()], axis=0)


def _excess(sizes: Sizes, null: int = 1) -> float:
    means = _means(sizes)
    return float(means[0] - means[null])


def _mmcs(_found: Estimate, seeds: Sequence[Sizes]) -> str:
    mmcs, random, like = np.mean([_means(sizes) for sizes in seeds], axis=0)
    return f"MMCS {mmcs:.3f}, {mmcs - random:+.3f} from random, {mmcs - like:+.3f} from {GAUSSIAN}"


OVER_L1 = Need(
    "three L1 values, each with all sizes", f"{TRAIN}sae.l1=1.28,2.56,5.12",
    lambda study: {*study.level["axis"]} == {"l1"} and grid(study)["level"].nunique() > 2,
)  # fmt: skip
CLAIMS = (
    Claim(
        "mmcs_above_random",
        lambda f: f[["mcs", "random_mmcs", "gaussian_mmcs"]],
        Lies(0.1),
        _excess,
        _mmcs,
        second=(partial(_excess, null=2), both),
    ),
    Claim("interior_l1", judge=_interior, needs=(LARGER, OVER_L1)),
)
ANALYSIS = Analysis("heatmap", show, CLAIMS, needs=(LARGER,), seconds=(0, 1.6))
