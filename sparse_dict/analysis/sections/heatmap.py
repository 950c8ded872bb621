"""MMCS with larger dictionaries by size and sparsity: the post's figure 1."""

from collections import defaultdict
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
    estimates,
    mean_of_means,
    samples,
)
from sparse_dict.analysis.comparison import GAUSSIAN, VARIANTS, Comparison, Variant
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.study import Chain, setting
from sparse_dict.analysis.tables import Tables

MATCH_TABLE_SIZE = 4096  # the table of all variants matches dictionaries up to this size


def show(context: Context) -> Blocks:
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
    """MMCS of the main chain in all variants, a column per size; and both nulls."""
    table: dict[str, dict[str, float]] = defaultdict(dict)
    for entry in chain.entries[:-1]:
        size = str(entry.size)
        for variant in VARIANTS:
            largest = max(p.size for p in comparison.partners(entry, variant.against))
            matched = variant.matching == "max" or variant == comparison.shown
            known = matched or largest <= MATCH_TABLE_SIZE
            mmcs = comparison.numbers(entry, variant)["mmcs"] if known else np.nan
            table[str(variant)][size] = mmcs
        for against, label in (("next", "next size"), ("all_larger", "mean of all larger")):
            of = comparison.numbers(entry, Variant("max", against, "all"), gaussian=True)
            table[f"random directions, {label} (exact)"][size] = of["random_mmcs"]
            table[f"{GAUSSIAN}, {label} (simulated)"][size] = of["gaussian_mmcs"]
    return pd.DataFrame(table).T.rename_axis("variant").reset_index()


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
    best: Any = means.groupby("level").mean().idxmax()
    own = means.xs(seed, level="seed")
    ends = [cells["level"].min(), cells["level"].max()]
    if best in ends:
        return Found(f"best at {setting('l1', best)}, the end of the grid")
    end = own[ends].idxmax()
    lowest = cells[cells["seed"] == seed]
    parts = [study.joined(lowest[lowest["level"] == level]) for level in (best, end)]
    here = pd.concat(parts, ignore_index=True)

    def less(groups: Sizes) -> float:
        of = [[v.mean() for (level, _), v in groups.items() if level == at] for at in (best, end)]
        return float(np.mean(of[0]) - np.mean(of[1]))

    found = estimates(samples(here, here["mcs"].dropna(), ["level", "size"]), less)[0]
    told = f"best at {setting('l1', best)}, {found.value:+.3f} against the better end"
    return Found(told, estimate=found)


def _excess(sizes: Sizes) -> list[float]:
    """MMCS less what random directions and less what Gaussian rows reach; MMCS; over sizes."""
    mmcs, *nulls = mean_of_means(sizes)
    return [*(mmcs - null for null in nulls), mmcs]


OVER_L1 = Need(
    "three L1 values, each with all sizes", f"{TRAIN}sae.l1=1.28,2.56,5.12",
    lambda study: {*study.level["axis"]} == {"l1"} and grid(study)["level"].nunique() > 2,
)  # fmt: skip
CLAIMS = (
    Claim("mmcs_above_random", "mcs, random_mmcs, gaussian_mmcs", Lies(0.1, n=2), _excess),
    Claim("interior_l1", rule=Lies(0), judge=_interior, needs=(LARGER, OVER_L1)),
)
ANALYSIS = Analysis("heatmap", show, CLAIMS, needs=(LARGER,), seconds=(0, 1.6))
