"""Which features of dictionaries of several sites, or two models, are shared and which exclusive.

By the relative norms of their decoder rows at two sites (Lindsey et al. 2024), with two tests of
those that look exclusive, for an L1 penalty makes shared features look so (Minder et al. 2025).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.activations.store import MANIFEST
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.study import Entry, kinds
from sparse_dict.config import ActivationsConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.scaling import Scaling
from sparse_dict.storage import files

Floats = NDArray[np.floating[Any]]

TITLE = "Shared and exclusive features"
EXCLUSIVE, SHARED = 0.1, (0.4, 0.6)  # relative norms: up to the first from either end; within
LEFT = 0.2  # of an exclusive feature at the other site, above which it is there as well
TWIN = 0.7  # correlation of codes, above which two exclusive features are one
BINS = 40


@dataclass(frozen=True)
class Sides:
    """Two sites of a row, with their columns."""

    first: str
    second: str
    columns: tuple[slice, slice]

    @property
    def named(self) -> tuple[str, str]:
        """Two lines of a title."""
        return f"{self.first} (left)", f"and {self.second} (right)"

    def __str__(self) -> str:
        return f"{self.first} and {self.second}"


def section(context: Context) -> Section:
    """Relative norms, and what becomes of those that look exclusive; `crosscoders.csv`."""
    try:
        pairs = sides(context)
        x, balance = context.evaluation_rows(), _balance(context)
    except UserError as error:
        return Section(TITLE, [MISSING.format(error)])
    entries = [e for f in context.study.families for e in _shown(context.comparison, f)]
    rows = []
    for entry in entries:
        norms = _norms(entry.decoder / balance, pairs)
        tested = tests(entry, x, balance, pairs)
        for pair, found, left in zip(pairs, norms, tested, strict=True):
            rows.append(_row(context, entry, pair, found, left))
    table = pd.DataFrame(rows)
    files.write_text(context.folder / "crosscoders.csv", table.to_csv(index=False))
    low, high = SHARED
    text = (
        "Each decoder row has a part for each site. Relative norm: that of the second site's part "
        "over the sum of both, of activations as they were scaled for training. Exclusive to the "
        f"first: at most {EXCLUSIVE:g}; to the second: at least {1 - EXCLUSIVE:g}; shared: {low:g} "
        f"to {high:g}. Features that are active on no evaluation row do not count."
    )
    caution = (
        "An L1 penalty of the norms makes shared features look exclusive, in two ways (Minder et "
        "al. 2025). It may shrink a weak part to nothing: so each exclusive feature's part at the "
        "other site is fitted anew by least squares, with all other features as they are (their "
        "latent scaling, here in any direction, since two models need not share a basis); left "
        f"over: the share of which it is more than {LEFT:g} of its own part, beside the same with "
        "the rows in another order. Or it may learn a shared feature twice, once for each site: "
        "twins are exclusive features whose code correlates above "
        f"{TWIN:g} with that of a feature exclusive to the other. What is neither is exclusive, as "
        f"far as {len(x):,} rows tell."
    )
    columns = [c for c in table.columns if not c.startswith("left_over") and c != "twins"]
    doubtful = ["kind", "dict_size", "sites", "exclusive", "left_over", "left_over_chance", "twins"]
    table["exclusive"] = table["first_only"] + table["second_only"]
    return Section(
        TITLE,
        [
            text,
            context.draw(
                "crosscoders", picture(context, entries, pairs, balance), "Relative norms",
                "Living features by the share that the second site has of a decoder row's norms; "
                "dashed: where exclusive features begin.",
            ),
            Table("Shared and exclusive features", table[columns]),
            caution,
            Table("Are they exclusive?", table[doubtful]),
        ],
    )  # fmt: skip


def sides(context: Context) -> list[Sides]:
    """Each site with the next one of a row.

    Raises:
        UserError: the activations are not there.
    """
    activations = context.activations
    places = (activations.manifest or {}).get("sites", [])
    columns = [columns for columns, _ in activations.sites]
    every = list(zip([str(place["site"]) for place in places], columns, strict=False))
    return [Sides(a, b, (one, other)) for (a, one), (b, other) in pairwise(every)]


def _balance(context: Context) -> Floats:
    """What decoder rows are divided by to be as they were in training."""
    seen = context.study.entries[0].metrics["config"].get("activations") or {}
    try:
        config = ActivationsConfig(**seen)
    except TypeError as error:
        raise UserError(f"a dictionary's config: activations: {error}") from None
    return Scaling.of(config, context.activations).balance


def _shown(comparison: Comparison, family: str) -> tuple[Entry, ...]:
    """The dictionaries of a family at the level at which it is shown, of the lowest seed."""
    return min(comparison.chosen(family), key=lambda chain: chain.seed).entries


def _norms(rows: Floats, pairs: list[Sides]) -> list[tuple[Floats, Floats]]:
    """Those of the parts of rows (n, d) at both sites of each pair, (n,) each."""
    return [
        (
            np.linalg.norm(rows[:, pair.columns[0]], axis=1),
            np.linalg.norm(rows[:, pair.columns[1]], axis=1),
        )
        for pair in pairs
    ]


def relative(norms: tuple[Floats, Floats]) -> Floats:
    """The second one's share of the sum, (n,)."""
    first, second = norms
    return np.asarray(second / np.maximum(first + second, 1e-30))


@dataclass(frozen=True)
class Tested:
    """Of each feature at the site where its part is smaller."""

    left: Floats  # (n,) norm of the part that fits best there, over that at its own site
    chance: Floats  # (n,) the same with the rows in another order
    twin: Floats  # (n,) correlation of an exclusive feature's code with one exclusive to the other


def tests(entry: Entry, x: Floats, balance: Floats, pairs: list[Sides]) -> list[Tested]:
    """Whether features are at the other site as well, by rows `x` (rows, d), for each pair.

    With all other features as they are, the part of feature k that fits best is
    W_dec[k] + sum_rows c_k error / sum_rows c_k^2.
    """
    dictionary = entry.trained.dictionary
    codes = dictionary.encode(x).astype(np.float64)
    error = (x - dictionary.reconstruct(x)) / balance
    weight = np.maximum((codes**2).sum(0), 1e-30)[:, None]
    best = entry.decoder / balance + codes.T @ error / weight
    moved = np.roll(codes, len(codes) // 2, axis=0).T @ error / weight
    centred = codes - codes.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), 1e-30)
    found = []
    both = zip(_norms(entry.decoder / balance, pairs), _norms(best, pairs), strict=True)
    for (norms, fitted), noise in zip(both, _norms(moved, pairs), strict=True):
        in_second = relative(norms) > 0.5
        own = np.where(in_second, fitted[1], fitted[0])
        left = np.where(in_second, fitted[0], fitted[1]) / np.maximum(own, 1e-30)
        chance = np.where(in_second, noise[0], noise[1]) / np.maximum(own, 1e-30)
        first, second = (_exclusive(entry, norms, end) for end in (0, 1))
        twin = np.zeros(entry.size)
        if first.any() and second.any():
            correlation = centred[:, first].T @ centred[:, second]
            twin[first], twin[second] = correlation.max(1), correlation.max(0)
        found.append(Tested(left, chance, twin))
    return found


def _exclusive(entry: Entry, norms: tuple[Floats, Floats], end: int) -> NDArray[np.bool_]:
    """Which living features are at the first site (0) or the second (1) alone, (n,)."""
    share = relative(norms)
    return entry.alive & (share >= 1 - EXCLUSIVE if end else share <= EXCLUSIVE)


def _row(
    context: Context, entry: Entry, pair: Sides, norms: tuple[Floats, Floats], tested: Tested
) -> dict[str, Any]:
    share, alive = relative(norms), entry.alive
    first, second = (_exclusive(entry, norms, end) for end in (0, 1))
    shared = alive & (share >= SHARED[0]) & (share <= SHARED[1])
    only = first | second

    def of_exclusive(mask: NDArray[np.bool_]) -> float:
        return float(mask[only].mean()) if only.any() else float("nan")

    return {
        "kind": kinds(context.study)[entry.family],
        "dict_size": entry.size,
        "sparsity": entry.setting,
        "fvu": float(entry.metrics["fvu"]),
        "l0": float(entry.metrics["l0"]),
        "sites": str(pair),
        "alive": int(alive.sum()),
        "first_only": int(first.sum()),
        "shared": int(shared.sum()),
        "second_only": int(second.sum()),
        "between": int((alive & ~first & ~second & ~shared).sum()),
        "left_over": of_exclusive(tested.left > LEFT),
        "left_over_chance": of_exclusive(tested.chance > LEFT),
        "twins": of_exclusive(tested.twin > TWIN),
    }


def picture(context: Context, entries: list[Entry], pairs: list[Sides], balance: Floats) -> Figure:
    """Histograms of relative norms: a row a kind, a column a pair of sites, a line a size."""
    families = list(dict.fromkeys(entry.family for entry in entries))
    sizes = sorted({entry.size for entry in entries})
    colours = dict(zip(sizes, figures.shades(len(sizes)), strict=True))
    figure, axes = figures.plt.subplots(
        len(families), len(pairs), squeeze=False, sharex=True,
        figsize=(min(figures.WIDTH, 1 + 3.6 * len(pairs)), 0.8 + 2.8 * len(families)),
    )  # fmt: skip
    called = kinds(context.study)
    for entry in entries:
        norms = _norms(entry.decoder / balance, pairs)
        for axis, found in zip(axes[families.index(entry.family)], norms, strict=True):
            axis.hist(
                relative(found)[entry.alive], BINS, range=(0, 1), histtype="step", lw=1.2,
                color=colours[entry.size], label=str(entry.size),
            )  # fmt: skip
    for (row, column), axis in np.ndenumerate(axes):
        for bar in (EXCLUSIVE, 1 - EXCLUSIVE):
            axis.axvline(bar, color="0.5", ls="--", lw=0.8)
        axis.set_title("\n".join(filter(None, [called[families[row]], *pairs[column].named])))
        axis.set_ylabel("features" if column == 0 else "")
    for axis in axes[-1]:
        axis.set_xlabel("share of the second in the norms")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="dictionary size", loc="outside lower center", ncols=8)
    figure.suptitle("Relative norms of decoder rows")
    return figure


def _of_several_sites(context: Context) -> bool:
    """Whether rows hold several sites and dictionaries see all, as far as can be told at once."""
    folders = context.config.activations_dirs
    if context.study.site is not None or context.study.target is not None:
        return False
    if len(folders) > 1:
        return True
    try:
        places = files.read_json(folders[0] / MANIFEST).get("sites")
    except UserError:
        return False
    return isinstance(places, list) and len(places) > 1


ANALYSIS = Analysis("crosscoders", section, applies=_of_several_sites)
