"""How much of what one dictionary learned another seed learned too: part of `agreement`."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claims import FAILS, Claim, Statement, chain_of, verdict
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures.across_seeds import random_pw_mcc
from sparse_dict.analysis.report import figures, frequency
from sparse_dict.analysis.report.page import Picture, Table
from sparse_dict.analysis.seeds import (
    MOST_SEEDS,
    SeedPair,
    by_size,
    estimate,
    shared,
    shared_fraction,
    skipped,
)
from sparse_dict.analysis.study import LABELS, fault, number, seed_groups

FEWEST = 15  # features of a dictionary whose thirds by frequency are compared
ALIKE_L0 = 1.5  # two kinds are compared if their L0 differ by at most this factor

OVER = (
    "The interval is over seeds (jackknife: pairs with a seed in common are not independent) where "
    "there are three or more, else over features (bootstrap)."
)

SEEDS = Statement(
    "shared_across_seeds",
    "Another seed would have learned most of the same features",
    "Paulo and Belrose",
    "30 % shared at 131k latents (not most)",
    "Share of features for which the matchings of encoders and decoders agree with both cosines "
    f"above 0.7, over all pairs of seeds (of at most {MOST_SEEDS}) and then sizes at the chosen "
    f"L1: holds if the 95 % interval lies above 0.5. {OVER}",
    says=FAILS,
)

SEEDS_SIZE = Statement(
    "shared_falls_with_size",
    "Another seed would have learned a smaller share of the largest size than of the smallest",
    "Paulo and Belrose",
    "falls with size",
    "Shared fraction of the smallest size less that of the largest, at the chosen L1: holds if the "
    f"95 % interval lies above 0. {OVER}",
)

SEEDS_FREQUENCY = Statement(
    "shared_rises_with_frequency",
    "Features that fire often are shared between seeds more than those that fire rarely",
    "Paulo and Belrose",
    "rises with frequency",
    "Shared fraction of the upper third of a dictionary's features by firing frequency less that "
    "of the lower third, averaged over pairs of seeds, then over sizes, at the chosen L1: holds if "
    f"the 95 % interval lies above 0. {OVER}",
)

KINDS = (
    "Each setting of plain untied ReLU against the TopK one of its size with the nearest L0, "
    f"within a factor {ALIKE_L0}, averaged. BatchTopK is shown beside it and does not count."
)

SEEDS_TOPK = Statement(
    "relu_steadier_than_topk",
    "ReLU dictionaries with an L1 penalty agree more across seeds than TopK ones",
    "Paulo and Belrose",
    "ReLU steadier",
    "Shared fraction of ReLU less that of TopK dictionaries: holds if the 95 % interval lies above "
    f"0. {KINDS} {OVER}",
    of_all=True,
)

# Abstract of arXiv 2505.20254: about .80 for TopK, as the reward of the right architecture. What it
# says of dictionary sizes was not checked, so no claim on sizes is ascribed to it.
TOPK_PW_MCC = Statement(
    "topk_higher_pw_mcc",
    "TopK dictionaries have a higher PW-MCC across seeds than ReLU ones with an L1 penalty",
    "Song et al.",
    "TopK higher, about .80",
    "PW-MCC of TopK less that of ReLU dictionaries: holds if the 95 % interval lies above 0. "
    f"{KINDS} {OVER}",
    of_all=True,
)

STATEMENTS = (SEEDS, SEEDS_SIZE, SEEDS_FREQUENCY, SEEDS_TOPK, TOPK_PW_MCC)


def blocks(context: Context) -> list[str | Picture | Table]:
    """What the report says of agreement across seeds."""
    comparison, pairs = context.comparison, context.seed_pairs
    if not pairs:
        groups = seed_groups(comparison.study)
        return [
            f"Seeds were not compared: all {len(groups)} groups exceed comparison.match_limit "
            f"({comparison.settings.match_limit} features)."
            if groups
            else "The study has one seed for each setting, so agreement across seeds is not shown; "
            "train with -m seed=0,1,2 to see it."
        ]
    chain = comparison.main
    random = random_pw_mcc(comparison.study.d_in, {pair.first.size for pair in pairs})
    # The analysis `families` compares kinds; this one shows the first by sparsity and frequency.
    family = chain.family if chain else comparison.study.families[0]
    alike = [p for p in pairs if p.first.family == family] or list(pairs)
    best = [p for p in alike if chain and p.first.level == chain.level]
    kind = f" Shown: {family}." if len(comparison.study.families) > 1 else ""
    picture = context.draw(
        "agreement_seeds", seed_agreement(alike, best or alike, random),
        "How much another seed would have learned",
        "Dictionaries that differ only in the seed, matched one-to-one. PW-MCC: mean "
        "cosine of matched decoder rows (Song et al. 2025). Shared: the matchings of "
        "encoders and decoders give the same partner, both cosines above 0.7 (Paulo and "
        f"Belrose 2025). Right: at the chosen {LABELS[alike[0].first.axis]} (bars: 95 %, Wilson, "
        "as if features were independent). Bands: from the least to the most of the pairs." + kind,
    )  # fmt: skip
    left_out = skipped(comparison)
    notes = [f"Some dictionaries were not compared: {left_out}."] if left_out else []
    return [*notes, picture, Table("Pairs of seeds", seed_table(pairs), fold=len(pairs) > 12)]


def seed_table(pairs: Sequence[SeedPair]) -> pd.DataFrame:
    """PW-MCC and shared fraction of each pair."""
    axes = {p.first.axis for p in pairs}
    levels = [p.first.level if len(axes) == 1 else p.first.setting for p in pairs]
    return pd.DataFrame(
        {
            "family": [p.first.family for p in pairs],
            "dict_size": [p.first.size for p in pairs],
            LABELS[axes.pop()] if len(axes) == 1 else "sparsity": levels,
            "seeds": [f"{p.first.seed}, {p.second.seed}" for p in pairs],
            "l0": [p.first.metrics["l0"] for p in pairs],
            "pw_mcc": [p.pw_mcc for p in pairs],
            "shared_fraction": [float(p.shared.mean()) for p in pairs],
        }
    )


def seed_agreement(
    pairs: Sequence[SeedPair], best: Sequence[SeedPair], random: dict[int, float]
) -> Figure:
    """PW-MCC and shared fraction by size, and shared fraction by firing frequency.

    The last is drawn for the pairs in `best`. `random` is the PW-MCC of random directions by
    dictionary size.
    """
    rows = pd.DataFrame(
        {
            "size": [pair.first.size for pair in pairs],
            "level": [number(pair.first.level) for pair in pairs],
            "order": [pair.first.level for pair in pairs],
            "kind": [pair.first.family or "all" for pair in pairs],
            "PW-MCC": [pair.pw_mcc for pair in pairs],
            "shared fraction": [float(pair.shared.mean()) for pair in pairs],
        }
    ).sort_values(["kind", "order", "size"])
    levels = list(dict.fromkeys(rows.sort_values("order")["level"]))
    several = rows["kind"].nunique() > 1
    figure, axes = plt.subplots(1, 3, figsize=(figures.WIDTH, 3.6))
    for axis, value in zip(axes[:2], ("PW-MCC", "shared fraction"), strict=True):
        sns.lineplot(
            rows, x="size", y=value, hue="level", hue_order=levels,
            style="kind" if several else None,
            palette=figures.shades(len(levels)), markers=several, marker=None if several else "o",
            markersize=5, errorbar=("pi", 100), ax=axis,
        )  # fmt: skip
        figures.size_axis(axis, sorted(rows["size"].unique()), rotation=45)
        axis.set_ylim(0, 1.03)
        axis.set_ylabel("")
        axis.set_title(value)
    shown = sorted(set(random) & set(rows["size"]))
    axes[0].plot(shown, [random[s] for s in shown], color="0.5", ls=":", label="random directions")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[1].get_legend().remove()
    axes[0].get_legend().remove()
    columns = -(-len(labels) // 3)
    figure.legend(
        handles, labels, title=f"{LABELS[pairs[0].first.axis]} (left and middle)",
        loc="outside lower left", ncols=columns,
    )  # fmt: skip

    groups = []
    for size in sorted({pair.first.size for pair in best}):
        chosen = [pair for pair in best if pair.first.size == size]
        active = np.concatenate([pair.frequency for pair in chosen])
        groups.append((str(size), active, np.concatenate([pair.shared for pair in chosen])))
    frequency.draw(axes[2], groups, "plasma")
    axes[2].set_xlabel("share of rows active")
    axes[2].set_title("shared fraction by frequency")
    handles, labels = axes[2].get_legend_handles_labels()
    columns = -(-len(labels) // 3)
    figure.legend(handles, labels, title="size (right)", loc="outside lower right", ncols=columns)
    figure.suptitle("How much another seed would have learned")
    return figure


def _third(pair: SeedPair, often: bool) -> float:
    """Shared fraction of the third of a pair's features that fires most, or least, often."""
    order = np.argsort(pair.frequency, kind="stable")
    third = len(order) // 3
    return float(pair.shared[order[-third:] if often else order[:third]].mean())


def claims(context: Context) -> list[Claim]:
    """How much two seeds share, and on what that depends."""
    comparison = context.comparison
    pairs = [p for p in context.seed_pairs if not (fault(p.first) or fault(p.second))]
    left_out = skipped(comparison)
    if not pairs:
        why = "no two seeds explain anything" if context.seed_pairs else "the study has one seed"
        why = left_out or why
        return [text.undecided(why) for text in STATEMENTS]
    best_of = chain_of(comparison) or pairs[0].first
    wanted = (best_of.family, best_of.level)
    best = [p for p in pairs if (p.first.family, p.first.level) == wanted]
    found = [
        _kinds(SEEDS_TOPK, pairs, shared, 1, "{:.0%}"),
        _kinds(TOPK_PW_MCC, pairs, lambda pair: pair.pw_mcc, -1, "{:.2f}"),
    ]
    if best:
        found = [_most(best), _falls(best), _rises(best), *found]
    else:
        why = "no two seeds at the chosen L1" + (f"; {left_out}" if left_out else "")
        return [*(text.undecided(why) for text in STATEMENTS[:3]), *found]
    return [replace(c, ours=f"{c.ours}; {left_out}") for c in found] if left_out else found


def _most(best: Sequence[SeedPair]) -> Claim:
    found = estimate(best, shared_fraction)
    return SEEDS.decided(f"{found.value:.0%}", found, verdict(found, 0.5))


def _falls(best: Sequence[SeedPair]) -> Claim:
    sizes = sorted({p.first.size for p in best})
    if len(sizes) < 2:
        return SEEDS_SIZE.undecided("needs two sizes")
    ends = [p for p in best if p.first.size in (sizes[0], sizes[-1])]

    def fall(pairs: Sequence[SeedPair]) -> float:
        small, large = by_size(pairs, shared).values()
        return small - large

    falls, (small, large) = estimate(ends, fall), by_size(ends, shared).values()
    ours = f"{small:.0%} at {sizes[0]}, {large:.0%} at {sizes[-1]}"
    return SEEDS_SIZE.decided(ours, falls, verdict(falls, 0))


def _rises(best: Sequence[SeedPair]) -> Claim:
    enough = [p for p in best if p.first.size >= FEWEST]
    if not enough:
        return SEEDS_FREQUENCY.undecided(f"fewer than {FEWEST} features")

    def mean(pairs: Sequence[SeedPair], often: bool) -> float:
        return float(np.mean(list(by_size(pairs, lambda p: _third(p, often)).values())))

    rises = estimate(enough, lambda pairs: mean(pairs, True) - mean(pairs, False))
    ours = f"{mean(enough, True):.0%} against {mean(enough, False):.0%}"
    return SEEDS_FREQUENCY.decided(ours, rises, verdict(rises, 0))


Setting = tuple[str, float, int]  # family, level, size


def _setting(pair: SeedPair) -> Setting:
    return pair.first.family, pair.first.level, pair.first.size


def _matched(pairs: Sequence[SeedPair], activation: str) -> list[tuple[Setting, Setting]]:
    """Each setting of plain untied ReLU with that of the other kind that is nearest in L0."""
    l0: dict[str, dict[Setting, float]] = {"relu": {}, activation: {}}
    for pair in pairs:
        metrics = pair.first.metrics
        strategy = (metrics["config"].get("sae") or {}).get("strategy", "plain")
        kind = str(metrics.get("activation"))
        if kind in l0 and not metrics.get("tied") and strategy == "plain":
            levels = [float(p.metrics["l0"]) for p in (pair.first, pair.second)]
            l0[kind].setdefault(_setting(pair), max(float(np.mean(levels)), 1e-9))
    found = []
    for one, level in l0["relu"].items():
        distance = {
            other: abs(np.log(level / value))
            for other, value in l0[activation].items()
            if other[2] == one[2]
        }
        nearest = min(distance, key=lambda other: distance[other], default=None)
        if nearest is not None and distance[nearest] < np.log(ALIKE_L0):
            found.append((one, nearest))
    return found


def _means(
    pairs: Sequence[SeedPair],
    matched: Sequence[tuple[Setting, Setting]],
    of: Callable[[SeedPair], float],
) -> tuple[float, float]:
    """Mean over the pairs of each setting, then over the settings of either side of `matched`."""
    values: dict[Setting, list[float]] = {}
    for pair in pairs:
        values.setdefault(_setting(pair), []).append(of(pair))
    one, other = (
        float(np.mean([np.mean(values[setting]) for setting in side]))
        for side in zip(*matched, strict=True)
    )
    return one, other


def _kinds(
    text: Statement,
    pairs: Sequence[SeedPair],
    of: Callable[[SeedPair], float],
    sign: int,
    spec: str,
) -> Claim:
    """The claim on `of` for ReLU less TopK, or with `sign` -1 TopK less ReLU; BatchTopK beside."""
    matched = {kind: _matched(pairs, kind) for kind in ("topk", "batch_topk")}

    def difference(chosen: Sequence[SeedPair]) -> float:
        relu, topk = _means(chosen, matched["topk"], of)
        return sign * (relu - topk)

    shown = {
        kind: " against ".join(spec.format(v) for v in _means(pairs, found, of)[::sign])
        for kind, found in matched.items()
        if found
    }
    aside = f"; BatchTopK: {shown['batch_topk']}" if "batch_topk" in shown else ""
    if "topk" not in shown:
        why = "needs several seeds of ReLU and TopK dictionaries of similar L0"
        return text.undecided(why + aside)
    settings = {setting for match in matched["topk"] for setting in match}
    apart = estimate([p for p in pairs if _setting(p) in settings], difference)
    return text.decided(shown["topk"] + aside, apart, verdict(apart, 0))
