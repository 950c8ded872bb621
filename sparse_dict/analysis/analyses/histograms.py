"""MCS of each size: one hump or two, and where random directions lie (figures 2, 3 and 3.5)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sparse_dict.analysis.claims import (
    FAILS,
    HOLDS,
    NO_CHAIN,
    OPEN,
    Claim,
    Statement,
    chain_of,
    counted_chains,
    in_seeds,
    interval,
    mean_of_means,
    verdict,
)
from sparse_dict.analysis.comparison import GAUSSIAN, Comparison, Variant
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import bimodality, random_directions
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Picture, Section, Table
from sparse_dict.analysis.study import LABELS, Chain, Entry

Floats = NDArray[np.floating[Any]]
BINS = 50  # on [0, 1]
GRID_COLUMNS = 5  # columns of the appendix's grid of histograms
SIMULATED_ROWS = 4096  # small dictionaries are drawn several times
# With fewer features the dip test says little. Of simulated histograms with humps at .30 and .90
# and two fifths in the upper one, it rejects (p < 0.01) 98 % at 50 features, 83 % at 32, 52 % at 16
FEWEST = 50
ONE_HUMP = 0.1  # p of the dip test above which nothing speaks for a second hump
GOOD_PART = 0.1  # share of features above the threshold that counts as a good part


BIMODAL = Statement(
    "bimodal",
    "Every MCS histogram is bimodal",
    "2, 3",
    "two humps in every histogram",
    "At the chosen L1, a size counts as bimodal if Hartigan's dip test gives p < 0.01, two "
    "Gaussians beat one by BIC, and they lie apart (Ashman's D > 2). Of the sizes with "
    f"{FEWEST} features or more (fewer say too little), holds if all are, does not hold if the dip "
    f"test gives p > {ONE_HUMP} for one or more, or none is bimodal.",
)


LOW_HUMP = Statement(
    "low_hump_random",
    "The lower hump lies where random directions lie",
    "3, 3.5",
    "hump near .3",
    "At the sizes that count as bimodal by the rule above: median MCS of the features nearer to "
    "the lower of the two Gaussians, less the random expectation, averaged over these sizes. Holds "
    "if the 95 % interval lies within 0.1 of zero, does not hold if outside.",
)


LOW_HUMP_DEAD = Statement(
    "low_hump_dead",
    "The lower hump is made mostly of features that are never active",
    "text",
    "never used",
    "At the sizes that count as bimodal by the rule above: share of features never active on the "
    "evaluation rows, of those nearer to the lower of the two Gaussians, averaged over these "
    "sizes. Holds if the 95 % interval lies above 0.5, does not hold if below.",
)


HIGH_SHARE = Statement(
    "share_above_threshold",
    "A good part of the features is found again almost unchanged in the next larger dictionary",
    "2, 3",
    "a peak above .9",
    "Share of features with MCS above the threshold at the chosen L1, averaged over sizes: holds "
    f"if the 95 % interval lies above {GOOD_PART} (random directions: below 0.001).",
)


def section(context: Context) -> Section:
    """MCS histograms with the exact random curve, tests of bimodality, and the simulation."""
    section = Section("Two humps")
    comparison, chain = context.comparison, context.comparison.main
    if chain is None:
        section.blocks.append(MISSING.format(NO_CHAIN))
        return section
    section.blocks.append(
        "If a dictionary held only features of the model, all would be found again in a larger one "
        "(MCS near 1); if it held only noise, MCS would follow the law of random directions, which "
        "is known exactly: for one of them, P(largest cosine ≤ t) = F(t)^m, with m features in the "
        "larger dictionary and F a Beta law."
    )
    note = " That law is of the plain maximum; one to one, random directions lie a little lower."
    section.blocks.append(
        context.draw(
            "histograms", histograms(comparison, chain), "MCS of each size",
            f"{comparison.rule} The black curve is the exact "
            "law of random directions with the same number of features; where it rises above the "
            f"panel it is cut. Purple: {GAUSSIAN}, simulated. "
            "Dead features, never active on the evaluation rows, are orange."
            + (note if comparison.shown.matching != "max" else ""),
        )
    )  # fmt: skip
    section.blocks.append(
        "The dip test asks whether one hump could explain a histogram (small p: no; 0.001 is the "
        "smallest that 999 simulations give). The two-component fit gives the humps' centres and "
        "the upper one's weight; a separation above 2 means distinct humps. The share that cannot "
        "be random is the largest excess of the random distribution function over the observed "
        "one: a lower bound on the features that are truly shared."
    )
    section.blocks.append(Table("Tests of bimodality", bimodality_table(comparison, chain)))
    section.blocks.append(_simulation(context, chain))
    section.blocks += _other_levels(context, chain)
    return section


def bimodality_table(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """Dip, p-value, two-component fit and excess over random for each size of a chain."""
    rows = []
    d, threshold = comparison.study.d_in, comparison.settings.threshold
    for entry in chain.entries[:-1]:
        values = comparison.counted(entry)
        bimodal, dip, p = is_bimodal(values)
        fit = bimodality.fit_mixture(values)
        sizes = comparison.sizes(entry)
        excess = bimodality.shared_excess(values, random_directions.mcs_cdf(values, d, sizes))
        rows.append(
            {
                "size": entry.size,
                "features": len(values),
                f"above {threshold:g}": int((values > threshold).sum()),
                "of those ever active": _above_alive(comparison, entry),
                "dip": dip,
                "p": p,
                "lower hump": fit.means[0] if fit else np.nan,
                "upper hump": fit.means[1] if fit else np.nan,
                "upper weight": fit.weights[1] if fit else np.nan,
                "separation": fit.separation if fit else np.nan,
                "BIC gain": fit.bic_gain if fit else np.nan,
                "random mean": comparison.random_mean(entry),
                "Gaussian mean": comparison.gaussian_mean(entry),
                "not random, at least": excess,
                "bimodal": "yes" if bimodal else "no",
            }
        )
    return pd.DataFrame(rows)


def _above_alive(comparison: Comparison, entry: Entry) -> int:
    """Features above the threshold of those that were ever active, among partners that were."""
    mcs = comparison.counted(entry, replace(comparison.shown, features="alive"))
    return int((mcs > comparison.settings.threshold).sum())


def _simulation(context: Context, chain: Chain) -> Picture:
    rng = np.random.default_rng(0)
    d, block_rows = context.study.d_in, context.comparison.settings.block_rows
    simulated = []
    for small, large in zip(chain.entries[:-1], chain.entries[1:], strict=True):
        draws = []
        for _ in range(-(-SIMULATED_ROWS // small.size)):
            rows = random_directions.unit_vectors(small.size, d, rng)
            others = random_directions.unit_vectors(large.size, d, rng)
            draws.append(max_cosine(rows, others, block_rows))
        simulated.append((small.size, large.size, np.concatenate(draws)))
    return context.draw(
        "random_directions", random_mcs(simulated, d), "Random directions",
        "What the histograms would look like if nothing were shared: random dictionaries of the "
        "real sizes (small ones drawn several times), plain maximum against the next size, and the "
        "exact law.",
    )  # fmt: skip


def _other_levels(context: Context, main: Chain) -> list[Picture]:
    """Histograms at other levels of sparsity, as many as fit a page; none if there is one level."""
    alike = [
        chain
        for chain in context.study.chains
        if (chain.family, chain.seed) == (main.family, main.seed) and len(chain.entries) > 1
    ]
    if len(alike) < 2:
        return []
    alike.sort(key=lambda chain: chain.level)
    # The main level and its neighbours, so that the grid shows how the humps come and go.
    start = alike.index(main) - GRID_COLUMNS // 2
    start = max(0, min(start, len(alike) - GRID_COLUMNS))
    chosen = alike[start : start + GRID_COLUMNS]
    swept = LABELS[main.axis]
    picture = context.draw(
        "histograms_l1", histogram_grid(context.comparison, chosen), f"MCS by size and {swept}",
        f"Rows: sizes; columns: {swept} ({len(chosen)} of {len(alike)}, around the main one). "
        "Titles give the number of features above the threshold, and of those ever active.",
    )  # fmt: skip
    return [picture]


def _histogram(
    axis: Axes, comparison: Comparison, entry: Entry, variant: Variant, long_title: bool
) -> None:
    values, threshold = comparison.mcs(entry, variant), comparison.settings.threshold
    known = np.isfinite(values)
    edges = np.linspace(0, 1, BINS + 1)
    clipped = np.clip(values, 0, 1)
    axis.hist(
        [clipped[known & entry.alive], clipped[known & ~entry.alive]],
        bins=cast(Sequence[float], edges), stacked=True, linewidth=0,
        color=[figures.BLUE, figures.ORANGE], label=["alive", "dead"],
    )  # fmt: skip
    sizes = comparison.sizes(entry, variant)
    if sizes:
        t = np.linspace(0, 1, 1001)
        density = random_directions.mcs_pdf(t, comparison.study.d_in, sizes)
        axis.plot(t, density * known.sum() / BINS, color="black", lw=1, label="random directions")
        like = comparison.gaussian_mcs(entry, variant)
        weights = np.full(len(like), known.sum() / max(len(like), 1))
        axis.hist(
            like, bins=cast(Sequence[float], edges), weights=weights, histtype="step",
            color=figures.PURPLE, lw=1, label=GAUSSIAN,
        )  # fmt: skip
    axis.axvline(threshold, color="0.4", lw=0.8, ls="--", label=f"threshold {threshold:g}")
    above = int((values[known] > threshold).sum())
    share = above / max(int(known.sum()), 1)
    partners = "/".join(str(p.size) for p in comparison.partners(entry, variant.against))
    if long_title:
        kind = "alive" if variant.features == "alive" else "features"
        title = f"{entry.size} in {partners}: {above} of {known.sum()} {kind} above {threshold:g}"
        title += f" ({share:.0%})"
    else:
        title = f"{above} ({_above_alive(comparison, entry)} alive)"
    axis.set_title(title, loc="left", fontsize=8)
    axis.set_xlim(0, 1)
    # Room for the tallest bar of the data only: the random curve may leave the panel.
    counts, _ = np.histogram(clipped[known], bins=edges)
    axis.set_ylim(0, max(1.0, 1.08 * counts.max()))
    axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def histograms(comparison: Comparison, chain: Chain) -> Figure:
    """MCS of each size of a chain with the exact random curve (the post's figures 2 and 3).

    All features on the left and alive ones on the right; two sizes a row if every feature fired.
    """
    shown, entries = comparison.shown, chain.entries[:-1]
    if all(entry.alive.all() for entry in chain.entries):
        panels = [(entry, shown) for entry in entries]
    else:
        panels = [
            (entry, Variant(shown.matching, shown.against, features))
            for entry in entries
            for features in ("all", "alive")
        ]
    rows = (len(panels) + 1) // 2
    figure, axes = figures.grid(rows, 2, 0.9 + 1.55 * rows, sharex=True)
    for axis, (entry, variant) in zip(axes.flat, panels, strict=False):
        _histogram(axis, comparison, entry, variant, long_title=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("features")
    for axis in axes.flat[max(len(panels) - 2, 0) : len(panels)]:  # the lowest of each column
        axis.set_xlabel("MCS")
        axis.tick_params(labelbottom=True)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(
        f"MCS with larger dictionaries, {figures.named(chain)}\n"
        f"{str(Variant(shown.matching, shown.against, 'all')).rpartition(',')[0]}"
    )
    return figure


def histogram_grid(comparison: Comparison, chains: Sequence[Chain]) -> Figure:
    """Small histograms, a row per size and a column per level of sparsity; for the appendix."""
    sizes = sorted({entry.size for chain in chains for entry in chain.entries[:-1]})
    figure, axes = figures.grid(len(sizes), len(chains), 0.9 + 1.2 * len(sizes), sharex=True)
    for column, chain in enumerate(chains):
        by_size = {entry.size: entry for entry in chain.entries[:-1]}
        for row, size in enumerate(sizes):
            axis = axes[row, column]
            if size not in by_size:
                axis.set_visible(False)
                continue
            _histogram(axis, comparison, by_size[size], comparison.shown, long_title=False)
            axis.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
            axis.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            if row == 0:
                axis.set_title(f"{chain.setting}\n{axis.get_title('left')}", loc="left", fontsize=8)
            if row == len(sizes) - 1:
                axis.set_xlabel("MCS")
            if column == 0:
                axis.set_ylabel(f"size {size}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"MCS by dictionary size and {LABELS[chains[0].axis]}\n{comparison.shown}")
    return figure


def random_mcs(simulated: Sequence[tuple[int, int, Floats]], d: int) -> Figure:
    """Simulated MCS of random dictionaries (n, m, values) against the exact density (fig. 3.5)."""
    figure, axes = figures.grid(1, 1, 3.0)
    axis = axes[0, 0]
    low = min(float(values.min()) for *_, values in simulated)
    high = max(float(values.max()) for *_, values in simulated)
    t = np.linspace(max(low - 0.03, -1), min(high + 0.03, 1), 800)
    for (n, m, values), colour in zip(simulated, figures.shades(len(simulated)), strict=True):
        axis.hist(values, bins=40, density=True, color=colour, alpha=0.25, linewidth=0)
        axis.plot(
            t, random_directions.max_pdf(t, d, m), color=colour, lw=1.4,
            label=f"{n} in {m}: {random_directions.max_mean(d, m):.3f} / {values.mean():.3f}",
        )  # fmt: skip
    axis.legend(title="sizes: exact / simulated mean", loc="upper left", bbox_to_anchor=(1, 1))
    axis.set_xlabel("MCS of random directions")
    axis.set_ylabel("density")
    axis.set_title(f"Random directions in {d} dimensions: exact law (lines) and simulation (bars)")
    return figure


def is_bimodal(values: Floats) -> tuple[bool, float, float]:
    """Whether a histogram counts as bimodal by the rule of the claim; the dip and its p-value."""
    dip, p = bimodality.dip_test(values)
    fit = bimodality.fit_mixture(values)
    two = fit is not None and fit.bic_gain > 0 and fit.separation > 2
    return bool(p < 0.01 and two), dip, p


STATEMENTS = (BIMODAL, LOW_HUMP, LOW_HUMP_DEAD, HIGH_SHARE)


def claims(context: Context) -> list[Claim]:
    """Whether the histograms have two humps, where they lie, and what they hold."""
    comparison, chain = context.comparison, chain_of(context.comparison)
    if chain is None:
        return [statement.undecided() for statement in STATEMENTS]
    return [
        _bimodal(comparison, chain),
        *_low_hump(comparison, chain),
        _high_share(comparison, chain),
    ]


def _bimodal(comparison: Comparison, chain: Chain) -> Claim:
    values = [comparison.counted(entry) for entry in chain.entries[:-1]]
    outcomes = [is_bimodal(part) for part in values if len(part) >= FEWEST]
    if not outcomes:
        return BIMODAL.undecided(f"no size has {FEWEST} features with an MCS: too few")
    count = sum(bimodal for bimodal, *_ in outcomes)
    one_hump = count == 0 or any(p > ONE_HUMP for *_, p in outcomes)
    outcome = HOLDS if count == len(outcomes) else FAILS if one_hump else OPEN
    p = ", ".join(f"{p:.3f}" if p > 0.001 else "≤ .001" for *_, p in outcomes)
    ours = f"{count} of {len(outcomes)} sizes (p by size: {p})"
    return BIMODAL.decided(ours, None, outcome)


def _in_low_hump(comparison: Comparison, entry: Entry) -> NDArray[np.bool_] | None:
    """Which features are nearer to the lower hump, (size,); None if there are no two humps."""
    mcs = comparison.mcs(entry)
    known = mcs[np.isfinite(mcs)]
    fit = bimodality.fit_mixture(known)
    if len(known) < FEWEST or fit is None or not is_bimodal(known)[0]:
        return None
    return mcs < sum(fit.means) / 2


def _low_hump(comparison: Comparison, chain: Chain) -> list[Claim]:
    """Where the lower hump lies, and whether its features are dead."""
    shifts: dict[Chain, list[Floats]] = {}
    dead: dict[Chain, list[Floats]] = {}
    for other in counted_chains(comparison, chain):
        lows = {entry: _in_low_hump(comparison, entry) for entry in other.entries[:-1]}
        found = {entry: low for entry, low in lows.items() if low is not None}
        shifts[other] = [
            comparison.mcs(e)[low] - comparison.random_mean(e) for e, low in found.items()
        ]
        dead[other] = [(~e.alive[low]).astype(float) for e, low in found.items()]
    if not all(shifts.values()):
        why = "no size is bimodal, so there is no lower hump"
        return [LOW_HUMP.undecided(why), LOW_HUMP_DEAD.undecided(why)]
    estimate = interval(
        comparison, chain, shifts.__getitem__, lambda s: float(np.mean([np.median(p) for p in s]))
    )
    inside = estimate.low > -0.1 and estimate.high < 0.1
    outside = estimate.low > 0.1 or estimate.high < -0.1
    ours = f"median {estimate.value:+.3f} from random"
    outcome = HOLDS if inside else FAILS if outside else OPEN
    claims = [LOW_HUMP.decided(ours, estimate, outcome)]
    if comparison.shown.features == "alive":
        why = "comparison.features=alive leaves out what was never active"
        return [*claims, LOW_HUMP_DEAD.undecided(why)]
    share = interval(comparison, chain, dead.__getitem__, mean_of_means)
    ours = f"{share.value:.0%} never active"
    return [*claims, LOW_HUMP_DEAD.decided(ours, share, verdict(share, 0.5))]


def _high_share(comparison: Comparison, chain: Chain) -> Claim:
    threshold = comparison.settings.threshold

    def samples(chain: Chain) -> list[Floats]:
        return [(comparison.counted(e) > threshold).astype(float) for e in chain.entries[:-1]]

    estimate = interval(comparison, chain, samples, mean_of_means)
    chains = counted_chains(comparison, chain)
    by_size = zip(*[samples(other) for other in chains], strict=True)
    sizes = [np.concatenate(parts) for parts in by_size]
    counts = ", ".join(f"{int(part.sum())} of {len(part)}" for part in sizes)
    ours = f"{estimate.value:.0%} ({counts}{in_seeds(chains)})"
    return HIGH_SHARE.decided(ours, estimate, verdict(estimate, GOOD_PART))


ANALYSIS = Analysis("histograms", section, STATEMENTS, claims)
