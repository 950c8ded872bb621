"""The post's claims, each with its value, ours, a 95 % interval and a verdict by a stated rule."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis import bimodality, sparsity
from sparse_dict.analysis.agreement import SeedPair, found_along
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.intervals import Estimate, bootstrap, over_seeds
from sparse_dict.analysis.ridge import Ridge
from sparse_dict.analysis.study import Chain
from sparse_dict.analysis.undertraining import Trajectory, growth

Floats = NDArray[np.floating[Any]]

HOLDS, FAILS, UNTOLD = "holds", "does not hold", "cannot be told here"


@dataclass(frozen=True)
class Claim:
    """One line of the table."""

    key: str
    claim: str
    figure: str  # of the post or paper
    post: str
    ours: str
    interval: tuple[float, float] | None  # 95 %
    over: str  # what the interval is over
    verdict: str
    rule: str

    def as_json(self) -> dict[str, Any]:
        """Plain values; an interval that is not finite becomes null."""
        value = asdict(self)
        if self.interval is not None and not np.isfinite(self.interval).all():
            value["interval"] = None
        return value


def verdict(estimate: Estimate, bar: float) -> str:
    """Holds if the interval lies above `bar`, does not if below, cannot be told if across."""
    if not np.isfinite([estimate.low, estimate.high]).all():
        return UNTOLD
    return HOLDS if estimate.low > bar else FAILS if estimate.high < bar else UNTOLD


@dataclass(frozen=True)
class _Text:
    key: str
    claim: str
    figure: str
    post: str
    rule: str

    def untold(self, why: str) -> Claim:
        return Claim(self.key, self.claim, self.figure, self.post, why, None, "", UNTOLD, self.rule)

    def told(self, ours: str, estimate: Estimate | None, outcome: str) -> Claim:
        interval = None if estimate is None else (estimate.low, estimate.high)
        over = "" if estimate is None else estimate.over
        return Claim(
            self.key, self.claim, self.figure, self.post, ours, interval, over, outcome, self.rule
        )


def _estimate(
    comparison: Comparison,
    chain: Chain,
    samples: Callable[[Chain], list[Floats]],
    statistic: Callable[[Sequence[Floats]], float],
) -> Estimate:
    """Over seeds if the chain was trained with three or more, else a bootstrap over features."""
    alike = comparison.same_but_seed(chain)
    if len(alike) >= 3:
        return over_seeds([statistic(samples(other)) for other in alike])
    return bootstrap(samples(chain), statistic)


def _mean_of_means(samples: Sequence[Floats]) -> float:
    return float(np.mean([sample.mean() for sample in samples]))


NO_CHAIN = "no dictionary has a larger one that differs only in size"

ABOVE_RANDOM = _Text(
    "mmcs_above_random",
    "Features agree with those of larger dictionaries far better than random directions do",
    "1",
    "clearly above the random .27 to .33",
    "MMCS less its exact random expectation, at the best L1, averaged over sizes: holds if the "
    "95 % interval lies above 0.1.",
)
BIMODAL = _Text(
    "bimodal",
    "MCS histograms are bimodal",
    "2, 3",
    "two humps in every histogram",
    "At the best L1, a size counts as bimodal if Hartigan's dip test gives p < 0.01, two "
    "Gaussians beat one by BIC, and they lie apart (Ashman's D > 2). Holds if more than half of "
    "the sizes are, does not hold if none is.",
)
LOW_HUMP = _Text(
    "low_hump_random",
    "The lower hump lies where random directions lie",
    "3, 3.5",
    "hump near .3",
    "Median MCS of the features below 0.6 at the best L1, less the random expectation, averaged "
    "over sizes: holds if the 95 % interval lies within 0.1 of zero, does not hold if outside.",
)
HIGH_SHARE = _Text(
    "share_above_threshold",
    "A good part of the features is found again almost unchanged in the next larger dictionary",
    "2, 3",
    "a peak above .9",
    "Share of features with MCS above the threshold at the best L1, averaged over sizes: holds "
    "if the 95 % interval lies above 0.1 (random directions: below 0.001).",
)
INTERIOR = _Text(
    "interior_l1",
    "MMCS depends on L1 and is best at an intermediate value",
    "1, 4",
    "a ridge across the heat map",
    "Mean MMCS over sizes at the best L1, less that at the better end of the L1 grid: holds if "
    "the best L1 is not an end and the 95 % interval lies above 0.",
)
VERTICAL = _Text(
    "ridge_vertical",
    "With an undivided L1 term, the best L1 does not depend on the dictionary's size",
    "5",
    "vertical (slope 0)",
    "Slope of ln best L1 against ln size, l1_scaling=none: holds if the 95 % interval lies within "
    "-0.5 to 0.5, does not hold if outside.",
)
DIAGONAL = _Text(
    "ridge_diagonal",
    "With the L1 term divided by the dictionary's size, the best L1 grows in proportion to it",
    "4",
    "diagonal (slope 1)",
    "The same slope for l1_scaling=dict_size: holds if the 95 % interval lies within 0.5 to 1.5, "
    "does not hold if outside.",
)
NOT_SPARSE = _Text(
    "neurons_high_vs_random",
    "Features found again are no sparser in the neuron basis than random directions",
    "6",
    "85 against 82 effective neurons",
    "Effective neurons (inverse Simpson index) of features above the threshold at the best L1, "
    "less the exact random expectation: holds if the 95 % interval lies above 0.",
)
HIGH_VS_LOW = _Text(
    "neurons_high_vs_low",
    "Features found again are spread over slightly more neurons than the others",
    "6",
    "85 against 83",
    "Mean effective neurons of features above the threshold less that of the others, pooled over "
    "sizes at the best L1: holds if the 95 % interval lies above 0.",
)
CHAINS = _Text(
    "found_along_chain",
    "A feature found again once is found again in every larger dictionary",
    "-",
    "expected of true features",
    "Of the smallest dictionary's features found in the next size, the share found in all larger "
    "ones: holds if the 95 % interval lies above 0.5. Needs three sizes and 20 features found.",
)
SEEDS = _Text(
    "shared_across_seeds",
    "Another seed would have learned most of the same features",
    "Paulo and Belrose",
    "30 % shared at 131k latents (not most)",
    "Share of features for which the matchings of encoders and decoders agree with both cosines "
    "above 0.7, over all pairs of seeds at the best L1: holds if the 95 % interval lies above 0.5.",
)
SEEDS_SIZE = _Text(
    "shared_falls_with_size",
    "The larger the dictionary, the smaller the share another seed would have learned",
    "Paulo and Belrose",
    "falls with size",
    "Shared fraction of the smallest size less that of the largest, at the best L1: holds if the "
    "95 % interval lies above 0.",
)
SEEDS_FREQUENCY = _Text(
    "shared_rises_with_frequency",
    "Features that fire often are shared between seeds more than those that fire rarely",
    "Paulo and Belrose",
    "rises with frequency",
    "Shared fraction of the upper third of the features by firing frequency less that of the "
    "lower third, pooled over pairs of seeds at the best L1: holds if the interval lies above 0.",
)
SEEDS_TOPK = _Text(
    "relu_steadier_than_topk",
    "ReLU dictionaries with an L1 penalty agree more across seeds than TopK ones",
    "Paulo and Belrose",
    "ReLU steadier",
    "Shared fraction of ReLU less that of TopK dictionaries of the same sizes, whose L0 are within "
    "a factor 1.5: holds if the 95 % interval lies above 0.",
)

UNDERTRAINED = _Text(
    "undertrained",
    "Features found again still increase with training at the end: under-trained",
    "-",
    "suspected",
    "Share of features with MCS above the threshold against the next size, at full training less "
    "that at half, averaged over sizes at the best L1: holds if the 95 % interval lies above 0, "
    "else does not hold if it lies below 0.02.",
)


def _above_random(comparison: Comparison, chain: Chain) -> Claim:
    def samples(chain: Chain) -> list[Floats]:
        return [comparison.counted(e) - comparison.random_mean(e) for e in chain.entries[:-1]]

    estimate = _estimate(comparison, chain, samples, _mean_of_means)
    mmcs = comparison.chain_mean(chain)
    ours = f"MMCS {mmcs:.3f}, {estimate.value:+.3f} from random"
    return ABOVE_RANDOM.told(ours, estimate, verdict(estimate, 0.1))


def is_bimodal(values: Floats) -> tuple[bool, float, float]:
    """Whether a histogram counts as bimodal by the rule of the claim; the dip and its p-value."""
    dip, p = bimodality.dip_test(values)
    fit = bimodality.fit_mixture(values)
    two = fit is not None and fit.bic_gain > 0 and fit.separation > 2
    return bool(p < 0.01 and two), dip, p


def _bimodal(comparison: Comparison, chain: Chain) -> Claim:
    outcomes = [is_bimodal(comparison.counted(entry)) for entry in chain.entries[:-1]]
    count = sum(bimodal for bimodal, *_ in outcomes)
    told = HOLDS if 2 * count > len(outcomes) else FAILS if count == 0 else UNTOLD
    p = ", ".join(f"{p:.3f}" if p > 0.001 else "≤ .001" for *_, p in outcomes)
    ours = f"{count} of {len(outcomes)} sizes (p by size: {p})"
    return BIMODAL.told(ours, None, told)


def _low_hump(comparison: Comparison, chain: Chain) -> Claim:
    def samples(chain: Chain) -> list[Floats]:
        shifted = []
        for entry in chain.entries[:-1]:
            values = comparison.counted(entry)
            shifted.append(values[values < 0.6] - comparison.random_mean(entry))
        return [part for part in shifted if len(part) >= 5]

    if not samples(chain):
        return LOW_HUMP.untold("fewer than 5 features lie below 0.6 at any size")
    estimate = _estimate(
        comparison, chain, samples, lambda s: float(np.mean([np.median(part) for part in s]))
    )
    inside = estimate.low > -0.1 and estimate.high < 0.1
    outside = estimate.low > 0.1 or estimate.high < -0.1
    ours = f"median {estimate.value:+.3f} from random"
    return LOW_HUMP.told(ours, estimate, HOLDS if inside else FAILS if outside else UNTOLD)


def _high_share(comparison: Comparison, chain: Chain) -> Claim:
    threshold = comparison.settings.threshold

    def samples(chain: Chain) -> list[Floats]:
        return [(comparison.counted(e) > threshold).astype(float) for e in chain.entries[:-1]]

    estimate = _estimate(comparison, chain, samples, _mean_of_means)
    counts = ", ".join(f"{int(s.sum())} of {len(s)}" for s in samples(chain))
    ours = f"{estimate.value:.0%} ({counts})"
    return HIGH_SHARE.told(ours, estimate, verdict(estimate, 0.1))


def _interior(comparison: Comparison, chain: Chain) -> Claim:
    sizes = [entry.size for entry in chain.entries]
    grid = sorted(
        (
            other
            for other in comparison.study.chains
            if (other.family, other.seed) == (chain.family, chain.seed)
            and [entry.size for entry in other.entries] == sizes
        ),
        key=lambda other: other.l1,
    )
    if len(grid) < 3:
        return INTERIOR.untold(f"the study has {len(grid)} L1 value(s) for all sizes; needs 3")
    ends = max((grid[0], grid[-1]), key=comparison.chain_mean)
    if chain.l1 in (grid[0].l1, grid[-1].l1):
        ours = f"best at L1 {chain.l1:.3g}, the end of the grid"
        return INTERIOR.told(ours, None, UNTOLD)

    k = len(chain.entries) - 1

    def difference(samples: Sequence[Floats]) -> float:
        return _mean_of_means(samples[:k]) - _mean_of_means(samples[k:])

    both = [comparison.counted(e) for c in (chain, ends) for e in c.entries[:-1]]
    estimate = bootstrap(both, difference)
    ours = f"best at L1 {chain.l1:.3g}, {estimate.value:+.3f} against the better end"
    return INTERIOR.told(ours, estimate, verdict(estimate, 0))


def _slope(text: _Text, ridges: Sequence[Ridge], scaling: str, target: float) -> Claim:
    for item in ridges:
        if item.l1_scaling != scaling or item.slope is None or item.interval is None:
            continue
        estimate = Estimate(item.slope, *item.interval, "sizes (jackknife)")
        inside = estimate.low > target - 0.5 and estimate.high < target + 0.5
        outside = estimate.low > target + 0.5 or estimate.high < target - 0.5
        told = HOLDS if inside else FAILS if outside else UNTOLD
        return text.told(f"slope {item.slope:.2f}", estimate, told)
    return text.untold(
        f"needs l1_scaling={scaling} and three sizes whose best L1 is not at an end of the grid"
    )


def _neurons(comparison: Comparison, chain: Chain) -> list[Claim]:
    threshold, d = comparison.settings.threshold, comparison.study.d_in

    def samples(chain: Chain) -> list[Floats]:
        pooled = []
        for entry in chain.entries[:-1]:
            mcs = comparison.mcs(entry)
            neurons = sparsity.simpson_neurons(entry.decoder)
            known = np.isfinite(mcs) & np.isfinite(neurons)
            pooled.append(np.stack([neurons[known], mcs[known] > threshold], axis=1))
        return [np.concatenate(pooled)]

    def high(samples: Sequence[Floats]) -> float:
        neurons, found = samples[0].T
        return float(neurons[found == 1].mean()) if (found == 1).any() else float("nan")

    def low(samples: Sequence[Floats]) -> float:
        neurons, found = samples[0].T
        return float(neurons[found == 0].mean()) if (found == 0).any() else float("nan")

    expected = sparsity.random_simpson(d)
    found = samples(chain)[0][:, 1]
    if min(found.sum(), (found == 0).sum()) < 5:
        why = "fewer than 5 features above the threshold, or below it"
        return [NOT_SPARSE.untold(why), HIGH_VS_LOW.untold(why)]
    above = _estimate(comparison, chain, samples, lambda s: high(s) - expected)
    apart = _estimate(comparison, chain, samples, lambda s: high(s) - low(s))
    means = samples(chain)
    return [
        NOT_SPARSE.told(f"{high(means):.1f} against {expected:.1f}", above, verdict(above, 0)),
        HIGH_VS_LOW.told(f"{high(means):.1f} against {low(means):.1f}", apart, verdict(apart, 0)),
    ]


def _chain(comparison: Comparison, chain: Chain) -> Claim:
    if len(chain.entries) < 3:
        return CHAINS.untold("needs three sizes")

    def samples(chain: Chain) -> list[Floats]:
        run = found_along(comparison, chain)
        return [(run[run >= 1] == len(chain.entries) - 1).astype(float)]

    found = samples(chain)[0]
    if len(found) < 20:
        return CHAINS.untold(f"only {len(found)} features are found in the next size; needs 20")
    estimate = _estimate(comparison, chain, samples, _mean_of_means)
    ours = f"{estimate.value:.0%} ({int(found.sum())} of {len(found)})"
    return CHAINS.told(ours, estimate, verdict(estimate, 0.5))


def _seeds(chain: Chain | None, pairs: Sequence[SeedPair]) -> list[Claim]:
    texts = (SEEDS, SEEDS_SIZE, SEEDS_FREQUENCY, SEEDS_TOPK)
    if not pairs:
        return [
            text.untold("the study has one seed, or its dictionaries are too large to match")
            for text in texts
        ]
    first = chain or Chain(pairs[0].first.family, pairs[0].first.l1, 0, ())
    best = [p for p in pairs if (p.first.family, p.first.l1) == (first.family, first.l1)]
    if not best:
        untold = [text.untold("no two seeds at the best L1") for text in texts[:3]]
        return [*untold, _topk(pairs)]
    shared = bootstrap([p.shared.astype(float) for p in best], _mean_of_means)
    claims = [SEEDS.told(f"{shared.value:.0%}", shared, verdict(shared, 0.5))]

    sizes = sorted({p.first.size for p in best})
    if len(sizes) < 2:
        claims.append(SEEDS_SIZE.untold("needs two sizes"))
    else:
        ends = [[p.shared.astype(float) for p in best if p.first.size == s] for s in sizes]
        k = len(ends[0])
        falls = bootstrap(
            [*ends[0], *ends[-1]], lambda s: _mean_of_means(s[:k]) - _mean_of_means(s[k:])
        )
        small, large = _mean_of_means(ends[0]), _mean_of_means(ends[-1])
        ours = f"{small:.0%} at {sizes[0]}, {large:.0%} at {sizes[-1]}"
        claims.append(SEEDS_SIZE.told(ours, falls, verdict(falls, 0)))

    frequency = np.concatenate([p.first.frequency for p in best])
    found = np.concatenate([p.shared for p in best]).astype(float)
    third = len(found) // 3
    if third < 5:
        claims.append(SEEDS_FREQUENCY.untold("fewer than 15 features"))
    else:
        order = np.argsort(frequency, kind="stable")
        rare, often = found[order[:third]], found[order[-third:]]
        rises = bootstrap([often, rare], lambda s: float(s[0].mean() - s[1].mean()))
        ours = f"{often.mean():.0%} against {rare.mean():.0%}"
        claims.append(SEEDS_FREQUENCY.told(ours, rises, verdict(rises, 0)))
    return [*claims, _topk(pairs)]


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
    estimate = bootstrap(flat, lambda s: _mean_of_means(s[::2]) - _mean_of_means(s[1::2]))
    ours = f"{_mean_of_means(flat[::2]):.0%} against {_mean_of_means(flat[1::2]):.0%}"
    return SEEDS_TOPK.told(ours, estimate, verdict(estimate, 0))


def _undertrained(comparison: Comparison, trajectory: Trajectory) -> Claim:
    chain = comparison.main
    if trajectory.missing is not None or chain is None:
        return UNDERTRAINED.untold(trajectory.missing or NO_CHAIN)
    estimate = _estimate(comparison, chain, lambda c: trajectory.halves[c.seed], growth)
    halves = list(trajectory.halves.values())  # what the estimate is over: see `_estimate`
    shown = halves if len(halves) >= 3 else [trajectory.halves[chain.seed]]
    half, full = np.mean([part.mean(axis=0) for parts in shown for part in parts], axis=0)
    ours = f"{half:.0%} at half, {full:.0%} at full training"
    told = verdict(estimate, 0)
    if told != HOLDS:
        told = FAILS if estimate.high < 0.02 else UNTOLD
    return UNDERTRAINED.told(ours, estimate, told)


def assess(
    comparison: Comparison,
    ridges: Sequence[Ridge] | None,
    pairs: Sequence[SeedPair] | None,
    trajectory: Trajectory | None = None,
) -> list[Claim]:
    """All claims; None stands for a part of the analysis that is turned off."""
    chain = comparison.main
    if chain is not None and any(not len(comparison.counted(e)) for e in chain.entries[:-1]):
        chain = None  # alive features only, and a dictionary without any
    if chain is None:
        texts = (
            ABOVE_RANDOM,
            BIMODAL,
            LOW_HUMP,
            HIGH_SHARE,
            INTERIOR,
            NOT_SPARSE,
            HIGH_VS_LOW,
            CHAINS,
        )
        claims = [text.untold(NO_CHAIN) for text in texts]
    else:
        claims = [
            _above_random(comparison, chain),
            _bimodal(comparison, chain),
            _low_hump(comparison, chain),
            _high_share(comparison, chain),
            _interior(comparison, chain),
            *_neurons(comparison, chain),
            _chain(comparison, chain),
        ]
    off = "turned off by analysis.parts"
    if ridges is None:
        claims += [VERTICAL.untold(off), DIAGONAL.untold(off)]
    else:
        claims += [_slope(VERTICAL, ridges, "none", 0), _slope(DIAGONAL, ridges, "dict_size", 1)]
    if pairs is None:
        claims += [text.untold(off) for text in (SEEDS, SEEDS_SIZE, SEEDS_FREQUENCY, SEEDS_TOPK)]
    else:
        claims += _seeds(chain, pairs)
    if trajectory is None:
        return [*claims, UNDERTRAINED.untold(off)]
    return [*claims, _undertrained(comparison, trajectory)]


def table(claims: Sequence[Claim]) -> pd.DataFrame:
    """The claims as the report's first table."""
    return pd.DataFrame(
        {
            "claim": [c.claim for c in claims],
            "its figure": [c.figure for c in claims],
            "there": [c.post for c in claims],
            "here": [c.ours for c in claims],
            "95 % interval": [
                f"{c.interval[0]:.3f} to {c.interval[1]:.3f}" if c.interval else "-" for c in claims
            ],
            "over": [c.over or "-" for c in claims],
            "verdict": [c.verdict for c in claims],
        }
    )
