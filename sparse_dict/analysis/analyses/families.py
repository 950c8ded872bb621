"""Kinds of dictionaries side by side at equal size: architectures, or ways of training them.

Each kind is taken at the L1, or whatever was swept, that `Comparison.chosen` gives, and then, where
several levels were swept, at the L0 of the plain kind. How much of it another seed would have
learned is measured as in `seeds`, with the definitions of Song et al. (2025) and of Paulo and
Belrose (2025).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis import equal_l0
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.across_seeds import random_pw_mcc
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.seeds import SeedPair, estimate, shared_fraction
from sparse_dict.analysis.study import Entry, Study, kinds
from sparse_dict.sae.usefulness import ENOUGH

TITLE = "Kinds of dictionaries compared"
PANELS = (  # column, title, whether it is a share
    ("shared_fraction", "shared with another seed", True),
    ("pw_mcc", "PW-MCC with another seed", False),
    ("mmcs_next", "MMCS with the next size", False),
    ("fvu", "FVU", False),
    ("l0", "L0", False),
    ("dead_share", "dead", True),
)


def levels(comparison: Comparison) -> dict[str, float]:
    """The level of sparsity at which each family is shown (`Comparison.chosen`)."""
    return {f: comparison.chosen(f)[0].level for f in comparison.study.families}


def table(comparison: Comparison, pairs: Sequence[SeedPair]) -> pd.DataFrame:
    """One row a dictionary or a pair of seeds; columns that a row does not know are nan.

    Columns: kind, dict_size, sparsity, those of `PANELS`.
    """
    chosen, called = levels(comparison), kinds(comparison.study)
    variant = Variant(comparison.shown.matching, "next", comparison.shown.features)
    rows: list[dict[str, Any]] = []
    for entry in comparison.study.entries:
        if entry.level != chosen[entry.family]:
            continue
        has_larger = bool(comparison.partners(entry, "next"))
        mcs = comparison.counted(entry, variant) if has_larger else np.empty(0)
        rows.append(
            {
                "kind": called[entry.family],
                "dict_size": entry.size,
                "sparsity": entry.setting,
                "mmcs_next": float(mcs.mean()) if len(mcs) else np.nan,
                "fvu": float(entry.metrics["fvu"]),
                "l0": float(entry.metrics["l0"]),
                "dead_share": float((~entry.alive).mean()),
            }
        )
    for pair in pairs:
        if pair.first.level == chosen[pair.first.family]:
            rows.append(
                {
                    "kind": called[pair.first.family],
                    "dict_size": pair.first.size,
                    "sparsity": pair.first.setting,
                    "pw_mcc": pair.pw_mcc,
                    "shared_fraction": float(pair.shared.mean()),
                }
            )
    frame = pd.DataFrame(rows)
    return frame.reindex(
        columns=["kind", "dict_size", "sparsity", *(column for column, *_ in PANELS)]
    )


def panels(frame: pd.DataFrame, d: int, pw_mcc: dict[int, float]) -> Figure:
    """Agreement, reconstruction and sparsity by size, a line a kind; dotted: random directions."""
    figure, axes = figures.plt.subplots(2, 3, figsize=(figures.WIDTH, 5.6))
    kinds, sizes = list(dict.fromkeys(frame["kind"])), sorted(frame["dict_size"].unique())
    nexts = dict(pairwise(sizes))
    random = {
        "shared_fraction": dict.fromkeys(sizes, 0.0),  # no cosine reaches 0.7
        "pw_mcc": pw_mcc,
        "mmcs_next": {n: random_directions.mean_mcs(d, [m]) for n, m in nexts.items()},
    }
    for axis, (column, title, share) in zip(axes.flat, PANELS, strict=True):
        known = frame.dropna(subset=[column])
        if not known.empty:
            sns.lineplot(
                known, x="dict_size", y=column, hue="kind", style="kind", hue_order=kinds,
                style_order=kinds, palette=sns.color_palette("colorblind", len(kinds)).as_hex(),
                markers=True, markersize=5, lw=1.2, errorbar=("pi", 100), ax=axis,
            )  # fmt: skip
            axis.get_legend().remove()
        for values in [random[column]] if column in random else []:
            axis.plot(list(values), list(values.values()), color="0.4", ls=":", lw=1.2)
        figures.size_axis(axis, sizes)
        axis.set_ylabel("")
        axis.set_title(title)
        axis.set_ylim(0, 1.03 if column in random else None)
        if share:
            figures.percent_axis(axis)
    handles, labels = next(a for a in axes.flat if a.lines).get_legend_handles_labels()
    handles.append(figures.mpl.lines.Line2D([], [], color="0.4", ls=":", lw=1.2))
    columns = max(1, min(6, 110 // (max(map(len, kinds)) + 6)))
    figure.legend(
        handles, [*labels, "random directions"], loc="outside lower center", ncols=columns
    )
    figure.suptitle("How much of what was learned would another seed have learned?")
    return figure


def answer(study: Study, pairs: Sequence[SeedPair], chosen: dict[str, float]) -> list[str]:
    """For each kind, the share that another seed has learned too, with its interval."""
    lines = []
    for family, name in kinds(study).items():
        shared = [p for p in pairs if (p.first.family, p.first.level) == (family, chosen[family])]
        if shared:
            mean = estimate(shared, shared_fraction)
            interval = f"[{mean.low:.0%}, {mean.high:.0%}] over {mean.over}"
            lines.append(f"{name or 'all'}: {mean.value:.0%} {interval}")
    return lines


def section(context: Context) -> Section | None:
    """Kinds at equal size; None if the study holds one kind only."""
    comparison, study, pairs = context.comparison, context.study, context.seed_pairs
    if len(study.families) < 2:
        return None
    chosen, frame = levels(comparison), table(comparison, pairs)
    random = random_pw_mcc(study.d_in, {pair.first.size for pair in pairs})
    section = Section(
        TITLE,
        [
            "Each kind is shown at one L1 (or k, or L0 penalty), chosen by the rule of the main "
            f"figures: the sparsest with a mean FVU of at most {comparison.settings.max_fvu:g}, "
            f"else the sparsest that explains {ENOUGH:.0%} of what the best does. "
            "All were trained on the same activations. "
            "Agreement depends on sparsity, and dead features (never active on the evaluation "
            "rows) agree by chance alone, so compare kinds whose L0 and dead features are alike."
        ],
    )
    if any(_is_paired(entry) for entry in study.entries):
        section.blocks.append(
            "strategy=freeze_perturb trains a companion of the same size beside each dictionary, "
            "so at the same number of activations it costs twice the work of plain training. A "
            "fair rival is plain training on twice the activations."
        )
    section.blocks.append(
        context.draw(
            "families", panels(frame, study.d_in, random), "Kinds of dictionaries by size",
            "Above, what is found again: shared fraction (the matchings of encoders and decoders "
            "give the same partner, both cosines above 0.7) and PW-MCC (mean cosine of matched "
            "decoder rows) between seeds, and MMCS with the next size. Below, what it costs. "
            "Means; bands from the least to the most of the seeds.",
        )
    )  # fmt: skip
    answers = answer(study, pairs, chosen)
    section.blocks.append(
        "Features that another seed learned too, mean over sizes with a 95 % interval: "
        f"{'; '.join(answers)}."
        if answers
        else MISSING.format("each kind has one seed, so seeds are not compared")
    )
    means = (
        frame.groupby(["dict_size", "kind", "sparsity"], sort=False)
        .mean(numeric_only=True)
        .reset_index()
    )
    titles = {column: title for column, title, _ in PANELS}
    means = means.sort_values("dict_size", kind="stable").rename(columns=titles)
    section.blocks.append(Table("Kinds at equal size, means over seeds", means))
    section.blocks += equal_l0.blocks(context, kinds(study), chosen[study.plain])
    return section


def _is_paired(entry: Entry) -> bool:
    return (entry.metrics["config"].get("sae") or {}).get("strategy") == "freeze_perturb"


ANALYSIS = Analysis("families", section)
