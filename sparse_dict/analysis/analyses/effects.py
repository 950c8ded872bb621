"""What a feature does to the language model's loss, against how often other trainings find it.

For each feature: the loss when its part is taken out of the activation (ablated), and when the part
of its match in another dictionary is put in its place (substituted); see `analysis/effects.py`.
"""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import rankdata

from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.effects import Compared
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import Entry
from sparse_dict.errors import UserError
from sparse_dict.storage import files

Floats = NDArray[np.floating[Any]]

RECURS = 0.5  # a feature recurs if at least this share of the other dictionaries share it
THIRDS = ("rare", "middle", "frequent")  # by firing frequency
FEWEST = 20  # features that a claim needs
DRAWS = 200  # random subspaces

SIGNAL = Statement(
    "recurring_carry_the_loss",
    "Features that recur carry most of the loss-relevant signal",
    "arXiv 2606.12138",
    "most of it",
    "Of the summed change of the language model's loss on ablating one feature at a time, the "
    "share of features that at least half of the other dictionaries (seeds, and rows where they "
    "differ) share: holds if the 95 % interval lies above 0.5. Over features (bootstrap).",
)

SUBSPACES = Statement(
    "others_span_the_same",
    "Features that do not recur span reproducible subspaces",
    "arXiv 2606.12138",
    "they do",
    "The most frequent features that do not recur, a quarter of d_in at most, in each of two "
    "dictionaries: mean squared cosine of the principal angles between their spans, less that of "
    "random directions, as many. Mean over the other dictionaries: holds if it exceeds 97.5 % of "
    f"the means of {DRAWS} random draws.",
)


def section(context: Context) -> Section | None:
    """The effect of single features against their recurrence."""
    section = Section("What a feature does, and whether it recurs")
    compared = context.recurring
    if compared is None:
        section.blocks.append(
            "Needs two dictionaries that differ in seed or rows alone: train with -m seed=0,1,2."
        )
        return section
    try:
        table, tokens = context.effects
    except UserError as error:
        section.blocks.append(MISSING.format(error))
        return section
    files.write_text(context.folder / "effects.csv", table.to_csv(index=False))
    size, others = compared.entry.size, len(compared.pairs)
    section.blocks.append(
        f"{len(table)} of {size} features of {compared.entry.name}, against {others} others of "
        f"its size and setting; {tokens:,} tokens of the harvested text were searched for contexts."
    )
    section.blocks.append(
        context.draw(
            "effects", drawn(table), "Effect of single features by recurrence",
            "Left: change of the loss on ablating a feature, a mean over all tokens, by the share "
            "of other dictionaries that share it, within thirds of firing frequency (bars: 95 %, "
            "bootstrap). Right: what is left of that change with the match from another "
            "dictionary in its place; on the diagonal the match is no better than nothing.",
        )
    )  # fmt: skip
    section.blocks.append(Table("Effect by recurrence", by_recurrence(table)))
    section.blocks.append(Table("Rank correlation of recurrence and effect", correlations(table)))
    return section


def thirds(frequency: pd.Series) -> NDArray[np.int64]:
    """The third by firing frequency to which each feature belongs: 0, 1 or 2."""
    rank = frequency.rank(method="first").to_numpy() - 1
    return (3 * rank // len(frequency)).astype(int)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's coefficient of recurrence and effect, in all and within thirds of frequency."""
    third = thirds(table["frequency"])
    rows = []
    for name, part in [
        ("all", table), *((name, table[third == i]) for i, name in enumerate(THIRDS))
    ]:  # fmt: skip
        if len(part) < FEWEST or part["recurrence"].nunique() < 2:
            continue
        found = _over_features(part, _spearman)
        rows.append((name, len(part), found.value, found.low, found.high))
    return pd.DataFrame(rows, columns=["features", "n", "spearman", "low", "high"])


def _spearman(t: Floats) -> float:
    """Spearman's coefficient of both columns of (features, 2); NaN where one is constant."""
    ranks = [rankdata(column) for column in t.T]
    return float(np.corrcoef(ranks)[0, 1]) if min(map(np.ptp, t.T)) > 0 else np.nan


def _over_features(table: pd.DataFrame, statistic: Callable[[Floats], float]) -> Estimate:
    """`statistic` of (features, 2), recurrence and effect, with an interval over features."""
    return bootstrap([table[["recurrence", "ablated"]].to_numpy()], lambda s: statistic(s[0]))


def by_recurrence(table: pd.DataFrame) -> pd.DataFrame:
    """Number and effect of the features that recur, and of the others."""
    total = table["ablated"].sum()
    rows = []
    for name, part in [
        ("recur", table[table["recurrence"] >= RECURS]),
        ("do not", table[table["recurrence"] < RECURS]),
    ]:
        ablated = part["ablated"].sum()
        rows.append(
            {
                "features": name,
                "n": len(part),
                "share of features": len(part) / len(table),
                "share of effect": ablated / total,
                "left with the match": part["substituted"].sum() / ablated if ablated else np.nan,
            }
        )
    return pd.DataFrame(rows)


def drawn(table: pd.DataFrame) -> Figure:
    """Effect by recurrence within thirds of frequency, and with the match put in."""
    figure, axes = plt.subplots(1, 2, figsize=(figures.WIDTH, 3.6))
    third = thirds(table["frequency"])
    for i, colour in enumerate(figures.shades(3)):
        part = table[third == i]
        x, y, errors = [], [], []
        bins = np.minimum((part["recurrence"] * 4).astype(int), 3)
        for _, group in part.groupby(bins):
            found = _over_features(group, lambda t: float(t[:, 1].mean()))
            x.append(group["recurrence"].mean())
            y.append(1000 * found.value)
            errors.append((1000 * (found.value - found.low), 1000 * (found.high - found.value)))
        axes[0].errorbar(x, y, np.transpose(errors), fmt="o-", color=colour, ms=4, lw=1, capsize=2)
        axes[1].plot(
            1000 * part["ablated"], 1000 * part["substituted"], ".", color=colour, label=THIRDS[i]
        )
    axes[0].axhline(0, color="0.5", lw=0.8)
    axes[0].set_xlim(-0.05, 1.05)
    axes[0].set_xlabel("share of other dictionaries that share it")
    axes[0].set_ylabel("change of the loss (millinats a token)")
    axes[0].set_title("without the feature")
    axes[1].axhline(0, color="0.5", lw=0.8)
    axes[1].axline((0, 0), slope=1, color="0.5", lw=0.8, ls=":")
    low, high = (lim(axes[1].get_xlim() + axes[1].get_ylim()) for lim in (min, max))
    axes[1].set(xlim=(low, high), ylim=(low, high))
    axes[1].set_xlabel("change without it (millinats a token)")
    axes[1].set_ylabel("change with its match instead")
    axes[1].set_title("with its match in its place")
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, title="firing frequency", loc="outside lower center", ncols=3)
    figure.suptitle("What single features do to the language model's loss")
    return figure


def span_overlap(one: Floats, other: Floats) -> float:
    """Mean squared cosine of the principal angles between the spans of rows (n, d) and (m, d)."""
    bases = [np.linalg.qr(rows.T)[0] for rows in (one, other)]
    return float(np.square(bases[0].T @ bases[1]).sum() / min(len(one), len(other)))


def claims(context: Context) -> list[Claim]:
    """Whether recurring features carry the effect, and what the others span."""
    compared = context.recurring
    if compared is None:
        needed = "needs dictionaries that differ in seed or rows alone"
        return [SIGNAL.undecided(needed), SUBSPACES.undecided(needed)]
    return [_signal(context), _subspaces(compared)]


def _signal(context: Context) -> Claim:
    try:
        table, _ = context.effects
    except UserError as error:
        return SIGNAL.undecided(str(error))
    if len(table) < FEWEST or table["ablated"].sum() <= 0:
        return SIGNAL.undecided("together the features have no effect on the loss")

    def share(t: Floats) -> float:
        return float(t[t[:, 0] >= RECURS, 1].sum() / t[:, 1].sum())

    found = _over_features(table, share)
    number = (table["recurrence"] >= RECURS).mean()
    return SIGNAL.decided(
        f"{found.value:.0%}, by {number:.0%} of the features", found, verdict(found, 0.5)
    )


def _subspaces(compared: Compared) -> Claim:
    d = compared.entry.decoder.shape[1]
    spans: list[tuple[Floats, Floats]] = []
    for pair in compared.pairs:
        one = unstable(pair.first, pair.shared, d // 4)
        # In the other dictionary, a feature is shared if it is the partner of a shared one here.
        theirs = np.ones(pair.second.size, bool)
        cosines = normalised(pair.first.decoder[pair.shared]) @ normalised(pair.second.decoder).T
        theirs[cosines.argmax(axis=1)] = False
        spans.append((one, unstable(pair.second, ~theirs, d // 4)))
    if min(len(rows) for both in spans for rows in both) < FEWEST:
        return SUBSPACES.undecided(f"fewer than {FEWEST} features do not recur")
    value = float(np.mean([span_overlap(*both) for both in spans]))
    rng = np.random.default_rng(0)
    random = np.array(
        [
            np.mean(
                [
                    span_overlap(*(random_directions.unit_vectors(len(r), d, rng) for r in both))
                    for both in spans
                ]
            )
            for _ in range(DRAWS)
        ]
    )
    low, high = np.quantile(random, [0.025, 0.975])
    found = Estimate(value - random.mean(), value - high, value - low, "random subspaces")
    ours = f"{value:.2f}, random directions {random.mean():.2f}"
    return SUBSPACES.decided(ours, found, verdict(found, 0.0))


def unstable(entry: Entry, shared: NDArray[np.bool_], most: int) -> Floats:
    """The decoder rows of the features that are active and not shared, the most frequent ones."""
    kept = np.flatnonzero(~shared & entry.alive)
    return entry.decoder[kept[np.argsort(-entry.frequency[kept])][:most]]


ANALYSIS = Analysis("effects", section, (SIGNAL, SUBSPACES), claims)
