"""MCS of each size: one hump or two, and where random directions lie (figures 2, 3 and 3.5)."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparse_dict.analysis.claim import (
    FAILS,
    HOLDS,
    LARGER,
    OPEN,
    Claim,
    Found,
    Lies,
    Need,
    Sizes,
    either,
)
from sparse_dict.analysis.comparison import GAUSSIAN, Comparison, Variant
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import bimodality, random_directions
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.measures.random_directions import unit_vectors
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.study import LABELS, Chain, Entry
from sparse_dict.analysis.tables import Tables

BINS = np.linspace(0, 1, 51)
LEVELS = 5  # of sparsity side by side
SIMULATED_ROWS = 4096  # small dictionaries are drawn several times
# With fewer features the dip test says little. Of simulated histograms with humps at .30 and .90
# and two fifths in the upper one, it rejects (p < 0.01) 98 % at 50 features, 83 % at 32, 52 % at 16
FEWEST = 50
ONE_HUMP = 0.1  # p of the dip test above which nothing speaks for a second hump
GOOD_PART = 0.1  # share of features above the threshold that counts as a good part


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Tests for two humps of the dictionaries that claims are about; who is in the lower one."""
    comparison, study, rows, lows = context.comparison, context.tables, [], []
    variants = {"low_hump": comparison.shown, "low_hump_alive": comparison.shown.of("alive")}
    names = {*study.main["dictionary"]}
    for entry in [entry for entry in context.study.entries if entry.name in names]:
        low: dict[str, Any] = {"dictionary": entry.name, "feature": np.arange(entry.size)}
        for column, variant in variants.items():
            mcs, sizes = comparison.mcs(entry, variant), comparison.sizes(entry, variant)
            values = mcs[np.isfinite(mcs)]
            found = bimodality.humps(values)
            two = bimodality.are_two(found)
            low[column] = np.nan
            if two and len(values) >= FEWEST:
                between = (found["lower hump"] + found["upper hump"]) / 2
                low[column] = np.where(np.isfinite(mcs), mcs < between, np.nan)
            row = {"dictionary": entry.name, "size": entry.size, "seed": entry.seed}
            row |= {"of": variant.features, "features": len(values)}
            row |= {"above": _above(comparison, entry, variant), **found}
            row |= {"random mean": comparison.random_mean(entry, variant)}
            row |= {"Gaussian mean": comparison.gaussian_mean(entry, variant)}
            if sizes:
                law = random_directions.mcs_cdf(values, study.about.d_in, sizes)
                row["not random, at least"] = bimodality.shared_excess(values, law)
            rows.append(row | {"bimodal": "yes" if two else "no"})
        lows.append(pd.DataFrame(low))
    if not rows:
        return {}
    humps = pd.DataFrame(rows).drop_duplicates(["dictionary", "of"])
    return {"features": pd.concat(lows, ignore_index=True), "humps": humps}


def _above(comparison: Comparison, entry: Entry, variant: Variant) -> int:
    """How many features have an MCS above the threshold."""
    return int((comparison.mcs(entry, variant) > comparison.settings.threshold).sum())


def show(context: Context) -> Iterator[Block]:
    """MCS histograms under both nulls, tests of bimodality, and the simulation."""
    study, comparison, chain = context.tables, context.comparison, context.comparison.main
    assert chain is not None  # LARGER is there
    lower = " One to one, random directions lie lower."
    note = study.about.rule + ("" if comparison.shown.matching == "max" else lower)
    yield context.figure("histograms", by_size(comparison, chain, figures.titled(study)), note)
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
        near = alike[start : start + LEVELS]
        note = f"Columns: {LABELS[chain.axis]}, {len(near)} of {len(alike)} around the main one."
        yield context.figure("histograms_l1", by_level(comparison, near, sizes[:-1]), note)


def by_size(comparison: Comparison, chain: Chain, title: str) -> Figure:
    """All features of each size on the left and those alive on the right (figures 2 and 3).

    Two sizes a row if every feature fired.
    """
    shown, panels = comparison.shown, []
    every = all(entry.alive.all() for entry in chain.entries)
    variants = [shown] if every else [shown.of("all"), shown.of("alive")]
    for entry, variant in product(chain.entries[:-1], variants):
        partners = "/".join(str(p.size) for p in comparison.partners(entry, variant.against))
        above, n = _above(comparison, entry, variant), len(comparison.counted(entry, variant))
        kind = "alive" if variant.features == "alive" else "features"
        of = f"{entry.size} in {partners}: {above} of {n} {kind} above "
        of += f"{comparison.settings.threshold:g} ({above / max(n, 1):.0%})"
        panels.append((of, entry, variant))
    figure = draw(comparison, panels, 2, 1.55)
    compared = str(shown.of("all")).rpartition(",")[0]
    figure.suptitle(f"MCS with larger dictionaries, {title}\n{compared}")
    return figure


def by_level(comparison: Comparison, chains: Sequence[Chain], sizes: Sequence[int]) -> Figure:
    """A row a size, a column a level; with the number above the threshold, and of those alive."""
    panels, shown = [], comparison.shown
    for size, chain in product(sizes, chains):
        entry = next(entry for entry in chain.entries if entry.size == size)
        above, alive = (_above(comparison, entry, v) for v in (shown, shown.of("alive")))
        title = f"{entry.setting}, size {size}\n{above} ({alive} alive)"
        panels.append((title, entry, shown))
    figure = draw(comparison, panels, len(chains), 1.2)
    figure.suptitle(f"MCS by dictionary size and {LABELS[chains[0].axis]}\n{shown}")
    return figure


def draw(
    comparison: Comparison, panels: Sequence[tuple[str, Entry, Variant]], columns: int, row: float
) -> Figure:
    """A histogram of MCS for each dictionary and variant, with its title, under both nulls."""
    rows, bar = -(-len(panels) // columns), comparison.settings.threshold
    figure, axes = figures.grid(rows, columns, 0.9 + row * rows, sharex=True)
    for axis, (title, entry, variant) in zip(axes.flat, panels, strict=False):
        mcs, sizes = comparison.mcs(entry, variant), comparison.sizes(entry, variant)
        known = np.isfinite(mcs)
        counts, *_ = axis.hist(
            [mcs[known & entry.alive], mcs[known & ~entry.alive]], bins=BINS, stacked=True, lw=0,
            color=[figures.BLUE, figures.ORANGE], label=["alive", "dead"],
        )  # fmt: skip
        if sizes:
            t, like = np.linspace(0, 1, 1001), comparison.gaussian_mcs(entry, variant)
            law = random_directions.mcs_pdf(t, comparison.study.d_in, sizes) * BINS[1]
            axis.plot(t, known.sum() * law, color="black", lw=1, label="random directions")
            axis.hist(
                like, bins=BINS, weights=np.full(len(like), known.sum() / max(len(like), 1)),
                histtype="step", color=figures.PURPLE, lw=1, label=GAUSSIAN,
            )  # fmt: skip
        axis.axvline(bar, color="0.4", lw=0.8, ls="--", label=f"threshold {bar:g}")
        # Room for the tallest bar of the data only: the random curve may leave the panel.
        axis.set(xlim=(0, 1), ylim=(0, max(1.0, 1.08 * np.max(counts))))
        axis.set_title(title, loc="left", fontsize=8)
        axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes.flat[: len(panels)][-columns:]:  # the lowest of each column
        axis.set_xlabel("MCS")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("features")
    figures.below(figure, axes[0, 0], 3)
    return figure


def simulated(sizes: Sequence[int], d: int) -> Figure:
    """MCS of random dictionaries of the real sizes against the exact law (figure 3.5)."""
    rng, (figure, ((axis,),)) = np.random.default_rng(0), figures.grid(1, 1, 3.0)
    colours = figures.shades(len(sizes) - 1)
    for (n, m), colour in zip(pairwise(sizes), colours, strict=True):
        draws = [
            max_cosine(unit_vectors(n, d, rng), unit_vectors(m, d, rng))
            for _ in range(-(-SIMULATED_ROWS // n))
        ]
        values = np.concatenate(draws)
        axis.hist(values, bins=40, density=True, color=colour, alpha=0.25, linewidth=0)
        t = np.linspace(max(values.min() - 0.03, -1), min(values.max() + 0.03, 1), 800)
        mean = f"{random_directions.max_mean(d, m):.3f} / {values.mean():.3f}"
        law = random_directions.max_pdf(t, d, m)
        axis.plot(t, law, color=colour, lw=1.4, label=f"{n} in {m}: {mean}")
    axis.legend(title="sizes: exact / simulated mean", loc="upper left", bbox_to_anchor=(1, 1))
    title = f"in {d} dimensions: exact law (lines) and simulation (bars)"
    axis.set(xlabel="MCS of random directions", ylabel="density", title=title)
    return figure


# --- claims ---------------------------------------------------------------------------------------


def _bimodal(study: Tables) -> Found:
    """Of the lowest seed's sizes, how many are bimodal."""
    humps = study.others["humps"]
    humps = humps[(humps["seed"] == humps["seed"].min()) & (humps["features"] >= FEWEST)]
    part = humps[humps["of"] == study.about.comparison["features"]]
    if part.empty:
        return Found(f"no size has {FEWEST} features with an MCS: too few")
    n, two = len(part), part["bimodal"] == "yes"
    one_hump = not two.any() or (part["p"] > ONE_HUMP).any()
    p = ", ".join(f"{p:.3f}" if p > 0.001 else "≤ .001" for p in part["p"])
    here = f"{two.sum()} of {n} sizes (p by size: {p})"
    if study.living is not None:
        alive = humps.loc[humps["of"] == "alive", "bimodal"] == "yes"
        here += f"; of those ever active {alive.sum()} of {len(alive)}"
    return Found(here, HOLDS if two.all() else FAILS if one_hump else OPEN)


def _lower(features: pd.DataFrame) -> pd.DataFrame:
    """MCS of the features in the lower hump, beside both nulls."""
    return features[["mcs", "random_mmcs", "gaussian_mmcs"]].where(features["low_hump"] == 1)


def _shift(sizes: Sizes, null: int = 1) -> float:
    """Median MCS less a null, averaged over sizes: random directions, or (2) Gaussian rows."""
    return float(np.mean([np.median(v[:, 0] - v[:, null]) for v in sizes.values()]))


def _shifts(found: Estimate, seeds: Sequence[Sizes]) -> str:
    gaussian = np.mean([_shift(sizes, 2) for sizes in seeds])
    return f"median {found.value:+.3f} from random, {gaussian:+.3f} from {GAUSSIAN}"


COUNTED = Need(
    "comparison.features=all, which counts what was never active",
    "python analyze.py {name} comparison.features=all",
    lambda study: study.about.comparison["features"] == "all",
)
NO_HUMP = "no size is bimodal, so there is no lower hump"
CLAIMS = (
    Claim("bimodal", judge=_bimodal, bars={"fewest": FEWEST, "one_hump": ONE_HUMP}),
    Claim(
        "low_hump_random",
        _lower,
        Lies(-0.1, 0.1),
        _shift,
        _shifts,
        second=(partial(_shift, null=2), either),
        too_few=NO_HUMP,
    ),
    Claim(
        "low_hump_dead",
        lambda f: (~f["alive"]).where(f["low_hump"] == 1),
        Lies(0.5),
        shown="{:.0%} never active",
        needs=(LARGER, COUNTED),
        too_few=NO_HUMP,
        living=False,
    ),
    Claim("share_above_threshold", lambda f: f["found"], Lies(GOOD_PART)),
)
ANALYSIS = Analysis("histograms", show, CLAIMS, measure, needs=(LARGER,), seconds=(1.9, 5.5))
