"""Features found again in larger dictionaries, along chains of sizes, and by other seeds."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claim import LARGER, Claim, Lies, some_sizes
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.sections import seeds, steadier
from sparse_dict.analysis.study import Entry
from sparse_dict.analysis.tables import Tables

NEARLY_ALL = 0.9


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """In how many successive larger dictionaries each feature of the chosen level is found."""
    shown, level = context.comparison.shown, context.tables.level
    names = {*level.loc[level["next_size"] > 0, "dictionary"]}
    runs = {"run": shown.features, "run_alive": "alive"}
    parts = [
        entry.features(**{column: _run(context, entry, of) for column, of in runs.items()})
        for entry in context.study.entries
        if entry.name in names
    ]
    return {"features": pd.concat(parts, ignore_index=True)} if parts else {}


def _run(context: Context, entry: Entry, features: str) -> NDArray[np.float64]:
    """Larger dictionaries up to the first that lacks a feature, (size,); nan: it does not count."""
    comparison = context.comparison
    larger = comparison.partners(entry, "all_larger")
    matching = comparison.shown.matching
    values = np.stack([comparison.matched(entry, e, matching, features)[1] for e in larger], axis=1)
    run = np.cumprod(values > comparison.settings.threshold, axis=1).sum(axis=1)
    return np.where(np.isfinite(values).all(axis=1), run, np.nan)


def show(context: Context) -> Blocks:
    """Features found again across sizes and seeds."""
    study = context.tables
    counted = {*study.shown.dropna(subset="found")["size"]}
    if none := sorted({*study.shown["size"]} - counted):
        yield f"No feature counts at size {', '.join(map(str, none))}."
    if counted:
        shares = chains(study)
        yield context.figure("agreement_sizes", draw(study, shares.dropna()))
        table = shares.pivot(index=["size", "features"], columns="up to", values="share")
        yield Table("Found in every dictionary up to each size", table.reset_index())
    yield from seeds.show(context)


def chains(study: Tables) -> pd.DataFrame:
    """The share of each size's features that all larger dictionaries have, up to each of these."""
    lowest = study.level[study.level["seed"] == study.shown["seed"].min()]
    sizes, rows = sorted(lowest["size"]), []
    for start, (size, part) in enumerate(study.shown.groupby("size")):
        run = part["run"].dropna()
        for k, up_to in enumerate(sizes[start:]):
            rows.append([size, len(run), up_to, (run >= k).mean()])
    return pd.DataFrame(rows, columns=["size", "features", "up to", "share"])


def draw(study: Tables, shares: pd.DataFrame) -> Figure:
    """Found again in larger dictionaries: by firing frequency, and along the chain of sizes."""
    figure, ((left, right),) = figures.grid(1, 2, 3.2)
    figures.by_frequency(left, study.shown.dropna(subset="found"), "found")
    left.set_ylabel(f"features with MCS above {study.threshold:g}")
    left.set_title("Found again, by firing frequency")
    shades = figures.shades(shares["size"].nunique())
    title = {"share": "Found in every larger one"}
    figures.panels([right], shares, title, "up to", hue="size", palette=shades, marker="o")
    right.set_xlabel("up to this dictionary size")
    figures.percent_axis(right)
    figure.suptitle(f"Features found again in larger dictionaries, {figures.titled(study)}")
    return figures.below(figure, left, 8, "dictionary size")


def _in_all(f: pd.DataFrame) -> "pd.Series[float]":
    """Of the smallest size's features that the next one has, whether all larger ones have them."""
    everywhere = (f["run"] == f["size"].nunique()).astype(float)
    return everywhere.where((f["run"] >= 1) & (f["size"] == f["size"].min()))


CLAIMS = (
    Claim("found_along_chain", _in_all, Lies(NEARLY_ALL), needs=(LARGER, some_sizes(3)), fewest=20),
    *seeds.CLAIMS,
    *steadier.CLAIMS,
)
ANALYSIS = Analysis("agreement", show, CLAIMS, measure, pairs=True, seconds=(0.1, 1.8))
