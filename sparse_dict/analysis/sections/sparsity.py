"""How many neurons a feature is spread over: effective neurons of decoder rows (figure 6)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import (
    FAILS,
    HOLDS,
    LARGER,
    OPEN,
    Array,
    Claim,
    Found,
    Lies,
    Sizes,
    estimate,
)
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures.effective_neurons import (
    outliers,
    random_simpson,
    random_spread,
)
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Notes, Table
from sparse_dict.analysis.tables import Tables

# A feature found again counts as sparser than random directions from this share of their effective
# neurons on: the post's difference is 4 % in the other direction.
MARGIN = 0.02
# Directions with nine tenths of their squared length on one of 128 neurons, the rest random, have
# 14 effective neurons, those with as much on two 18; random ones have 82.
FEW = 0.25  # of the effective neurons of random directions: below it a feature is on one or two
RARE = 0.05  # share of features up to which they are outliers
COLOURS = (figures.BLUE, figures.ORANGE)
FEWEST = 5  # features above the threshold, and below it


def show(context: Context) -> Iterator[Block]:
    """Effective neurons by MCS, against random directions; outliers by name."""
    study, d = context.tables, context.tables.about.d_in
    sd, bits = random_spread(d)
    yield (
        f"In {d} dimensions random directions have 1 + (d - 1) 2/π = {random_simpson(d):.2f} "
        f"effective neurons on average (exact), sd {sd:.1f}; their entropy is {bits:.3f} nats."
    )
    known = sorts(study)
    if known["neurons"].notna().any():
        yield context.figure("effective_neurons", draw(known, d))
    means = known.groupby(["size", "MCS"], sort=False).agg(
        features=("feature", "size"),
        alive=("alive", "sum"),
        neurons=("neurons", "mean"),
        entropy=("entropy", "mean"),
    )
    names = {"alive": "ever active", "neurons": "effective neurons", "entropy": "entropy (nats)"}
    yield Table("Means", means.rename(columns=names).reset_index())
    if odd := list(_outliers(study.shown)):
        yield (
            "Outliers, beyond three interquartile ranges from the quartiles of their dictionary "
            "(the four most extreme of each):"
        )
        yield Notes(odd)


def sorts(study: Tables) -> pd.DataFrame:
    """The features that count of the lowest seed, those found again first, as `MCS` says."""
    known = study.shown.dropna(subset="found")
    known = known.sort_values(["size", "found"], ascending=[True, False])
    names = {1: f"above {study.threshold:g}", 0: "the others"}
    return known.assign(MCS=known["found"].map(names))


def _outliers(features: pd.DataFrame) -> Iterator[str]:
    for name, part in features.groupby("dictionary", sort=False):
        values = part["neurons"].where(part["mcs"].notna()).to_numpy()
        for row in part.iloc[outliers(values)[:4]].itertuples():
            yield (
                f"{name}, feature {row.feature}: {row.neurons:.1f} effective neurons, MCS "
                f"{row.mcs:.2f}, active on {row.frequency:.2%} of rows"
            )


def draw(known: pd.DataFrame, d: int) -> Figure:
    """Effective neurons of features by size, and of all sizes beside random directions."""
    figure, ((left, right),) = figures.grid(1, 2, 3.2, width_ratios=[1, 1.2])
    mean, (sd, _) = random_simpson(d), random_spread(d)
    colours = {sort: COLOURS[sort == "the others"] for sort in known["MCS"].unique()}
    sns.pointplot(
        known, x="size", y="neurons", hue="MCS", palette=colours, errorbar=("se", 1.96),
        dodge=0.2 if len(colours) > 1 else False,
        linestyles="none", markersize=4, err_kws={"lw": 1}, legend=False, ax=left,
    )  # fmt: skip
    left.axhline(mean, color="black", lw=1)
    left.tick_params(axis="x", rotation=0 if known["size"].nunique() <= 5 else 45)
    left.set(xlabel="dictionary size", ylabel="effective neurons, mean and 95 %")
    numbers = known["MCS"].value_counts()
    sns.histplot(
        known, x="neurons", hue="MCS", palette=colours, bins=40, stat="density", linewidth=0,
        common_norm=False, alpha=0.5, ax=right, legend=False,
    )  # fmt: skip
    for sort, colour in colours.items():
        right.bar(0, 0, color=colour, alpha=0.5, label=f"MCS: {sort} ({numbers[sort]})")
    t = np.linspace(known["neurons"].min(), known["neurons"].max(), 500)
    normal = np.exp(-0.5 * ((t - mean) / sd) ** 2) / (sd * np.sqrt(2 * np.pi))
    right.plot(t, normal, color="black", lw=1, label=f"random: {mean:.1f} ± {sd:.1f}")
    right.set(xlabel="effective neurons of a feature", ylabel="density", xlim=(t[0], t[-1]))
    figures.below(figure, right, 3)
    figure.suptitle(f"Sparsity in the neuron basis ({d} neurons)")
    return figure


# --- claims ---------------------------------------------------------------------------------------


def _both(features: pd.DataFrame) -> pd.DataFrame:
    """Effective neurons, and whether the feature is found; nan if a seed has too few of either."""
    columns = features[["neurons", "found"]]
    found = features.groupby("seed")["found"]
    enough = (found.transform("sum") >= FEWEST) & (
        found.transform("count") - found.transform("sum") >= FEWEST
    )
    return columns.where(enough)


def _part(sizes: Sizes, found: bool) -> Array:
    neurons, which = np.concatenate([*sizes.values()]).T
    return neurons[which == found]


def _mean(sizes: Sizes, found: bool = True) -> float:
    """Nan if a resample holds none."""
    values = _part(sizes, found)
    return float(values.mean()) if len(values) else np.nan


def _against_random(study: Tables) -> Found:
    expected = random_simpson(study.about.d_in)
    found, seeds = estimate(replace(NOT_SPARSE, number=lambda s: _mean(s) - expected), study)
    if found is None:
        return Found(NOT_SPARSE.too_few)
    ours = float(np.mean([_mean(sizes) for sizes in seeds]))
    return Found(f"{ours:.1f} against {expected:.1f}", Lies(-MARGIN * expected)(found), found)


def _of_both(_found: Estimate, seeds: Sequence[Sizes]) -> str:
    parts = [[_mean(sizes, which) for sizes in seeds] for which in (True, False)]
    high, low = np.mean(parts, axis=1)
    return f"{high:.1f} against {low:.1f}"


def _on_few(study: Tables) -> Found:
    bar = FEW * random_simpson(study.about.d_in)

    def few_of(sizes: Sizes) -> float:
        values = _part(sizes, True)
        return float((values < bar).mean()) if len(values) else np.nan

    found, seeds = estimate(replace(OUTLIERS, number=few_of), study)
    if found is None:
        return Found(OUTLIERS.too_few)
    every = np.concatenate([_part(sizes, True) for sizes in seeds])
    few = int((every < bar).sum())
    verdict = OPEN
    if few and found.high < RARE:
        verdict = HOLDS
    elif not few or found.low > RARE:
        verdict = FAILS
    return Found(f"{few} of {len(every)} features above the threshold", verdict, found)


TOO_FEW = f"fewer than {FEWEST} features above the threshold, or below it"
NOT_SPARSE = Claim(
    "neurons_high_vs_random", _both, judge=_against_random, too_few=TOO_FEW, bars={"margin": MARGIN}
)
OUTLIERS = Claim(
    "neuron_outliers", _both, judge=_on_few, too_few=TOO_FEW, bars={"few": FEW, "rare": RARE}
)
CLAIMS = (
    NOT_SPARSE,
    Claim(
        "neurons_high_vs_low",
        _both,
        Lies(0),
        lambda s: _mean(s) - _mean(s, False),
        _of_both,
        too_few=TOO_FEW,
    ),
    OUTLIERS,
)
ANALYSIS = Analysis("sparsity", show, CLAIMS, needs=(LARGER,))
