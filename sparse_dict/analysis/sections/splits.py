"""How features split as dictionaries grow, what error that saves, and if another seed agrees."""

from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sparse_dict.analysis.claim import LARGER, SEVERAL_SEEDS, Claim, Found, Lies
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.features import tree
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, over_seeds
from sparse_dict.analysis.measures.splitting import (
    ABSORBED,
    DEAD,
    DRIFTED,
    FATES,
    FOUND,
    KEPT,
    LOST,
    SPLIT,
    Step,
    lives,
    repeated,
    step,
)
from sparse_dict.analysis.measures.two_dictionaries import SHARED_ABOVE
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block, Table
from sparse_dict.analysis.study import Entry
from sparse_dict.analysis.tables import FEWEST_SEEDS, MOST_SEEDS, Tables

FEWEST = 10  # splits that a claim needs
COLOURS = {
    KEPT: figures.BLUE, DRIFTED: figures.GREEN, SPLIT: figures.ORANGE,
    ABSORBED: figures.PURPLE, LOST: figures.GREY, "born": "0.85",
}  # fmt: skip
ORIGINS = {f"of {fate}": fate for fate in (KEPT, DRIFTED, SPLIT)} | {"born": "born"}


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Parents and fates at the chosen level in every seed, and which splits other seeds make."""
    main = context.comparison.main
    if main is None:
        return {}
    x = context.evaluation_rows()
    y = x if context.study.target is None else context.evaluation_rows(of=context.targets)
    known: dict[int, tuple[tuple[Entry, ...], list[Step]]] = {}
    features, ends, courses = [], [], []
    for chain in context.comparison.same_but_seed(main)[:MOST_SEEDS]:
        steps = []
        for small, large in pairwise(chain.entries):
            dictionaries = small.trained.dictionary, large.trained.dictionary
            steps.append(step(*dictionaries, (small.alive, large.alive), x, y))
            ends.append({"seed": chain.seed, **between(small, large, steps[-1])})
        features += of_features(chain.entries, steps)
        courses += [{"seed": chain.seed, **row} for row in course(chain.entries, steps)]
        known[chain.seed] = chain.entries, steps
    others = []
    for (seed, (mine, steps)), (other, (theirs, their_steps)) in permutations(known.items(), 2):
        for k, (one, two) in enumerate(zip(steps, their_steps, strict=True)):
            (small, large), (their_small, their_large) = mine[k : k + 2], theirs[k : k + 2]
            parents = small.decoder, their_small.decoder
            found = repeated(one, two, parents, (large.decoder, their_large.decoder))
            others.append({"seed": seed, "other_seed": other, "from": small.size, **found})
    return {
        "features": pd.concat(features, ignore_index=True), "splits": pd.DataFrame(ends),
        "split_courses": pd.DataFrame(courses), "split_replication": pd.DataFrame(others),
    }  # fmt: skip


def of_features(entries: Sequence[Entry], steps: Sequence[Step]) -> list[pd.DataFrame]:
    """The columns of the features table, for each dictionary of a chain."""
    found = []
    for entry, up, down in zip(entries, [None, *steps], [*steps, None], strict=True):
        columns: dict[str, Any] = {"dictionary": entry.name, "feature": np.arange(entry.size)}
        if up:
            columns |= {"parent": up.parent, "parent_cosine": up.cosine, "parent_active": up.given}
        if down:
            children = np.bincount(down.parent[down.parent >= 0], minlength=entry.size)
            columns |= {"fate": down.fate, "children": children, "split_gain": down.gain}
        found.append(pd.DataFrame(columns))
    return found


def between(small: Entry, large: Entry, found: Step) -> dict[str, Any]:
    """From a size to the next: shares of fates, of origins, and properties of the splits."""
    living, born = found.fate[found.fate != DEAD], found.parent[large.alive] < 0
    of = np.where(born, "born", found.fate[found.parent[large.alive]])
    cosines = pd.Series(found.cosine)[found.parent >= 0]
    nearest = cosines.groupby(found.parent[found.parent >= 0]).agg(["size", "max"])
    split = nearest[nearest["size"] > 1]
    return {
        "from": small.size, "to": large.size,
        **{name: float((living == name).mean()) for name in FATES},
        **{column: float((of == name).mean()) for column, name in ORIGINS.items()},
        "children": split["size"].mean(),
        "stays": float((split["max"] > FOUND).mean()) if len(split) else np.nan,
        "gain": pd.Series(found.gain).median(),
    }  # fmt: skip


def course(entries: Sequence[Entry], steps: list[Step]) -> Iterator[dict[str, int]]:
    """The smallest dictionary's living features, by what first happened to them up to each size."""
    fate, when = lives(steps)
    for number, entry in enumerate(entries):
        so_far = np.where(when < number, fate, KEPT)[fate != DEAD]
        yield {"size": entry.size, **{name: int((so_far == name).sum()) for name in FATES}}


def show(context: Context) -> Iterator[Block]:
    """Fates of features from size to size, trees, and splits in another seed."""
    study = context.tables
    table, courses = study.others["splits"], study.others["split_courses"]
    last = courses[courses["size"] == courses["size"].max()][[*FATES]].sum()
    if n := last.sum():
        shares = "; ".join(f"{last[name] / n:.0%} {name}" for name in FATES[1:])
        several = f" in {seeds} seeds" if (seeds := courses["seed"].nunique()) > 1 else ""
        yield (
            f"Of the {n} living features of size {courses['size'].min()}{several}, "
            f"{last[KEPT] / n:.0%} are kept through all sizes. What first happens to the "
            f"others, as shares of all: {shares}. In {table['stays'].mean():.0%} of the splits "
            "from one size to the next (mean over sizes) a child as good as the parent stays."
        )
    yield context.figure("splits", draw(study, table, courses))
    yield from tree.pictures(context)
    yield Table("Fates from size to size", table.drop(columns=[*ORIGINS][:-1]))
    if len(others := study.others["split_replication"]):
        yield Table("Splits in another seed", replication(others))


def draw(study: Tables, table: pd.DataFrame, courses: pd.DataFrame) -> Figure:
    """What becomes of the smallest dictionary's features, and where those of larger ones are from.

    Means over seeds.
    """
    figure, ((left, right),) = figures.grid(1, 2, 3.4, sharey=True)
    counts = courses.set_index(["seed", "size"])
    shares = counts.div(counts.sum(axis=1), axis=0).groupby("size").mean()
    places = range(len(shares))
    left.stackplot(places, shares.T, labels=FATES, colors=[COLOURS[name] for name in FATES])
    left.set(
        xlim=(0, len(shares) - 1), title=f"Features of size {shares.index[0]}, up to each size"
    )
    bottom = np.zeros(len(shares) - 1)
    for column, values in table.groupby("to")[[*ORIGINS]].mean().items():
        name = ORIGINS[str(column)]
        label = name if name == "born" else None  # the others stand in the left panel
        right.bar(places[1:], values, 0.7, bottom, color=COLOURS[name], label=label)
        bottom += values
    right.set_title("Features of each size, by their parent's fate")
    for axis in (left, right):
        axis.set_xticks(places, [str(size) for size in shares.index])
        axis.set(ylim=(0, 1), xlabel="dictionary size")
        figures.percent_axis(axis)
    figure.legend(loc="outside lower center", ncols=6)
    figure.suptitle(f"What becomes of features, {figures.titled(study)}")
    return figure


def share(table: pd.DataFrame, part: str, of: str) -> Estimate | None:
    """One count over another: an interval over seeds if there are three, else over features."""
    known = table.groupby("seed")[[part, of]].sum()
    known = known[known[of] > 0]
    if len(known) >= FEWEST_SEEDS:
        return over_seeds([*(known[part] / known[of])])
    n, every = known.sum().astype(int)
    values = np.repeat([1.0, 0.0], [n, every - n])
    return bootstrap([values], lambda drawn: float(drawn[0].mean())) if every else None


def replication(table: pd.DataFrame) -> pd.DataFrame:
    """What other seeds do with the counterparts of features that split, and of others."""
    rows: list[list[Any]] = []
    for what, part, of in (
        ("splits in the other seed too", "splits_too", "counterpart"),
        ("splits in the other seed in the same way", "same", "counterpart"),
        ("not split here, splits in the other seed", "unsplit_too", "unsplit"),
    ):
        if e := share(table, part, of):
            rows.append([what, table[of].sum(), e.value, f"[{e.low:.2f}, {e.high:.2f}]", e.over])
    n, have = table["splits"].sum(), table["counterpart"].sum()
    rows.append(["splits whose parent has a counterpart", n, have / n if n else np.nan, "", ""])
    columns = ["of features with a counterpart", "n", "share", "95 %", "over"]
    return pd.DataFrame(rows, columns=columns)


def _replicate(study: Tables) -> Found:
    table = study.others["split_replication"]
    n, found = table["counterpart"].sum(), share(table, "same", "counterpart")
    if n < FEWEST or found is None:
        return Found(f"{n} splits whose parent has a counterpart; needs {FEWEST}")
    too, rest = share(table, "splits_too", "counterpart"), share(table, "unsplit_too", "unsplit")
    any_way, unsplit = (f"{e.value:.0%}" if e else "none" for e in (too, rest))
    here = (
        f"{found.value:.0%} of {n}; the counterpart splits in any way in {any_way}, that of an "
        f"unsplit feature in {unsplit}"
    )
    return Found(here, Lies(0.5)(found), found)


CLAIMS = (
    Claim(
        "splits_replicate",
        "Most features that split in a larger dictionary split in the same way in another seed's",
        "-", "expected if splits show a structure of the model",
        "Of the splits whose parent has a counterpart in the other seed (cosine above "
        f"{SHARED_ABOVE:g}), the share in which that splits too and two children have counterparts "
        "of their own among its children: holds if the 95 % interval lies above 0.5, does not hold "
        f"if below. Needs {FEWEST}. Features that were never active do not count.",
        judge=_replicate, needs=(LARGER, SEVERAL_SEEDS), says=None, living=False,
    ),
)  # fmt: skip
ANALYSIS = Analysis("splits", show, CLAIMS, measure, needs=(LARGER,))
