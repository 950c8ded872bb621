"""How many neurons a feature is spread over: effective neurons of decoder rows (figure 6)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from scipy.stats import norm

from sparse_dict.analysis.claim import LARGER, Array, Claim, Lies, Sizes, verdict
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measures.effective_neurons import outliers, random_simpson, random_spread
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Notes, Table

# A feature found again counts as sparser than random directions from this share of their effective
# neurons on: the post's difference is 4 % in the other direction.
MARGIN = 0.02
# Directions with nine tenths of their squared length on one of 128 neurons, the rest random, have
# 14 effective neurons, those with as much on two 18; random ones have 82.
FEW = 0.25  # of the effective neurons of random directions: below it a feature is on one or two
RARE = 0.05  # share of features up to which they are outliers
COLOURS = (figures.BLUE, figures.ORANGE)
FEWEST = 5  # features above the threshold, and below it
OTHERS = "the others"


def show(context: Context) -> Blocks:
    """Effective neurons by MCS, against random directions; outliers by name."""
    study, d = context.tables, context.tables.about.d_in
    sd, bits = random_spread(d)
    yield (
        f"In {d} dimensions random directions have 1 + (d - 1) 2/π = {random_simpson(d):.2f} "
        f"effective neurons on average (exact), sd {sd:.1f}; their entropy is {bits:.3f} nats."
    )
    known = study.shown.dropna(subset="found")
    known = known.sort_values(["size", "found"], ascending=[True, False])
    known["MCS"] = known["found"].map({1: f"above {study.threshold:g}", 0: OTHERS})
    if known["neurons"].notna().any():
        yield context.figure("effective_neurons", draw(known, d))
    numbers: dict[str, Any] = {
        "features": ("feature", "size"), "ever active": ("alive", "sum"),
        "effective neurons": ("neurons", "mean"), "entropy (nats)": ("entropy", "mean"),
    }  # fmt: skip
    means = known.groupby(["size", "MCS"], sort=False).agg(**numbers)
    yield Table("Means", means.reset_index())
    known = study.shown.assign(neurons=study.shown["neurons"].where(study.shown["mcs"].notna()))
    odd = [
        f"{name}, feature {row.feature}: {row.neurons:.1f} effective neurons, MCS {row.mcs:.2f}, "
        f"active on {row.frequency:.2%} of rows"
        for name, part in known.groupby("dictionary", sort=False)
        for row in part.iloc[outliers(part["neurons"].to_numpy())[:4]].itertuples()
    ]
    if odd:
        yield (
            "Outliers, beyond three interquartile ranges from the quartiles of their dictionary "
            "(the four most extreme of each):"
        )
        yield Notes(odd)


def draw(known: pd.DataFrame, d: int) -> Figure:
    """Effective neurons of features by size, and of all sizes beside random directions."""
    figure, ((left, right),) = figures.grid(1, 2, 3.2, width_ratios=[1, 1.2])
    mean, (sd, _) = random_simpson(d), random_spread(d)
    numbers = known["MCS"].value_counts(sort=False)
    names = {sort: f"MCS: {sort} ({n})" for sort, n in numbers.items()}
    colours = {names[sort]: COLOURS[sort == OTHERS] for sort in names}
    known = known.assign(MCS=known["MCS"].map(names))
    look: dict[str, Any] = {"hue": "MCS", "palette": colours}
    sns.pointplot(
        known, x="size", y="neurons", errorbar=("se", 1.96), dodge=0.2 * (len(names) > 1),
        linestyles="none", markersize=4, err_kws={"lw": 1}, ax=left, **look,
    )  # fmt: skip
    left.axhline(mean, color="black", lw=1, label=f"random: {mean:.1f} ± {sd:.1f}")
    left.tick_params(axis="x", rotation=0 if known["size"].nunique() <= 5 else 45)
    left.set(xlabel="dictionary size", ylabel="effective neurons, mean and 95 %")
    sns.histplot(
        known, x="neurons", bins=40, stat="density", linewidth=0, common_norm=False, alpha=0.5,
        ax=right, **look,
    )  # fmt: skip
    t = np.linspace(known["neurons"].min(), known["neurons"].max(), 500)
    right.plot(t, norm.pdf(t, mean, sd), color="black", lw=1)
    right.set(xlabel="effective neurons of a feature", ylabel="density", xlim=(t[0], t[-1]))
    figure.suptitle(f"Sparsity in the neuron basis ({d} neurons)")
    return figures.below(figure, left, 3)


def _known(features: pd.DataFrame) -> pd.DataFrame:
    """Effective neurons, of a feature that is found or not, and of random directions.

    Nan if a seed has too few of either sort.
    """
    found = features.groupby("seed")["found"]
    n, above = found.transform("count"), found.transform("sum")
    columns = features[["neurons", "found"]].assign(random=features["d_in"].map(random_simpson))
    return columns.where((above >= FEWEST) & (n - above >= FEWEST))


def _parts(sizes: Sizes) -> tuple[Array, Array, float]:
    """Those of features found again and of the others, of all sizes; and of random directions."""
    neurons, found, random = np.concatenate([*sizes.values()]).T
    return neurons[found == 1], neurons[found == 0], random[0]


def _mean(neurons: Array) -> float:
    """Nan if a resample holds none."""
    return float(neurons.mean()) if len(neurons) else np.nan


def _against_random(sizes: Sizes) -> list[float]:
    found, _, random = _parts(sizes)
    return [_mean(found) - random, _mean(found) - (1 - MARGIN) * random, _mean(found), random]


def _against_others(sizes: Sizes) -> list[float]:
    found, others = map(_mean, _parts(sizes)[:2])
    return [found - others, found, others]


def _on_few(sizes: Sizes) -> list[float]:
    found, _, random = _parts(sizes)
    return [_mean(found < FEW * random), (found < FEW * random).sum(), len(found)]


OfSorts: Callable[..., Claim] = partial(
    Claim, values=_known, bars={"margin": MARGIN, "few": FEW, "rare": RARE, "fewest": FEWEST}
)
CLAIMS = (
    OfSorts(
        "neurons_high_vs_random", rule=lambda _, beyond, *__: Lies(0)(beyond),
        number=_against_random,
    ),
    OfSorts("neurons_high_vs_low", rule=Lies(0), number=_against_others),
    OfSorts(
        "neuron_outliers", number=_on_few,
        rule=lambda few, n, _: verdict(
            bool(n.value) and few.high < RARE, not n.value or few.low > RARE
        ),
    ),
)  # fmt: skip
ANALYSIS = Analysis("sparsity", show, CLAIMS, needs=(LARGER,))
