"""MCS of each size: one hump or two, and where random directions lie (figures 2, 3 and 3.5)."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import LARGER, Claim, Found, Lies, Need, Sizes, either, verdict
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.humps import FEWEST, measure
from sparse_dict.analysis.measures import bimodality, random_directions
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.measures.random_directions import unit_vectors
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.mcs_histograms import draw
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.study import LABELS
from sparse_dict.analysis.tables import Tables

LEVELS = 5  # of sparsity side by side
ONE_HUMP = 0.1  # p of the dip test above which nothing speaks for a second hump
SIMULATED_ROWS = 4096  # small dictionaries are drawn several times
GOOD_PART = 0.1  # share of features above the threshold that counts as a good part


def show(context: Context) -> Blocks:
    """MCS histograms under both nulls, tests of bimodality, and the simulation."""
    study, comparison, chain = context.tables, context.comparison, context.comparison.main
    assert chain is not None  # LARGER is there
    lower = " One to one, random directions lie lower."
    note = study.about.rule + ("" if comparison.shown.matching == "max" else lower)
    # All features of each size, then those alive (figures 2 and 3); once if every one fired.
    every, shown = all(entry.alive.all() for entry in chain.entries), comparison.shown
    variants = [shown] if every else [shown.of("all"), shown.of("alive")]
    figure = draw(comparison, [*product(chain.entries[:-1], variants)], 2, False)
    compared = str(comparison.shown.of("all")).rpartition(",")[0]
    figure.suptitle(f"MCS with larger dictionaries, {figures.titled(study)}\n{compared}")
    yield context.figure("histograms", figure, note)
    humps = study.others["humps"]
    kept = (humps["seed"] == chain.seed) & (study.living is not None)
    kept |= humps["of"] == comparison.shown.features
    humps = humps[kept].drop(columns=["dictionary", "seed"])
    above = f"above {study.threshold:g}"
    yield Table("Tests of bimodality", humps.rename(columns={"above": above}))
    sizes = [entry.size for entry in chain.entries]
    yield context.figure("random_directions", simulated(sizes, study.about.d_in))
    alike = [
        other
        for other in sorted(context.study.chains, key=lambda other: other.level)
        if (other.family, other.seed) == (chain.family, chain.seed)
        and {*sizes} <= {entry.size for entry in other.entries}
    ]
    if len(alike) > 1:  # the main level and its neighbours: how the humps come and go
        start = max(0, min(alike.index(chain) - LEVELS // 2, len(alike) - LEVELS))
        near, swept = alike[start : start + LEVELS], LABELS[chain.axis]
        rows = ([e for one in near for e in one.entries if e.size == size] for size in sizes[:-1])
        panels = [(entry, comparison.shown) for row in rows for entry in row]
        figure = draw(comparison, panels, len(near), True)
        figure.suptitle(f"MCS by dictionary size and {swept}\n{comparison.shown}")
        note = f"Columns: {swept}, {len(near)} of {len(alike)} around the main one."
        yield context.figure("histograms_l1", figure, note)


def simulated(sizes: Sequence[int], d: int) -> Figure:
    """MCS of random dictionaries of the real sizes against the exact law (figure 3.5)."""
    rng, (figure, ((axis,),)) = np.random.default_rng(0), figures.grid(1, 1, 3.0)
    colours = figures.shades(len(sizes) - 1)
    for (n, m), colour in zip(pairwise(sizes), colours, strict=True):
        times, draw = range(-(-SIMULATED_ROWS // n)), partial(unit_vectors, d=d, rng=rng)
        values = np.concatenate([max_cosine(draw(n), draw(m)) for _ in times])
        axis.hist(values, bins=40, density=True, color=colour, alpha=0.25, linewidth=0)
        t = np.linspace(max(values.min() - 0.03, -1), min(values.max() + 0.03, 1), 800)
        mean = f"{random_directions.max_mean(d, m):.3f} / {values.mean():.3f}"
        law = random_directions.max_pdf(t, d, m)
        axis.plot(t, law, color=colour, lw=1.4, label=f"{n} in {m}: {mean}")
    axis.legend(title="sizes: exact / simulated mean", loc="upper left", bbox_to_anchor=(1, 1))
    title = f"in {d} dimensions: exact law (lines) and simulation (bars)"
    axis.set(xlabel="MCS of random directions", ylabel="density", title=title)
    return figure


def _bimodal(study: Tables) -> Found:
    """Of the lowest seed's sizes, how many are bimodal."""
    humps = study.others["humps"]
    humps = humps[(humps["seed"] == humps["seed"].min()) & (humps["features"] >= FEWEST)]
    part = humps[humps["of"] == study.about.comparison["features"]]
    if part.empty:
        return Found(f"no size has {FEWEST} features with an MCS: too few")
    two = part["bimodal"] == "yes"
    p = ", ".join(f"{p:.3f}" if p > 0.001 else "≤ .001" for p in part["p"])
    here = f"{two.sum()} of {len(part)} sizes (p by size: {p})"
    if study.living is not None:
        alive = humps.loc[humps["of"] == "alive", "bimodal"] == "yes"
        here += f"; of those ever active {alive.sum()} of {len(alive)}"
    return Found(here, verdict(two.all(), not two.any() or (part["p"] > ONE_HUMP).any()))


def _shift(sizes: Sizes) -> Any:
    """Median MCS less that of random directions, and of Gaussian rows, averaged over sizes."""
    less = [np.median(values[:, :1] - values[:, 1:], axis=0) for values in sizes.values()]
    return np.mean(less, axis=0)


COUNTED = Need(
    "comparison.features=all, which counts what was never active",
    "python analyze.py {name} comparison.features=all",
    lambda study: study.about.comparison["features"] == "all",
)
LOW, MCS = "low_hump == 1", "mcs, random_mmcs, gaussian_mmcs"
BARS = {"fewest": FEWEST, "one_hump": ONE_HUMP, "p": bimodality.P, "apart": bimodality.APART}
CLAIMS = (
    Claim("bimodal", judge=_bimodal, bars=BARS),
    Claim("low_hump_random", MCS, Lies(-0.1, 0.1, 2, either), _shift, where=LOW),
    Claim("low_hump_dead", "~alive", Lies(0.5), where=LOW, needs=(LARGER, COUNTED), living=False),
    Claim("share_above_threshold", "found", Lies(GOOD_PART)),
)
ANALYSIS = Analysis("histograms", show, CLAIMS, measure, needs=(LARGER,), seconds=(1.9, 5.5))
