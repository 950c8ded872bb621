"""Features found again: in larger dictionaries, along chains of sizes, and by other seeds."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.analyses import agreement_seeds
from sparse_dict.analysis.claims import (
    NEARLY_ALL,
    Claim,
    Statement,
    chain_of,
    counted_chains,
    in_seeds,
    interval,
    mean_of_means,
    verdict,
)
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.report import figures, frequency
from sparse_dict.analysis.report.page import Section, Table
from sparse_dict.analysis.study import Chain

Floats = NDArray[np.floating[Any]]


CHAINS = Statement(
    "found_along_chain",
    "A feature found again once is found again in every larger dictionary",
    "-",
    "expected of true features",
    "Of the smallest dictionary's features found in the next size, the share found in all larger "
    f"ones: holds if the 95 % interval lies above {NEARLY_ALL} (a cosine near the threshold may "
    "fall on either side of it), does not hold if below. Needs three sizes and 20 features found.",
    says=None,
)


def section(context: Context) -> Section:
    """Features found again across sizes and seeds."""
    section = Section("Features found again, in larger dictionaries and by other seeds")
    comparison, chain = context.comparison, context.comparison.main
    threshold = comparison.settings.threshold
    if chain is not None:
        section.blocks.append(
            context.draw(
                "agreement_sizes", size_agreement(comparison, chain),
                "Features found again in larger dictionaries",
                "Left: share of features whose MCS exceeds the threshold, by how often they are "
                "active (bars: 95 %, Wilson). Right: starting at each size, the share found in "
                f"every larger dictionary up to the one below (MCS above {threshold:g}).",
            )
        )  # fmt: skip
        section.blocks.append(Table("Chains of sizes", chain_table(comparison, chain)))
    section.blocks += agreement_seeds.blocks(context)
    return section


def found_along(comparison: Comparison, chain: Chain, start: int = 0) -> NDArray[np.int64]:
    """In how many successive larger dictionaries each feature of a chain's `start`-th is found.

    "Found" means an MCS above the threshold, with the configured matching and features. Shape
    (size,): 0 means not even in the next size; excluded features get -1.
    """
    entry, larger = chain.entries[start], chain.entries[start + 1 :]
    shown = comparison.shown
    columns = [comparison.pair(entry, other, shown.matching, shown.features) for other in larger]
    values = np.stack(columns, axis=1)
    run = np.cumprod(values > comparison.settings.threshold, axis=1).sum(axis=1)
    return np.where(np.isfinite(values).all(axis=1), run, -1)


def chain_table(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """How many features of each size are found in the next size and in all larger ones."""
    rows = []
    for start, entry in enumerate(chain.entries[:-1]):
        run = found_along(comparison, chain, start)
        run = run[run >= 0]
        larger = len(chain.entries) - 1 - start
        rows.append(
            {
                "size": entry.size,
                "features": len(run),
                "larger dictionaries": larger,
                "found in the next": int((run >= 1).sum()),
                "found in all larger": int((run == larger).sum()),
                "share in all larger": float((run == larger).mean()) if len(run) else np.nan,
            }
        )
    return pd.DataFrame(rows)


def size_agreement(comparison: Comparison, chain: Chain) -> Figure:
    """Found again in larger dictionaries: by firing frequency, and along the chain of sizes."""
    threshold = comparison.settings.threshold
    figure, axes = figures.grid(1, 2, 3.2)
    groups = []
    for entry in chain.entries[:-1]:
        values = comparison.mcs(entry)
        known = np.isfinite(values)
        groups.append((str(entry.size), entry.frequency[known], values[known] > threshold))
    frequency.draw(axes[0, 0], groups)
    axes[0, 0].set_ylabel(f"features with MCS above {threshold:g}")
    axes[0, 0].set_title("Found again, by firing frequency")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="dictionary size", loc="outside lower center", ncols=8)

    axis = axes[0, 1]
    sizes = [entry.size for entry in chain.entries]
    for start, colour in zip(range(len(sizes) - 1), figures.shades(len(sizes) - 1), strict=True):
        run = found_along(comparison, chain, start)
        run = run[run >= 0]
        steps = range(len(sizes) - start)
        share = [float((run >= k).mean()) if len(run) else np.nan for k in steps]
        axis.plot(range(start, len(sizes)), share, color=colour, marker="o", ms=3, lw=1)
    axis.set_xticks(range(len(sizes)), [str(size) for size in sizes])
    axis.tick_params(axis="x", rotation=0 if len(sizes) <= 6 else 45)
    axis.set_ylim(-0.03, 1.03)
    figures.percent_axis(axis)
    axis.set_xlabel("up to this dictionary size")
    axis.set_ylabel("found in every larger one")
    axis.set_title("Chains of sizes")
    figure.suptitle(f"Features found again in larger dictionaries, {figures.named(chain)}")
    return figure


def claims(context: Context) -> list[Claim]:
    """What is found again along chains of sizes, and by other seeds."""
    return [_along_chain(context.comparison), *agreement_seeds.claims(context)]


def _along_chain(comparison: Comparison) -> Claim:
    """Whether features found in the next size are found in all larger ones."""
    chain = chain_of(comparison)
    if chain is None:
        return CHAINS.undecided()
    if len(chain.entries) < 3:
        return CHAINS.undecided("needs three sizes")

    def samples(chain: Chain) -> list[Floats]:
        run = found_along(comparison, chain)
        return [(run[run >= 1] == len(chain.entries) - 1).astype(float)]

    if (fewest := len(samples(chain)[0])) < 20:
        return CHAINS.undecided(f"only {fewest} features are found in the next size; needs 20")
    estimate = interval(comparison, chain, samples, mean_of_means)
    chains = counted_chains(comparison, chain)
    found = np.concatenate([samples(other)[0] for other in chains])
    ours = f"{estimate.value:.0%} ({int(found.sum())} of {len(found)}{in_seeds(chains)})"
    return CHAINS.decided(ours, estimate, verdict(estimate, NEARLY_ALL))


STATEMENTS = (CHAINS, *agreement_seeds.STATEMENTS)
ANALYSIS = Analysis("agreement", section, STATEMENTS, claims)
