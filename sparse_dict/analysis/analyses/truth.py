"""Dictionaries of toy activations against the features that made them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.activations.toy import TRUTH
from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap
from sparse_dict.analysis.measures.mcs import max_cosine, normalised
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import NAMES, Entry
from sparse_dict.errors import UserError
from sparse_dict.storage import files, tensor_files

Floats = NDArray[np.float32]
Wide = NDArray[np.floating[Any]]

FEWEST = 8  # dictionaries that a correlation needs
FOUND = Statement(
    "truth_found",
    "The best dictionaries as large as the number of true features have an MMCS with them near 1",
    "predecessor",
    "toy models (the post's predecessor): MMCS with the truth near 1",
    "Of each size that is at least the number of true features, the dictionary with the highest "
    "MMCS with the truth: holds if the mean of their MMCS has its 95 % interval (bootstrap over "
    "the true features) above 0.9, does not if below. Taking the best one favours the claim, "
    "which then asks that some L1 does it.",
    of_all=True,
)
PREDICTED = Statement(
    "truth_predicted",
    "MMCS with larger dictionaries predicts MMCS with the truth",
    "-",
    "expected: where there is no truth, the post goes by the former",
    "Pearson's correlation of the two over dictionaries that have a larger one: holds if its 95 % "
    f"interval (bootstrap over dictionaries) lies above 0.5, does not if below. Needs {FEWEST}.",
    says=None,
    of_all=True,
)

# Column of `table`, title and format of its heat map.
PANELS = (
    ("truth_mmcs", "MMCS with the truth", ".2f"),
    ("truth_found", "share of true features found", ".0%"),
    ("fvu", "FVU", ".3f"),
    ("dead_share", "share of dead features", ".0%"),
)


def read(context: Context) -> Floats:
    """The true features (n_features, d_in) of the activations.

    Raises:
        UserError: the study's activations are not there, or have no known features.
    """
    study, folder = context.study, context.config.activations_dirs[0]
    manifest = context.activations.manifest or {"fingerprints": {}}
    if "truth" not in manifest["fingerprints"]:
        raise UserError("the features of these activations are not known, as in a toy model")
    path = folder / TRUTH
    features = tensor_files.read(path).get("features")
    if files.fingerprint(files.sha256_file(path)) != manifest["fingerprints"]["truth"]:
        raise UserError(f"{path} is not the file that the manifest describes")
    if (
        features is None
        or features.dtype != np.float32
        or features.ndim != 2
        or features.shape[1] != study.d_in
    ):
        raise UserError(f"{path} holds no float32 directions of {study.d_in} dimensions")
    return features


def mcs(truth: Floats, decoder: Floats, block_rows: int) -> Floats:
    """Largest cosine of each true feature (n, d) with any decoder row (m, d): shape (n,).

    MMCS with the truth is its mean. Since that is over the *true* features, a dictionary gains
    nothing by finding a few of them many times.
    """
    return max_cosine(normalised(truth), normalised(decoder), block_rows)


def table(comparison: Comparison, truth: Floats) -> pd.DataFrame:
    """One row per dictionary: agreement with the truth and with larger ones, final metrics."""
    threshold = comparison.settings.threshold
    rows = []
    for entry in comparison.study.entries:
        values = mcs(truth, entry.decoder, comparison.settings.block_rows)
        partners = comparison.partners(entry, comparison.shown.against)
        counted = comparison.counted(entry) if partners else np.empty(0)
        rows.append(
            {
                **entry.identity,
                "truth_mmcs": float(values.mean(dtype=np.float64)),
                "truth_found": float((values > threshold).mean()),
                "larger_mmcs": float(counted.mean()) if len(counted) else float("nan"),
                "fvu": float(entry.metrics["fvu"]),
                "l0": float(entry.metrics["l0"]),
                "dead": int((~entry.alive).sum()),
                "dead_share": float((~entry.alive).mean()),
            }
        )
    return pd.DataFrame(rows)


def heatmaps(frame: pd.DataFrame, n_features: int) -> Figure:
    """Agreement with the truth, FVU and dead features by size and L1; mean over seeds.

    Each family has two rows of panels.
    """
    families = list(dict.fromkeys(frame["family"]))
    grid = int(frame.groupby("family")["level"].nunique().max())
    sizes = int(frame["dict_size"].nunique())
    height = (1.9 + 0.62 * sizes) * len(families)
    figure, axes = plt.subplots(2 * len(families), 2, figsize=(figures.WIDTH, height))
    panels = [(family, panel) for family in families for panel in PANELS]
    for axis, (family, (value, title, fmt)) in zip(axes.flat, panels, strict=True):
        part = frame[frame["family"] == family]
        cells = part.pivot_table(index="dict_size", columns="level", values=value)
        figures.heat(axis, cells, fmt, letters=8 if grid <= 6 else 6)
        axis.set_title(f"{title}\n{family}" if family else title)
        axis.set_xlabel(NAMES[part["axis"].iloc[0]])
        axis.tick_params(axis="x", rotation=0 if grid <= 5 else 45)
    figure.suptitle(f"Dictionaries of {n_features} known features")
    return figure


def predictor(frame: pd.DataFrame, shown: str) -> Figure:
    """MMCS-with-truth against MMCS-with-larger, a point per dictionary."""
    figure, axis = plt.subplots(figsize=(5.2, 3.8))
    sizes = sorted(frame["dict_size"].unique())
    sns.scatterplot(
        frame, x="larger_mmcs", y="truth_mmcs", hue="dict_size", hue_order=sizes,
        palette=sns.color_palette("viridis", len(sizes)).as_hex(), style="family", s=36, ax=axis,
    )  # fmt: skip
    axis.axline((0, 0), slope=1, color="0.7", lw=0.8, ls="--")
    axis.set_xlim(0, 1.02)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("MMCS with larger dictionaries")
    axis.set_ylabel("MMCS with the truth")
    handles, labels = axis.get_legend_handles_labels()
    if frame["family"].nunique() > 1:
        names = {"dict_size": "size", "family": "kind"}
        labels = [names.get(label, label) for label in labels]
    else:
        handles, labels = handles[1 : len(sizes) + 1], labels[1 : len(sizes) + 1]
    axis.legend(handles, labels, title="dictionary", loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"Agreement with larger dictionaries, and with the truth\n{shown}")
    return figure


def correlations(frame: pd.DataFrame) -> tuple[Estimate, Estimate]:
    """Pearson's and Spearman's correlation of the two MMCS, bootstrap over dictionaries."""
    from scipy.stats import rankdata

    known = frame.dropna(subset=["larger_mmcs"])
    pair = known[["larger_mmcs", "truth_mmcs"]].to_numpy(float)

    def pearson(samples: Sequence[Wide]) -> float:
        x, y = samples[0].T
        flat = np.ptp(x) == 0 or np.ptp(y) == 0  # a resample may repeat one dictionary
        return float("nan") if flat else float(np.corrcoef(x, y)[0, 1])

    def spearman(samples: Sequence[Wide]) -> float:
        return pearson([np.asarray(rankdata(samples[0], axis=0))])

    return bootstrap([pair], pearson), bootstrap([pair], spearman)


def predictions(frame: pd.DataFrame, n_features: int) -> pd.DataFrame:
    """`correlations` of all dictionaries, of each family, and of those that can hold the truth."""
    parts = {"all": frame}
    if frame["family"].nunique() > 1:
        parts |= {str(family): part for family, part in frame.groupby("family")}
    parts[f"{n_features} features or more"] = frame[frame["dict_size"] >= n_features]
    rows = []
    for name, part in parts.items():
        if (n := int(part["larger_mmcs"].count())) > 2:
            shown = [f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]" for e in correlations(part)]
            rows.append([name, n, *shown])
    return pd.DataFrame(rows, columns=["of", "dictionaries", "Pearson", "Spearman"])


def claims(context: Context) -> list[Claim]:
    """What the known features of the activations say of FOUND and PREDICTED."""
    comparison = context.comparison
    try:
        truth = read(context)
    except UserError as error:
        return [statement.undecided(str(error)) for statement in (FOUND, PREDICTED)]
    return [_found(comparison, truth), _predicted(table(comparison, truth))]


def _found(comparison: Comparison, truth: Floats) -> Claim:
    best: dict[int, tuple[Entry, Floats]] = {}
    for entry in comparison.study.entries:
        if entry.size >= len(truth):
            values = mcs(truth, entry.decoder, comparison.settings.block_rows)
            if entry.size not in best or values.mean() > best[entry.size][1].mean():
                best[entry.size] = entry, values
    if not best:
        return FOUND.undecided(f"no dictionary has {len(truth)} features or more")
    columns = np.stack([values for _, values in best.values()], axis=1)  # (true features, sizes)
    estimate = bootstrap([columns], lambda samples: float(samples[0].mean(dtype=np.float64)))
    each = "; ".join(
        f"{size}: {values.mean():.3f} ({', '.join(filter(None, [entry.setting, entry.family]))})"
        for size, (entry, values) in sorted(best.items())
    )
    return FOUND.decided(each, estimate, verdict(estimate, 0.9))


def _predicted(frame: pd.DataFrame) -> Claim:
    n = int(frame["larger_mmcs"].count())
    if n < FEWEST:
        return PREDICTED.undecided(f"{n} dictionaries have a larger one; needs {FEWEST}")
    found, _ = correlations(frame)
    estimate = replace(found, over=f"{n} dictionaries (bootstrap)")
    return PREDICTED.decided(f"r = {found.value:.2f}", estimate, verdict(estimate, 0.5))


def section(context: Context) -> Section:
    """What was found of the known features; `truth.csv`."""
    title, comparison = "Against the true features", context.comparison
    try:
        truth = read(context)
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    frame = table(comparison, truth)
    files.write_text(context.folder / "truth.csv", frame.to_csv(index=False))
    n, d = truth.shape
    chance = ", ".join(
        f"{random_directions.max_mean(d, size):.2f} for {size}"
        for size in sorted(frame["dict_size"].unique())
    )
    threshold = comparison.settings.threshold
    section = Section(
        title,
        [
            f"The activations are sparse sums of {n} known directions in {d} dimensions. For each "
            "true feature, MCS is its largest cosine similarity with the dictionary's features; "
            f"MMCS is the mean over the true ones, and one is found if its MCS exceeds "
            f"{threshold:g}. Random dictionaries would reach {chance}.",
            context.draw(
                "truth_heatmaps", heatmaps(frame, n), "Known features by size and sparsity",
                "Each cell is one dictionary, its size on the left and how sparse it was made "
                f"below. A dictionary smaller than {n} cannot find all. FVU: share of variance "
                "unexplained; dead: never active on the evaluation rows.",
            ),
        ],
    )  # fmt: skip
    known = frame.dropna(subset=["larger_mmcs"])
    if len(known) > 2:
        section.blocks.append(
            context.draw(
                "truth_predictor", predictor(known, str(comparison.shown)),
                "MMCS with larger dictionaries as a predictor",
                "Each point is a dictionary that has a larger one. "
                "Below the dashed line a dictionary agrees with larger ones more than with the "
                "truth.",
            )
        )  # fmt: skip
        title = "Correlation of the two, with 95 % intervals over dictionaries"
        section.blocks.append(Table(title, predictions(frame, n)))
    columns = ["dictionary", "truth_mmcs", "truth_found", "larger_mmcs", "fvu", "l0", "dead"]
    section.blocks.append(
        Table("All dictionaries against the truth", frame[columns], fold=len(frame) > 12)
    )
    return section


def is_toy(context: Context) -> bool:
    """Whether the features of the study's activations are known."""
    return (context.config.activations_dirs[0] / TRUTH).exists()


ANALYSIS = Analysis("truth", section, (FOUND, PREDICTED), claims, applies=is_toy)
