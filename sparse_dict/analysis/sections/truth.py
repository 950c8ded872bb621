"""Dictionaries of toy activations against the features that made them."""

from dataclasses import replace
from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import TRAIN, Claim, Found, Lies, Need
from sparse_dict.analysis.comparison import GAUSSIAN
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.measured.true_features import correlations, is_toy, known, measure
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.intervals import bootstrap
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.study import setting
from sparse_dict.analysis.tables import Tables

FEWEST = 8  # dictionaries that a correlation needs
PANELS = {  # titles and formats of heat maps
    "truth_mmcs": ("MMCS with the truth", ".2f"),
    "truth_found": ("share of true features found", ".0%"),
    "fvu": ("FVU", ".3f"),
    "dead": ("share of dead features", ".0%"),
}

COLUMNS = ["dictionary", "truth_mmcs", "truth_found", "larger_mmcs", "fvu", "l0", "dead"]


def show(context: Context) -> Blocks:
    """What was found of the known features."""
    study, d = context.tables, context.study.d_in
    frame, n = known(study), study.others["truth_best"]["true"].nunique()
    likest = frame.groupby("size")["truth_gaussian"].max()
    chance = ", ".join(
        f"{random_directions.max_mean(d, size):.2f} for {size} (Gaussian {best:.2f} at most)"
        for size, best in likest.items()
    )
    yield (
        f"There are {n} true features in {d} dimensions, and one is found if its MCS exceeds "
        f"{study.threshold:g}. Random dictionaries would reach {chance}, those of {GAUSSIAN} in "
        "parentheses."
    )
    yield context.figure("truth_heatmaps", heatmaps(frame))
    if frame["mmcs"].count() > 2:
        figure = predictor(frame.dropna(subset="mmcs"), str(context.comparison.shown))
        yield context.figure("truth_predictor", figure)
        title = "Correlation of the two, with 95 % intervals over dictionaries"
        yield Table(title, predictions(frame, n))
    table = frame.rename(columns={"mmcs": "larger_mmcs"})[COLUMNS]
    yield Table("All dictionaries against the truth", table, fold=len(table) > 12)


def heatmaps(frame: pd.DataFrame) -> Figure:
    """Agreement with the truth, FVU and dead features by size and L1, a panel of each a family."""
    parts, formats = [], {}
    for (family, part), (column, (title, fmt)) in product(frame.groupby("family"), PANELS.items()):
        panel = f"{title}, {family!s}" if family else title
        parts.append(part.assign(panel=panel, value=part[column]))
        formats[panel] = fmt
    return figures.heatmaps(pd.concat(parts), "value", "", "", formats)


def predictor(frame: pd.DataFrame, shown: str) -> Figure:
    """MMCS-with-truth against MMCS-with-larger, a point per dictionary."""
    figure, axis = plt.subplots(figsize=(5.2, 3.8))
    style = "family" if frame["family"].nunique() > 1 else None
    shades = figures.shades(frame["size"].nunique())
    points = {"x": "mmcs", "y": "truth_mmcs", "hue": "size", "palette": shades, "style": style}
    sns.scatterplot(frame, **points, s=36, ax=axis)
    axis.axline((0, 0), slope=1, color="0.7", lw=0.8, ls="--")
    axis.set(xlabel="MMCS with larger dictionaries", ylabel="MMCS with the truth")
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02))
    sns.move_legend(axis, "upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"Agreement with larger dictionaries, and with the truth\n{shown}")
    return figure


def predictions(frame: pd.DataFrame, n_features: int) -> pd.DataFrame:
    """`correlations` of all dictionaries, of each family, and of those that can hold the truth."""
    of_kind = frame.groupby("family") if frame["family"].nunique() > 1 else ()
    large = frame[frame["size"] >= n_features]
    parts = [("all", frame), *of_kind, (f"{n_features} features or more", large)]
    rows = [
        [name, part["mmcs"].count(), *(f"{found:.2f}" for found in correlations(part))]
        for name, part in parts
        if part["mmcs"].count() > 2
    ]
    return pd.DataFrame(rows, columns=["of", "dictionaries", "Pearson", "Spearman"])


def _found(study: Tables) -> Found:
    best = study.others["truth_best"]
    n = best["true"].nunique()
    large = best[best["size"] >= n]
    if large.empty:
        return Found(f"no dictionary has {n} features or more")
    values = large.pivot_table(index="true", columns="size", values="mcs").to_numpy()
    found = bootstrap([values], lambda samples: float(samples[0].mean(dtype=np.float64)))
    of = study.dictionaries.set_index("dictionary").loc[large["dictionary"].unique()]
    at = map(setting, of["axis"], of["level"])
    told = (", ".join(filter(None, names)) for names in zip(at, of["family"], strict=True))
    each = map("{}: {:.3f} ({})".format, of["size"], of["truth_mmcs"], told)
    return Found("; ".join(each), estimate=found)


def _predicted(study: Tables) -> Found:
    n = int(known(study)["mmcs"].count())
    found = replace(correlations(known(study))[0], over=f"{n} dictionaries (bootstrap)")
    return Found(f"r = {found.value:.2f}", estimate=found)


ENOUGH = Need(
    f"{FEWEST} dictionaries that have a larger one",
    f"{TRAIN}sae.dict_size=128,256,512 sae.l1=0.0003,0.001,0.003,0.01",
    lambda study: known(study)["mmcs"].count() >= FEWEST,
)
CLAIMS = (
    Claim("truth_found", rule=Lies(0.9), judge=_found, needs=(), of_all=True),
    Claim(
        "truth_predicted", rule=Lies(0.5), judge=_predicted, needs=(ENOUGH,), of_all=True,
        fewest=FEWEST,
    ),
)  # fmt: skip
ANALYSIS = Analysis("truth", show, CLAIMS, measure, applies=is_toy)
