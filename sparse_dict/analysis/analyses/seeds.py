"""How much of what one dictionary learned another seed learned too."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claims import Claim, Statement, chain_of, verdict
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.intervals import RESAMPLES, Estimate, over_seeds
from sparse_dict.analysis.measures.mcs import match, normalised
from sparse_dict.analysis.report import figures, frequency
from sparse_dict.analysis.report.page import Draw, Picture, Table
from sparse_dict.analysis.study import LABELS, Entry, Study, number, seed_groups

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

SHARED_ABOVE = 0.7  # Paulo and Belrose's threshold
FEWEST = 15  # features of a dictionary whose thirds by frequency are compared


MOST_SEEDS = 5  # of each dictionary that are compared, the lowest: ten pairs
ALIKE_L0 = 1.5  # factor within which two kinds are compared

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
    f"above 0.7, over all pairs of seeds (of at most {MOST_SEEDS}) and then sizes at the best L1: "
    "holds if the 95 % interval lies above 0.5. The best L1 is that of the best MMCS of the same "
    f"dictionaries, which is a little optimistic. {OVER}",
)

SEEDS_SIZE = Statement(
    "shared_falls_with_size",
    "The larger the dictionary, the smaller the share another seed would have learned",
    "Paulo and Belrose",
    "falls with size",
    "Shared fraction of the smallest size less that of the largest, at the best L1: holds if the "
    f"95 % interval lies above 0. {OVER}",
)

SEEDS_FREQUENCY = Statement(
    "shared_rises_with_frequency",
    "Features that fire often are shared between seeds more than those that fire rarely",
    "Paulo and Belrose",
    "rises with frequency",
    "Shared fraction of the upper third of a dictionary's features by firing frequency less that "
    "of the lower third, averaged over pairs of seeds, then over sizes, at the best L1: holds if "
    f"the 95 % interval lies above 0. {OVER}",
)

KINDS = (
    "Each setting of plain untied ReLU against the TopK one of its size with the nearest L0, "
    f"within a factor {ALIKE_L0}, averaged. BatchTopK is told apart and does not count."
)

SEEDS_TOPK = Statement(
    "relu_steadier_than_topk",
    "ReLU dictionaries with an L1 penalty agree more across seeds than TopK ones",
    "Paulo and Belrose",
    "ReLU steadier",
    "Shared fraction of ReLU less that of TopK dictionaries: holds if the 95 % interval lies above "
    f"0. {KINDS} {OVER}",
)

# Abstract of arXiv 2505.20254: about .80 for TopK, as the reward of the right architecture. What it
# says of dictionary sizes was not checked, so no ordering of sizes is laid at its door.
TOPK_PW_MCC = Statement(
    "topk_higher_pw_mcc",
    "TopK dictionaries have a higher PW-MCC across seeds than ReLU ones with an L1 penalty",
    "Song et al.",
    "TopK higher, about .80",
    "PW-MCC of TopK less that of ReLU dictionaries: holds if the 95 % interval lies above 0. "
    f"{KINDS} {OVER}",
)

CLAIMS = (SEEDS, SEEDS_SIZE, SEEDS_FREQUENCY, SEEDS_TOPK, TOPK_PW_MCC)


@dataclass(frozen=True)
class SeedPair:
    """Two dictionaries that differ only in the seed, matched one-to-one; arrays have shape (n,)."""

    first: Entry
    second: Entry
    cosine: Floats  # of decoder rows, under the decoders' optimal matching
    shared: Bools
    frequency: Floats  # of the first one's features: share of rows

    @property
    def pw_mcc(self) -> float:
        """Mean cosine of optimally matched decoder rows (see `match_pair`)."""
        return float(self.cosine.mean())

    def resampled(self, rng: np.random.Generator) -> "SeedPair":
        """The same pair with features drawn with replacement."""
        i = rng.integers(0, len(self.cosine), len(self.cosine))
        return SeedPair(self.first, self.second, self.cosine[i], self.shared[i], self.frequency[i])


def match_pair(
    first: tuple[NDArray[np.float32], NDArray[np.float32]],
    second: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> tuple[Floats, Bools]:
    """Compare two dictionaries of the same size, each given as encoder and decoder rows (n, d).

    Returns, in the order of the first one's features:
    - the cosine with the partner under the one-to-one matching of decoder rows that maximises
      their sum. Its mean is PW-MCC, the pairwise dictionary mean correlation coefficient of Song
      et al. (2025, arXiv 2505.20254); signed cosines, as in the authors' code;
    - whether the feature is shared in the sense of Paulo and Belrose (2025, arXiv 2501.16615): the
      optimal matching of the encoders and that of the decoders give it the same partner, and both
      cosines exceed 0.7.
    """
    decoder_partner, decoder_cosine = match(normalised(first[1]), normalised(second[1]))
    encoder_partner, encoder_cosine = match(normalised(first[0]), normalised(second[0]))
    shared = decoder_partner == encoder_partner
    shared &= (decoder_cosine > SHARED_ABOVE) & (encoder_cosine > SHARED_ABOVE)
    return decoder_cosine, shared


def compare(study: Study, match_limit: int) -> list[SeedPair]:
    """Match each dictionary with those of all other seeds, of the five lowest where there are more.

    Sizes above `match_limit` are skipped (see `skipped`): exact matching takes time and memory that
    grow steeply.
    """
    pairs = []
    for group in seed_groups(study):
        if group[0].size > match_limit:
            continue
        for first, second in combinations(group[:MOST_SEEDS], 2):
            cosine, shared = match_pair(
                (first.encoder, first.decoder), (second.encoder, second.decoder)
            )
            pairs.append(SeedPair(first, second, cosine, shared, first.frequency))
    return pairs


def skipped(comparison: Comparison) -> str:
    """Says which sizes have several seeds but are too large to match; empty if there is none."""
    limit = comparison.settings.match_limit
    large = sorted({g[0].size for g in seed_groups(comparison.study) if g[0].size > limit})
    if not large:
        return ""
    return f"above comparison.match_limit={limit}, not matched: size {', '.join(map(str, large))}"


def estimate(
    pairs: Sequence[SeedPair], statistic: Callable[[Sequence[SeedPair]], float]
) -> Estimate:
    """A number of pairs of seeds with its 95 % interval.

    Where every kind, level and size has three or more seeds in common, a delete-one jackknife over
    these seeds with Student's t (pairs that share a seed depend on each other, so the pairs do not
    count as independent values; nor would means over the pairs of each seed). Else a bootstrap of
    features within each pair, each pair once, however often `statistic` uses it.
    """
    groups: dict[tuple[str, float, int], set[int]] = {}
    for p in pairs:
        key = (p.first.family, p.first.level, p.first.size)
        groups.setdefault(key, set()).update((p.first.seed, p.second.seed))
    common = set.intersection(*groups.values())
    n = len(common)
    if n < 3:
        rng, value = np.random.default_rng(0), statistic(pairs)
        draws = [statistic([p.resampled(rng) for p in pairs]) for _ in range(RESAMPLES)]
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        return Estimate(value, float(low), float(high), "features (bootstrap)")
    pairs = [p for p in pairs if {p.first.seed, p.second.seed} <= common]
    value = statistic(pairs)
    without = [
        statistic([p for p in pairs if seed not in (p.first.seed, p.second.seed)])
        for seed in sorted(common)
    ]
    return over_seeds([n * value - (n - 1) * part for part in without])


def blocks(
    comparison: Comparison, pairs: Sequence[SeedPair], draw: Draw
) -> list[str | Picture | Table]:
    """What the report says of agreement across seeds."""
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
    # Kinds side by side are the business of `families`; here, sparsity and frequency of the first.
    family = chain.family if chain else comparison.study.families[0]
    alike = [p for p in pairs if p.first.family == family] or list(pairs)
    best = [p for p in alike if chain and p.first.level == chain.level]
    kind = f" Shown: {family}." if len(comparison.study.families) > 1 else ""
    picture = draw(
        "agreement_seeds", seed_agreement(alike, best or alike, random),
        "How much another seed would have learned",
        "Dictionaries that differ only in the seed, matched one-to-one. PW-MCC: mean "
        "cosine of matched decoder rows (Song et al. 2025). Shared: the matchings of "
        "encoders and decoders give the same partner, both cosines above 0.7 (Paulo and "
        f"Belrose 2025). Right: at the best {LABELS[alike[0].first.axis]} (bars: 95 %, Wilson, as "
        "if features were independent). Bands: from the least to the most of the pairs." + kind,
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


def random_pw_mcc(d: int, sizes: set[int]) -> dict[int, float]:
    """PW-MCC of one draw of random directions, by dictionary size."""
    return {n: _random_pw_mcc(d, n) for n in sorted(sizes)}


@lru_cache(maxsize=64)
def _random_pw_mcc(d: int, n: int) -> float:
    rng = np.random.default_rng([d, n])
    one, other = (random_directions.unit_vectors(n, d, rng) for _ in range(2))
    return float(match(one, other)[1].mean())


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
        axis.set_xscale("log", base=2)
        sizes = sorted(rows["size"].unique())
        axis.set_xticks(sizes, [str(size) for size in sizes], rotation=45)
        axis.minorticks_off()
        axis.set_ylim(0, 1.03)
        axis.set_xlabel("dictionary size")
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


def _by_size(pairs: Sequence[SeedPair], of: Callable[[SeedPair], float]) -> dict[int, float]:
    """Mean over the pairs of each size, by rising size."""
    values: dict[int, list[float]] = {}
    for pair in sorted(pairs, key=lambda p: p.first.size):
        values.setdefault(pair.first.size, []).append(of(pair))
    return {size: float(np.mean(part)) for size, part in values.items()}


def shared_fraction(pairs: Sequence[SeedPair]) -> float:
    """Share of features that the other seed learned too; mean over pairs, then sizes."""
    return float(np.mean(list(_by_size(pairs, _shared).values())))


def _shared(pair: SeedPair) -> float:
    return float(pair.shared.mean())


def _pw_mcc(pair: SeedPair) -> float:
    return pair.pw_mcc


def _third(pair: SeedPair, often: bool) -> float:
    """Shared fraction of the third of a pair's features that fires most, or least, often."""
    order = np.argsort(pair.frequency, kind="stable")
    third = len(order) // 3
    return float(pair.shared[order[-third:] if often else order[:third]].mean())


def claims(comparison: Comparison, pairs: Sequence[SeedPair]) -> list[Claim]:
    """How much is shared, and what that depends on."""
    left_out = skipped(comparison)
    if not pairs:
        why = left_out or "the study has one seed"
        return [text.untold(why) for text in CLAIMS]
    best_of = chain_of(comparison) or pairs[0].first
    wanted = (best_of.family, best_of.level)
    best = [p for p in pairs if (p.first.family, p.first.level) == wanted]
    found = [_steadier(pairs), _higher_pw_mcc(pairs)]
    if best:
        found = [_most(best), _falls(best), _rises(best), *found]
    else:
        why = "no two seeds at the best L1" + (f"; {left_out}" if left_out else "")
        return [*(text.untold(why) for text in CLAIMS[:3]), *found]
    return [replace(c, ours=f"{c.ours}; {left_out}") for c in found] if left_out else found


def _most(best: Sequence[SeedPair]) -> Claim:
    shared = estimate(best, shared_fraction)
    return SEEDS.told(f"{shared.value:.0%}", shared, verdict(shared, 0.5))


def _falls(best: Sequence[SeedPair]) -> Claim:
    sizes = sorted({p.first.size for p in best})
    if len(sizes) < 2:
        return SEEDS_SIZE.untold("needs two sizes")
    ends = [p for p in best if p.first.size in (sizes[0], sizes[-1])]

    def fall(pairs: Sequence[SeedPair]) -> float:
        small, large = _by_size(pairs, _shared).values()
        return small - large

    falls, (small, large) = estimate(ends, fall), _by_size(ends, _shared).values()
    ours = f"{small:.0%} at {sizes[0]}, {large:.0%} at {sizes[-1]}"
    return SEEDS_SIZE.told(ours, falls, verdict(falls, 0))


def _rises(best: Sequence[SeedPair]) -> Claim:
    enough = [p for p in best if p.first.size >= FEWEST]
    if not enough:
        return SEEDS_FREQUENCY.untold(f"fewer than {FEWEST} features")

    def mean(pairs: Sequence[SeedPair], often: bool) -> float:
        return float(np.mean(list(_by_size(pairs, lambda p: _third(p, often)).values())))

    rises = estimate(enough, lambda pairs: mean(pairs, True) - mean(pairs, False))
    ours = f"{mean(enough, True):.0%} against {mean(enough, False):.0%}"
    return SEEDS_FREQUENCY.told(ours, rises, verdict(rises, 0))


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


def _steadier(pairs: Sequence[SeedPair]) -> Claim:
    """Whether ReLU is shared more than TopK."""
    return _kinds(SEEDS_TOPK, pairs, lambda relu, topk: (relu, topk), _shared, "{:.0%}")


def _higher_pw_mcc(pairs: Sequence[SeedPair]) -> Claim:
    """Whether the PW-MCC of TopK is above that of ReLU."""
    return _kinds(TOPK_PW_MCC, pairs, lambda relu, topk: (topk, relu), _pw_mcc, "{:.2f}")


def _kinds(
    text: Statement,
    pairs: Sequence[SeedPair],
    order: Callable[[float, float], tuple[float, float]],
    of: Callable[[SeedPair], float],
    spec: str,
) -> Claim:
    """The first of ReLU and TopK in `order` less the other; BatchTopK is told beside it."""

    def both(chosen: Sequence[SeedPair], activation: str) -> tuple[float, float]:
        return order(*_means(chosen, matched[activation], of))

    def less(chosen: Sequence[SeedPair]) -> float:
        one, other = both(chosen, "topk")
        return one - other

    matched = {kind: _matched(pairs, kind) for kind in ("topk", "batch_topk")}
    told = {
        kind: " against ".join(spec.format(value) for value in both(pairs, kind))
        for kind, found in matched.items()
        if found
    }
    aside = f"; BatchTopK: {told['batch_topk']}" if "batch_topk" in told else ""
    if "topk" not in told:
        why = "needs several seeds of ReLU and TopK dictionaries of similar L0"
        return text.untold(why + aside)
    settings = {setting for match in matched["topk"] for setting in match}
    apart = estimate([p for p in pairs if _setting(p) in settings], less)
    return text.told(told["topk"] + aside, apart, verdict(apart, 0))
