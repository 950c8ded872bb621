"""What the report says: one function a part of the analysis, each giving a `Section`."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis import bimodality, claims, figures, random_directions, sparsity
from sparse_dict.analysis.agreement import SeedPair, found_along, seed_groups
from sparse_dict.analysis.comparison import VARIANTS, Comparison, Variant
from sparse_dict.analysis.report import Code, Notes, Picture, Section, Table
from sparse_dict.analysis.ridge import Ridge
from sparse_dict.analysis.similarity import match, max_cosine
from sparse_dict.analysis.study import Chain, Study

Floats = NDArray[np.floating[Any]]
# Writes a figure to disk and logs it; gives what the report embeds.
Draw = Callable[[str, Figure, str, str], Picture]

NO_CHAIN = (
    "No dictionary of this study has a larger one that differs from it in size alone, so MCS is "
    "not defined. Train further sizes with the same L1 and seed."
)
GRID_COLUMNS = 5  # L1 values in the appendix's grid of histograms
SIMULATED_ROWS = 4096  # small dictionaries are drawn several times
MATCH_TABLE_SIZE = 4096  # the table of all variants matches dictionaries up to this size


def trained(study: Study, name: str) -> Section:
    """What was trained on what, told from the records of the dictionaries."""
    first = study.entries[0]
    sizes = sorted({e.size for e in study.entries})
    l1 = sorted({e.l1 for e in study.entries})
    seeds = sorted({e.seed for e in study.entries})
    rows = sorted({int(e.metrics.get("n_activations", 0)) for e in study.entries})
    fingerprint = (first.metrics.get("fingerprints") or {}).get("activations", "unknown")
    kinds = [family for family in study.families if family]
    text = (
        f"The study {name} holds {len(study.entries)} dictionaries with "
        f"{_listed([str(s) for s in sizes])} features, "
        f"L1 {_listed([figures.l1_label(v) for v in l1])} "
        f"and seed {_listed([str(s) for s in seeds])}"
    )
    text += f", of {len(kinds)} kinds: {'; '.join(kinds)}. " if len(kinds) > 1 else ". "
    text += (
        f"Each saw {_listed([f'{r:,}' for r in rows])} activations of {study.d_in} neurons "
        f"(fingerprint {fingerprint}), and was evaluated on {first.metrics['eval_rows']:,} further "
        "ones, on which a feature that was never active counts as dead."
    )
    section = Section("What was trained", [text])
    section.blocks.append(Table("All dictionaries", overview(study), fold=len(study.entries) > 12))
    return section


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def overview(study: Study) -> pd.DataFrame:
    """One row a dictionary: settings and end values (`dictionaries.csv`)."""
    keys = ("tied", "activation", "l1_scaling", "fvu", "mse", "l0", "l1_norm", "dead")
    rows = []
    for entry in study.entries:
        neurons = sparsity.simpson_neurons(entry.decoder[entry.alive])
        rows.append(
            {
                "dictionary": entry.name,
                "family": entry.family,
                "dict_size": entry.size,
                "l1": entry.l1,
                "seed": entry.seed,
                **{key: entry.metrics.get(key) for key in keys},
                "effective_neurons": float(np.nanmean(neurons)) if len(neurons) else float("nan"),
                "n_activations": entry.metrics.get("n_activations"),
                "eval_rows": entry.metrics.get("eval_rows"),
                "seconds": entry.metrics.get("seconds"),
            }
        )
    return pd.DataFrame(rows)


def claim_table(found: Sequence[claims.Claim]) -> Section:
    """The table at the top, and the rules behind the verdicts."""
    section = Section(
        "The post's claims",
        [
            "Each claim of the post “[Replication] Conjecture's Sparse Coding in Small "
            "Transformers”, and of what has been found since on agreement between seeds, with the "
            "value given there, the value here and a 95 % interval. The verdict follows from the "
            "interval by the rule listed below; “cannot be told here” means that the interval "
            "straddles the bar or that the study lacks what the claim needs.",
            Table("Claims and verdicts", claims.table(found)),
        ],
    )
    rules = pd.DataFrame({"claim": [c.claim for c in found], "rule": [c.rule for c in found]})
    section.blocks.append(Table("The rules of the verdicts", rules, fold=True))
    return section


def heatmap(comparison: Comparison, cells: pd.DataFrame, draw: Draw) -> Section:
    """MMCS over size and L1, the number of high features, and a table of all variants."""
    section = Section("Agreement with larger dictionaries")
    chain = comparison.main
    if chain is None:
        section.blocks.append(NO_CHAIN)
        return section
    shown, threshold = comparison.shown, comparison.settings.threshold
    section.blocks.append(
        "For each feature of a dictionary, MCS is its largest (signed) cosine similarity with the "
        "features of a larger dictionary trained with the same L1 and seed; MMCS is the mean over "
        f"the smaller dictionary. Shown: {shown}. Random directions in {comparison.study.d_in} "
        "dimensions reach the values in the last table."
    )
    section.blocks.append(
        draw(
            "heatmap_mmcs", figures.heatmap(cells, shown), "MMCS with larger dictionaries",
            "Each cell is one dictionary, its size on the left and its L1 below; the brighter, the "
            "closer its features come to those of larger ones. The largest size has no row. A "
            "vertical band means that the best L1 is the same for all sizes, a diagonal one that "
            "it grows with the size.",
        )
    )  # fmt: skip
    section.blocks.append(
        draw(
            "high_features", figures.high_counts(cells, shown, threshold),
            f"Number of features with MCS above {threshold:g}",
            "The same cells; the count of features that a larger dictionary contains almost "
            "unchanged.",
        )
    )  # fmt: skip
    section.blocks.append(
        Table(f"All variants at L1 {figures.l1_label(chain.l1)}", _variants(comparison, chain))
    )
    return section


def _variants(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """MMCS of the main chain in all variants, a column a size; and the random expectation."""
    table = []
    for variant in VARIANTS:
        row: dict[str, Any] = {"variant": str(variant)}
        for entry in chain.entries[:-1]:
            partners = comparison.partners(entry, variant.against)
            small = max(p.size for p in partners) <= MATCH_TABLE_SIZE
            if variant.matching == "max" or small or variant == comparison.shown:
                values = comparison.counted(entry, variant)
                row[str(entry.size)] = float(values.mean()) if len(values) else np.nan
            else:
                row[str(entry.size)] = np.nan
        table.append(row)
    for against, label in (("next", "next size"), ("all_larger", "mean of all larger")):
        variant = Variant("max", against, "all")
        exact = {str(e.size): comparison.random_mean(e, variant) for e in chain.entries[:-1]}
        table.append({"variant": f"random directions, {label} (exact)", **exact})
    return pd.DataFrame(table)


def histograms(comparison: Comparison, draw: Draw) -> Section:
    """MCS histograms with the exact random curve, tests of bimodality, and the simulation."""
    section = Section("Two humps")
    chain = comparison.main
    if chain is None:
        section.blocks.append(NO_CHAIN)
        return section
    section.blocks.append(
        "If a dictionary held only features of the model, all would be found again in a larger one "
        "(MCS near 1); if it held only noise, MCS would follow the law of random directions, which "
        "is known exactly: for one of them, P(largest cosine ≤ t) = F(t)^m, with m features in the "
        "larger dictionary and F a Beta law."
    )
    note = " For the plain maximum: one to one, random directions lie a little lower."
    section.blocks.append(
        draw(
            "histograms", figures.histograms(comparison, chain), "MCS of each size",
            f"At L1 {figures.l1_label(chain.l1)}, the best by MMCS. The black curve is the exact "
            "law of random directions with the same number of features; where it rises above the "
            "panel it is cut. Features that were never active on the evaluation rows are orange."
            + (note if comparison.shown.matching == "hungarian" else ""),
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
    section.blocks.append(_simulation(comparison, chain, draw))
    return section


def bimodality_table(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """Dip, p-value, two-component fit and excess over random for each size of a chain."""
    rows = []
    d, threshold = comparison.study.d_in, comparison.settings.threshold
    for entry in chain.entries[:-1]:
        values = comparison.counted(entry)
        bimodal, dip, p = claims.is_bimodal(values)
        fit = bimodality.fit_mixture(values)
        sizes = comparison.sizes(entry)
        excess = bimodality.shared_excess(values, random_directions.mcs_cdf(values, d, sizes))
        rows.append(
            {
                "size": entry.size,
                "features": len(values),
                f"above {threshold:g}": int((values > threshold).sum()),
                "dip": dip,
                "p": p,
                "lower hump": fit.means[0] if fit else np.nan,
                "upper hump": fit.means[1] if fit else np.nan,
                "upper weight": fit.weights[1] if fit else np.nan,
                "separation": fit.separation if fit else np.nan,
                "BIC gain": fit.bic_gain if fit else np.nan,
                "random mean": comparison.random_mean(entry),
                "not random, at least": excess,
                "bimodal": "yes" if bimodal else "no",
            }
        )
    return pd.DataFrame(rows)


def _simulation(comparison: Comparison, chain: Chain, draw: Draw) -> Picture:
    rng = np.random.default_rng(0)
    d = comparison.study.d_in
    simulated = []
    for small, large in zip(chain.entries[:-1], chain.entries[1:], strict=True):
        draws = []
        for _ in range(-(-SIMULATED_ROWS // small.size)):
            rows = random_directions.unit_vectors(small.size, d, rng)
            others = random_directions.unit_vectors(large.size, d, rng)
            draws.append(max_cosine(rows, others, comparison.settings.block_rows))
        simulated.append((small.size, large.size, np.concatenate(draws)))
    return draw(
        "random_directions", figures.random_mcs(simulated, d), "Random directions",
        "What the histograms would look like if nothing were shared: random dictionaries of the "
        "real sizes (small ones drawn several times), plain maximum against the next size, and the "
        "exact law.",
    )  # fmt: skip


def histogram_appendix(comparison: Comparison, draw: Draw) -> Section | None:
    """Histograms at other L1, as many as fit a page; None if the study has one L1."""
    main = comparison.main
    if main is None:
        return None
    alike = [
        chain
        for chain in comparison.study.chains
        if (chain.family, chain.seed) == (main.family, main.seed) and len(chain.entries) > 1
    ]
    if len(alike) < 2:
        return None
    alike.sort(key=lambda chain: chain.l1)
    # The best L1 and its neighbours, so that the grid shows how the humps come and go.
    start = alike.index(main) - GRID_COLUMNS // 2
    start = max(0, min(start, len(alike) - GRID_COLUMNS))
    chosen = alike[start : start + GRID_COLUMNS]
    picture = draw(
        "histograms_l1", figures.histogram_grid(comparison, chosen), "MCS by size and L1",
        f"Rows: sizes; columns: L1 ({len(chosen)} of {len(alike)}, around the best one). Titles "
        "give the number and share of features above the threshold.",
    )  # fmt: skip
    return Section("Appendix: histograms at other L1", [picture])


def agreement(comparison: Comparison, pairs: Sequence[SeedPair], draw: Draw) -> Section:
    """Features found again across sizes and seeds."""
    section = Section("What is found again, and by whom")
    threshold, chain = comparison.settings.threshold, comparison.main
    if chain is not None:
        section.blocks.append(
            draw(
                "agreement_sizes", figures.size_agreement(comparison, chain),
                "Features found again in larger dictionaries",
                "Left: share of features whose MCS exceeds the threshold, by how often they are "
                "active (bars: 95 %, Wilson). Right: starting at each size, the share found in "
                f"every larger dictionary up to the one below (MCS above {threshold:g}).",
            )
        )  # fmt: skip
        section.blocks.append(Table("Chains of sizes", chain_table(comparison, chain)))
    if pairs:
        random = random_pw_mcc(comparison.study.d_in, {pair.first.size for pair in pairs})
        # Kinds side by side are the business of `families`; here, L1 and frequency of the first.
        family = chain.family if chain else comparison.study.families[0]
        alike = [p for p in pairs if p.first.family == family] or list(pairs)
        best = [p for p in alike if chain and p.first.l1 == chain.l1]
        kind = f" Shown: {family}." if len(comparison.study.families) > 1 else ""
        section.blocks.append(
            draw(
                "agreement_seeds", figures.seed_agreement(alike, best or alike, random),
                "How much another seed would have learned",
                "Dictionaries that differ only in the seed, matched one-to-one. PW-MCC: mean "
                "cosine of matched decoder rows (Song et al. 2025). Shared: the matchings of "
                "encoders and decoders give the same partner, both cosines above 0.7 (Paulo and "
                "Belrose 2025). Right: at the best L1. Bars: 95 %." + kind,
            )
        )  # fmt: skip
        section.blocks.append(Table("Pairs of seeds", seed_table(pairs), fold=len(pairs) > 12))
    else:
        groups = seed_groups(comparison.study)
        section.blocks.append(
            f"Seeds were not compared: all {len(groups)} groups exceed analysis.match_limit "
            f"({comparison.settings.match_limit} features)."
            if groups
            else "The study has one seed for each setting, so agreement across seeds is not shown; "
            "train with -m seed=0,1,2 to see it."
        )
    return section


def chain_table(comparison: Comparison, chain: Chain) -> pd.DataFrame:
    """How many features of each size are found in the next, in all larger ones."""
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


def seed_table(pairs: Sequence[SeedPair]) -> pd.DataFrame:
    """PW-MCC and shared fraction of each pair."""
    return pd.DataFrame(
        {
            "family": [p.first.family for p in pairs],
            "dict_size": [p.first.size for p in pairs],
            "l1": [p.first.l1 for p in pairs],
            "seeds": [f"{p.first.seed}, {p.second.seed}" for p in pairs],
            "l0": [p.first.metrics["l0"] for p in pairs],
            "pw_mcc": [p.pw_mcc for p in pairs],
            "shared_fraction": [float(p.shared.mean()) for p in pairs],
        }
    )


def ridge(
    comparison: Comparison, cells: pd.DataFrame, ridges: Sequence[Ridge], draw: Draw
) -> Section:
    """Where MMCS peaks in L1, by size."""
    section = Section("The best L1 by dictionary size")
    if not ridges:
        section.blocks.append(
            "A ridge needs three or more L1 values at each size; this study has fewer."
        )
        return section
    section.blocks.append(
        "For each size the L1 with the best MMCS, refined by a parabola in log L1. If the L1 term "
        "is divided by the dictionary's size, the best L1 grows with it (slope 1, a diagonal in "
        "the heat map); undivided, it should stay (slope 0, a vertical)."
    )
    section.blocks.append(
        draw(
            "ridge", figures.ridge(ridges), "Best L1 against dictionary size",
            "Lines: least squares in the logarithms through the filled points, with the slope's "
            "95 % interval (jackknife over sizes) where three or more sizes allow it.",
        )
    )  # fmt: skip
    scalings = {item.l1_scaling: item for item in reversed(ridges)}
    if len(scalings) > 1:
        both = [scalings[key] for key in sorted(scalings, reverse=True)]  # none, dict_size
        section.blocks.append(
            draw(
                "ridge_heatmaps", figures.ridge_heatmaps(cells, both, comparison.shown),
                "Both ridges on their heat maps",
                "The same L1 for all sizes makes a vertical line, one that grows with the size a "
                "diagonal. Dots: the best L1 of a size (open: at the edge of the grid, not "
                "fitted); lines: the fits of the figure above.",
            )
        )  # fmt: skip
    rows = [
        {
            "family": item.family,
            "size": p.dict_size,
            "best L1": p.l1,
            "MMCS there": p.mmcs,
            "inside the grid": "yes" if p.interior else "no",
        }
        for item in ridges
        for p in item.peaks
    ]
    section.blocks.append(Table("Peaks", pd.DataFrame(rows), fold=len(rows) > 12))
    return section


def neurons(comparison: Comparison, draw: Draw) -> Section:
    """Effective neurons by MCS, against random directions; outliers by name."""
    d, threshold, chain = comparison.study.d_in, comparison.settings.threshold, comparison.main
    section = Section("Sparsity in the neuron basis")
    if chain is None:
        section.blocks.append(NO_CHAIN)
        return section
    sd, random_entropy = sparsity.random_spread(d)
    groups, rows, odd = [], [], []
    for entry in chain.entries[:-1]:
        mcs = comparison.mcs(entry)
        known = np.isfinite(mcs)
        effective, bits = sparsity.simpson_neurons(entry.decoder), sparsity.entropy(entry.decoder)
        high, low = known & (mcs > threshold), known & ~(mcs > threshold)
        groups.append((entry.size, effective[high], effective[low]))
        for label, part in ((f"above {threshold:g}", high), ("the others", low)):
            rows.append(
                {
                    "size": entry.size,
                    "MCS": label,
                    "features": int(part.sum()),
                    "effective neurons": _mean(effective[part]),
                    "entropy (nats)": _mean(bits[part]),
                }
            )
        odd += [
            f"{entry.name}, feature {i}: {effective[i]:.1f} effective neurons, MCS {mcs[i]:.2f}, "
            f"active on {entry.frequency[i]:.2%} of rows"
            for i in sparsity.outliers(np.where(known, effective, np.nan))[:4]
        ]
    section.blocks.append(
        "Effective neurons are 1 / Σp², with p a neuron's share of a decoder row's absolute "
        f"weight: 1 for a single neuron, {d} for all alike. Random directions have "
        f"1 + (d - 1) 2/π = {sparsity.random_simpson(d):.2f} on average (exact), sd {sd:.1f}; "
        f"their entropy is {random_entropy:.3f} nats."
    )
    if any(np.isfinite(part).any() for _, *parts in groups for part in parts):
        section.blocks.append(
            draw(
                "effective_neurons", figures.effective_neurons(groups, d, threshold),
                "Effective neurons of features",
                "Left: mean by size, with 95 % intervals; right: all sizes together, with a normal "
                "curve of the mean and spread of random directions.",
            )
        )  # fmt: skip
    section.blocks.append(Table("Means", pd.DataFrame(rows)))
    if odd:
        section.blocks.append(
            "Outliers, beyond three interquartile ranges from the quartiles of their dictionary "
            "(the four most extreme of each) are listed below."
        )
        section.blocks.append(Notes(odd))
    return section


def _mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def frontier(study: Study, draw: Draw) -> Section:
    """Reconstruction against sparsity."""
    section = Section("Reconstruction against sparsity")
    section.blocks.append(
        draw(
            "frontier", figures.frontier(overview(study)), "FVU against L0",
            "Each point is a dictionary; a line joins those that differ only in L1. FVU is the "
            "squared error over the variance of the activations, L0 the mean number of active "
            "features, both on the evaluation rows.",
        )
    )  # fmt: skip
    return section


def left_out(study: Study) -> Section | None:
    """The folders that could not be used; None if all could."""
    if not study.left_out:
        return None
    return Section(
        "Left out",
        [
            "These folders are not part of the analysis.",
            Notes([f"{item.name}: {item.reason}" for item in study.left_out]),
        ],
    )


def configs(study: Study, config: dict[str, Any]) -> Section:
    """The resolved configs: this stage's, and the main settings of each family of dictionaries."""
    section = Section("Configs", ["The resolved configs that made this report."])
    section.blocks.append(Code("analyze", json.dumps(config, indent=2, default=str)))
    for family in study.families:
        first = next(e for e in study.entries if e.family == family)
        label = f"train_sae, {first.name}" + (f" ({family})" if family else "")
        text = json.dumps(first.metrics["config"], indent=2, default=str)
        section.blocks.append(Code(label, text))
    return section
