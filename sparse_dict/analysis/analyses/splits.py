"""How features split as dictionaries grow, what error that saves, and if another seed agrees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.features import tree
from sparse_dict.analysis.measures.across_seeds import SHARED_ABOVE
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, over_seeds
from sparse_dict.analysis.measures.splitting import (
    ABSORBED,
    DEAD,
    DRIFTED,
    FATES,
    FOUND,
    GIVEN,
    KEPT,
    LOST,
    NEAR,
    SPLIT,
    Bools,
    Step,
    lives,
    repeated,
)
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.splitting import Splitting
from sparse_dict.errors import UserError
from sparse_dict.storage import files

FEWEST = 10  # splits that a claim needs
COLOURS = {
    KEPT: figures.BLUE, DRIFTED: figures.GREEN, SPLIT: figures.ORANGE,
    ABSORBED: figures.PURPLE, LOST: figures.GREY,
}  # fmt: skip

REPLICATE = Statement(
    "splits_replicate",
    "Most features that split in a larger dictionary split in the same way in another seed's",
    "-",
    "expected if splits show a structure of the model",
    "Of the splits whose parent has a counterpart in the other seed (cosine above "
    f"{SHARED_ABOVE:g}), the share in which that splits too and two children have counterparts of "
    f"their own among its children: holds if the 95 % interval lies above 0.5. Needs {FEWEST}.",
    says=None,
)


@dataclass(frozen=True)
class Replication:
    """Splits of each seed in the others, over all sizes; a list of arrays, one a seed."""

    splits_too: list[Bools]
    same: list[Bools]
    rest: list[Bools]  # of features that do not split: whether the counterpart does
    parents: int  # splits, whether or not their parent has a counterpart


def section(context: Context) -> Section:
    """Fates of features from size to size, trees, and splits in another seed; `splits.csv`."""
    title = "How features split"
    try:
        found = context.splitting
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    if found is None:
        return Section(title, ["No dictionary has a larger one that differs from it in size only."])
    table = fates(found)
    files.write_text(context.folder / "splits.csv", table.to_csv(index=False))
    text = (
        "The parent of a feature is the nearest one of the next smaller dictionary if their cosine "
        f"exceeds {FOUND:g}, or {NEAR:g} and the parent is active on more than {GIVEN:.0%} of the "
        "rows on which the child is. A feature is kept if it has one child with a cosine above "
        f"{FOUND:g}, has drifted if it has one below, is split if it has several, absorbed if the "
        "features near it are all another one's children, and lost if there is none near; a "
        f"feature without a parent is born. On {len(found.rows):,} evaluation rows; dead features "
        "do not count. Gain: by how much the smaller dictionary's error falls, on the rows where "
        "the parent or a child is active, if the children take the parent's place (stitching); "
        "median. Stays: share of the splits in which one child is as good as the parent (cosine "
        f"above {FOUND:g}) and the others come beside it."
    )
    result = Section(title, [text])
    blocks = result.blocks
    if first := _decomposed(found):
        blocks.append(first)
    blocks.append(
        context.draw(
            "splits", picture(found), "What becomes of features",
            "Left: features of the smallest dictionary by the first thing, other than being kept, "
            "that happened to them up to each size. Right: features of each larger dictionary by "
            "what became of their parent in the one before; born: without a parent. Means over "
            "seeds.",
        )
    )  # fmt: skip
    blocks += tree.pictures(context, found)
    blocks.append(Table("Fates from size to size", table))
    other = replication(found)
    if other is not None:
        blocks.append(Table("Splits in another seed", _shares(other)))
    return result


def _decomposed(found: Splitting) -> str:
    """What keeps features of the smallest dictionary from being found in every larger one."""
    parts = {fate: 0 for fate in FATES}
    for steps in found.steps:
        fate, _ = lives(steps)
        for name in FATES:
            parts[name] += int((fate == name).sum())
    total = sum(parts.values())
    if not total:
        return ""
    shares = "; ".join(f"{parts[name] / total:.0%} {name}" for name in FATES if name != KEPT)
    seeds = f", {len(found.chains)} seeds" if len(found.chains) > 1 else ""
    stays = float(fates(found)["stays"].mean())
    return (
        f"Of the {total} living features of the smallest dictionaries "
        f"({found.chains[0].entries[0].size}{seeds}), {parts[KEPT] / total:.0%} are kept through "
        f"all sizes. What first happens to the others, as shares of all: {shares}. In "
        f"{stays:.0%} of the splits from one size to the next (mean over sizes) a child as good "
        "as the parent stays."
    )


def fates(found: Splitting) -> pd.DataFrame:
    """One row per seed and step: shares of fates and born features, properties of the splits."""
    rows = []
    for chain, steps in zip(found.chains, found.steps, strict=True):
        for small, large, step in zip(chain.entries[:-1], chain.entries[1:], steps, strict=True):
            living = step.fate[step.fate != DEAD]
            children = np.bincount(step.parent[step.parent >= 0], minlength=small.size)
            gains, split = step.gain[np.isfinite(step.gain)], step.fate == SPLIT
            stays = [
                step.cosine[step.children(i)].max() > FOUND for i in np.flatnonzero(split).tolist()
            ]
            rows.append(
                {
                    "seed": chain.seed,
                    "from": small.size,
                    "to": large.size,
                    **{name: float((living == name).mean()) for name in FATES},
                    "born": float((step.parent[large.alive] < 0).mean()),
                    "children": float(children[split].mean()) if split.any() else float("nan"),
                    "stays": float(np.mean(stays)) if stays else float("nan"),
                    "gain": float(np.median(gains)) if len(gains) else float("nan"),
                }
            )
    return pd.DataFrame(rows)


def picture(found: Splitting) -> Figure:
    """Lives of the smallest dictionary's features, and where those of larger ones come from."""
    figure, (axes,) = figures.grid(1, 2, 3.4, sharey=True)
    sizes = [entry.size for entry in found.chains[0].entries]
    places = range(len(sizes))
    shares = np.mean([_survival(steps, len(sizes)) for steps in found.steps], axis=0)
    axes[0].stackplot(places, shares, labels=FATES, colors=[COLOURS[name] for name in FATES])
    axes[0].set_xlim(0, len(sizes) - 1)
    axes[0].set_title(f"Features of size {sizes[0]}, up to each size")
    origins = np.mean([_origins(steps) for steps in found.steps], axis=0)  # (steps, 4)
    names = (KEPT, DRIFTED, SPLIT, "born")
    bottom = np.zeros(len(sizes) - 1)
    for name, values in zip(names, origins.T, strict=True):
        colour = COLOURS.get(name, "0.85")
        axes[1].bar(range(1, len(sizes)), values, 0.7, bottom, color=colour, label=name)
        bottom += values
    axes[1].set_title("Features of each size, by their parent's fate")
    for axis in axes:
        axis.set_xticks(places, [str(size) for size in sizes])
        axis.set_ylim(0, 1)
        axis.set_xlabel("dictionary size")
        figures.percent_axis(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    born = axes[1].get_legend_handles_labels()
    figure.legend(
        [*handles, born[0][-1]], [*labels, born[1][-1]], loc="outside lower center", ncols=6
    )
    figure.suptitle(f"What becomes of features, {figures.named(found.chains[0])}")
    return figure


def _survival(steps: list[Step], n_sizes: int) -> NDArray[np.float64]:
    """Share of the first dictionary's living features by fate up to each size, (fates, sizes)."""
    fate, when = lives(steps)
    living = fate != DEAD
    met = [[(fate == name) & (when < k) & living for k in range(n_sizes)] for name in FATES[1:]]
    shares = np.array(met).sum(2) / max(living.sum(), 1)
    return np.concatenate([1 - shares.sum(0, keepdims=True), shares])


def _origins(steps: list[Step]) -> NDArray[np.float64]:
    """Share of each larger dictionary's features by their parent's fate, (steps, 4)."""
    found = []
    for step in steps:
        living = np.isfinite(step.cosine)
        parent = step.parent[living]
        of = np.where(parent >= 0, step.fate[parent], "born")
        found.append([(of == name).mean() for name in (KEPT, DRIFTED, SPLIT, "born")])
    return np.array(found)


def replication(found: Splitting) -> Replication | None:
    """Which of every seed's splits every other seed makes too; None with one seed."""
    if len(found.chains) < 2:
        return None
    made: list[list[list[Bools]]] = [[[] for _ in found.chains] for _ in range(3)]
    parents = 0
    for a, b in permutations(range(len(found.chains)), 2):
        one, other = found.chains[a].entries, found.chains[b].entries
        for k, (mine, theirs) in enumerate(zip(found.steps[a], found.steps[b], strict=True)):
            parts = repeated(
                mine, theirs, (one[k].decoder, other[k].decoder),
                (one[k + 1].decoder, other[k + 1].decoder), SHARED_ABOVE,
            )  # fmt: skip
            for kept, part in zip(made, parts, strict=True):
                kept[a].append(part)
            parents += int((mine.fate == SPLIT).sum())
    too, same, rest = ([np.concatenate(parts) for parts in kept] for kept in made)
    return Replication(too, same, rest, parents)


def _estimate(by_seed: Sequence[Bools]) -> Estimate:
    """A share with its interval: over seeds if there are three, else over splits."""
    known = [part.astype(float) for part in by_seed if len(part)]
    if len(known) >= 3:
        return over_seeds([float(part.mean()) for part in known])
    return bootstrap([np.concatenate(known)], lambda s: float(s[0].mean()))


def _shares(found: Replication) -> pd.DataFrame:
    rows = []
    for what, parts in (
        ("splits in the other seed too", found.splits_too),
        ("splits in the other seed in the same way", found.same),
        ("not split here, splits in the other seed", found.rest),
    ):
        n = sum(map(len, parts))
        if n:
            e = _estimate(parts)
            rows.append([what, n, e.value, f"[{e.low:.2f}, {e.high:.2f}]", e.over])
    counted = sum(map(len, found.splits_too))
    share = counted / found.parents if found.parents else float("nan")
    rows.append(["splits whose parent has a counterpart", found.parents, share, "", ""])
    return pd.DataFrame(
        rows, columns=["of features with a counterpart", "n", "share", "95 %", "over"]
    )


def claims(context: Context) -> list[Claim]:
    """Whether splits replicate."""
    try:
        found = context.splitting
    except UserError as error:
        return [REPLICATE.undecided(str(error))]
    other = None if found is None else replication(found)
    if other is None:
        return [REPLICATE.undecided("needs two seeds of a chain of sizes")]
    n = sum(map(len, other.same))
    if n < FEWEST:
        return [REPLICATE.undecided(f"{n} splits whose parent has a counterpart; needs {FEWEST}")]
    estimate = _estimate(other.same)
    rest = _estimate(other.rest).value if any(map(len, other.rest)) else float("nan")
    ours = (
        f"{estimate.value:.0%} of {n}; the counterpart splits in any way in "
        f"{_estimate(other.splits_too).value:.0%}, that of an unsplit feature in {rest:.0%}"
    )
    return [REPLICATE.decided(ours, estimate, verdict(estimate, 0.5))]


ANALYSIS = Analysis("splits", section, (REPLICATE,), claims)
