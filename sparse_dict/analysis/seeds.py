"""How much of what one dictionary learned another seed learned too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis import figures, frequency, random_directions
from sparse_dict.analysis.claims import Claim, Statement, chain_of, mean_of_means, verdict
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.intervals import bootstrap
from sparse_dict.analysis.report import Draw, Picture, Table
from sparse_dict.analysis.similarity import match, normalised
from sparse_dict.analysis.study import LABELS, Entry, Study, number, seed_groups

Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]

SHARED_ABOVE = 0.7  # Paulo and Belrose's threshold


SEEDS = Statement(
    "shared_across_seeds",
    "Another seed would have learned most of the same features",
    "Paulo and Belrose",
    "30 % shared at 131k latents (not most)",
    "Share of features for which the matchings of encoders and decoders agree with both cosines "
    "above 0.7, over all pairs of seeds at the best L1: holds if the 95 % interval lies above 0.5.",
)

SEEDS_SIZE = Statement(
    "shared_falls_with_size",
    "The larger the dictionary, the smaller the share another seed would have learned",
    "Paulo and Belrose",
    "falls with size",
    "Shared fraction of the smallest size less that of the largest, at the best L1: holds if the "
    "95 % interval lies above 0.",
)

SEEDS_FREQUENCY = Statement(
    "shared_rises_with_frequency",
    "Features that fire often are shared between seeds more than those that fire rarely",
    "Paulo and Belrose",
    "rises with frequency",
    "Shared fraction of the upper third of the features by firing frequency less that of the "
    "lower third, pooled over pairs of seeds at the best L1: holds if the interval lies above 0.",
)

SEEDS_TOPK = Statement(
    "relu_steadier_than_topk",
    "ReLU dictionaries with an L1 penalty agree more across seeds than TopK ones",
    "Paulo and Belrose",
    "ReLU steadier",
    "Shared fraction of ReLU less that of TopK dictionaries of the same sizes, whose L0 are within "
    "a factor 1.5: holds if the 95 % interval lies above 0.",
)


@dataclass(frozen=True)
class SeedPair:
    """Two dictionaries that differ only in the seed, matched one-to-one; arrays have shape (n,)."""

    first: Entry
    second: Entry
    cosine: Floats  # of decoder rows, under the decoders' optimal matching
    shared: Bools

    @property
    def pw_mcc(self) -> float:
        """Mean cosine of optimally matched decoder rows (see `match_pair`)."""
        return float(self.cosine.mean())


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
    """Match each dictionary with that of the next seed, the last with the first.

    So every seed counts equally, and the work grows linearly with the number of seeds. Sizes above
    `match_limit` are skipped: exact matching takes time and memory that grow steeply.
    """
    pairs = []
    for group in seed_groups(study):
        if group[0].size > match_limit:
            continue
        seconds = group[1:] + (group[:1] if len(group) > 2 else [])
        for first, second in zip(group, seconds, strict=False):
            cosine, shared = match_pair(
                (first.encoder, first.decoder), (second.encoder, second.decoder)
            )
            pairs.append(SeedPair(first, second, cosine, shared))
    return pairs


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
        f"Belrose 2025). Right: at the best {LABELS[alike[0].first.axis]}. Bars: 95 %." + kind,
    )  # fmt: skip
    return [picture, Table("Pairs of seeds", seed_table(pairs), fold=len(pairs) > 12)]


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
    rng = np.random.default_rng(0)
    return {
        n: float(
            match(
                random_directions.unit_vectors(n, d, rng), random_directions.unit_vectors(n, d, rng)
            )[1].mean()
        )
        for n in sorted(sizes)
    }


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
            markersize=5, errorbar=("ci", 95) if len(pairs) < 500 else None, ax=axis,
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
        active = np.concatenate([pair.first.frequency for pair in chosen])
        groups.append((str(size), active, np.concatenate([pair.shared for pair in chosen])))
    frequency.draw(axes[2], groups, "plasma")
    axes[2].set_xlabel("share of rows active")
    axes[2].set_title("shared fraction by frequency")
    handles, labels = axes[2].get_legend_handles_labels()
    columns = -(-len(labels) // 3)
    figure.legend(handles, labels, title="size (right)", loc="outside lower right", ncols=columns)
    figure.suptitle("How much another seed would have learned")
    return figure


def claims(comparison: Comparison, pairs: Sequence[SeedPair] | None) -> list[Claim]:
    """How much is shared, and what that depends on; None: seeds were not compared."""
    texts = (SEEDS, SEEDS_SIZE, SEEDS_FREQUENCY, SEEDS_TOPK)
    if pairs is None:
        return [text.untold("agreement is off") for text in texts]
    if not pairs:
        return [
            text.untold("the study has one seed, or its dictionaries are too large to match")
            for text in texts
        ]
    best_of = chain_of(comparison) or pairs[0].first
    wanted = (best_of.family, best_of.level)
    best = [p for p in pairs if (p.first.family, p.first.level) == wanted]
    if not best:
        untold = [text.untold("no two seeds at the best L1") for text in texts[:3]]
        return [*untold, _topk(pairs)]
    shared = bootstrap([p.shared.astype(float) for p in best], mean_of_means)
    found = [SEEDS.told(f"{shared.value:.0%}", shared, verdict(shared, 0.5))]

    sizes = sorted({p.first.size for p in best})
    if len(sizes) < 2:
        found.append(SEEDS_SIZE.untold("needs two sizes"))
    else:
        ends = [[p.shared.astype(float) for p in best if p.first.size == s] for s in sizes]
        k = len(ends[0])
        falls = bootstrap(
            [*ends[0], *ends[-1]], lambda s: mean_of_means(s[:k]) - mean_of_means(s[k:])
        )
        small, large = mean_of_means(ends[0]), mean_of_means(ends[-1])
        ours = f"{small:.0%} at {sizes[0]}, {large:.0%} at {sizes[-1]}"
        found.append(SEEDS_SIZE.told(ours, falls, verdict(falls, 0)))

    active = np.concatenate([p.first.frequency for p in best])
    shares = np.concatenate([p.shared for p in best]).astype(float)
    third = len(shares) // 3
    if third < 5:
        found.append(SEEDS_FREQUENCY.untold("fewer than 15 features"))
    else:
        order = np.argsort(active, kind="stable")
        rare, often = shares[order[:third]], shares[order[-third:]]
        rises = bootstrap([often, rare], lambda s: float(s[0].mean() - s[1].mean()))
        ours = f"{often.mean():.0%} against {rare.mean():.0%}"
        found.append(SEEDS_FREQUENCY.told(ours, rises, verdict(rises, 0)))
    return [*found, _topk(pairs)]


def _topk(pairs: Sequence[SeedPair]) -> Claim:
    relu = [p for p in pairs if p.first.metrics.get("activation") == "relu"]
    topk = [p for p in pairs if "topk" in str(p.first.metrics.get("activation"))]
    matched = [
        (a, b)
        for a in relu
        for b in topk
        if a.first.size == b.first.size
        and 1 / 1.5 < a.first.metrics["l0"] / max(b.first.metrics["l0"], 1e-9) < 1.5
    ]
    if not matched:
        return SEEDS_TOPK.untold("needs several seeds of ReLU and TopK dictionaries of similar L0")
    flat = [p.shared.astype(float) for pair in matched for p in pair]
    estimate = bootstrap(flat, lambda s: mean_of_means(s[::2]) - mean_of_means(s[1::2]))
    ours = f"{mean_of_means(flat[::2]):.0%} against {mean_of_means(flat[1::2]):.0%}"
    return SEEDS_TOPK.told(ours, estimate, verdict(estimate, 0))
