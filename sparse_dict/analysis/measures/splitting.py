"""What becomes of a dictionary's features in a larger one: their children, and the error saved.

The parent of a feature of the larger dictionary, its child, is the smaller one's feature with the
highest cosine. Splits were described by Bricken et al. (2023); putting children in
their parent's place is the stitching of Leask et al. (2025, arXiv 2502.04878).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Bools, Floats, Index
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.measures.two_dictionaries import SHARED_ABOVE
from sparse_dict.sae.folder import Dictionary

FOUND = 0.9  # cosine above which a feature is the same, as elsewhere
NEAR = 0.5  # cosine of a child with its parent, at least
GIVEN = 0.5  # P(parent active | child active), at least, unless the two are the same

KEPT, DRIFTED, SPLIT, ABSORBED, LOST, DEAD = (
    "kept", "drifted", "split", "absorbed", "lost", "dead",
)  # fmt: skip
FATES = (KEPT, DRIFTED, SPLIT, ABSORBED, LOST)
BORN = "born"  # what a feature without a parent is
ORIGINS = {f"of {fate}": fate for fate in FATES[:3]} | {BORN: BORN}
CHUNK = 2048  # rows encoded at a time


@dataclass(frozen=True)
class Step:
    """From a dictionary of n features to a larger one of m; living features only count."""

    parent: Index  # (m,) index in the smaller one; -1: born here, or dead
    cosine: Floats  # (m,) with the nearest feature of the smaller one; nan if dead
    given: Floats  # (m,) P(that feature active | this one active)
    fate: NDArray[np.str_]  # (n,) of FATES, or DEAD
    gain: Floats  # (n,) of a split: share of the error that children save; nan elsewhere

    def children(self, feature: int) -> Index:
        """Its children, the nearest first."""
        found = np.flatnonzero(self.parent == feature)
        return np.asarray(found[np.argsort(-self.cosine[found], kind="stable")])


def step(
    smaller: Dictionary, larger: Dictionary, alive: tuple[Bools, Bools], x: Floats, y: Floats
) -> Step:
    """Parents, fates and gains, by the rows `x` (rows, d_in) and what is reconstructed, `y`.

    A feature of the smaller dictionary is *kept* if it has one child, with a cosine above `FOUND`,
    *drifted* if it has one below, *split* if it has several, *absorbed* if the features near it are
    all another one's children, and *lost* if none is near.
    """
    n, m = len(smaller.b_enc), len(larger.b_enc)
    joint, active = np.zeros((m, n)), np.zeros(m)
    for _, codes, others in _encoded(smaller, larger, x, y):
        on = (others > 0).astype(np.float32)
        joint += on.T @ (codes > 0).astype(np.float32)
        active += on.sum(0)
    cosines = normalised(larger.W_dec) @ normalised(smaller.W_dec).T  # (m, n)
    cosines[:, ~alive[0]] = -np.inf
    nearest, at = cosines.argmax(1), np.arange(m)
    cosine = cosines[at, nearest].astype(np.float64)
    given = joint[at, nearest] / np.maximum(active, 1)
    linked = alive[1] & ((cosine > FOUND) | ((cosine > NEAR) & (given > GIVEN)))
    parent = np.where(linked, nearest, -1)
    cosine[~alive[1] | ~np.isfinite(cosine)] = np.nan

    count = np.bincount(parent[linked], minlength=n)
    cosines[~alive[1]] = -np.inf
    best = np.full(n, -np.inf)
    np.maximum.at(best, parent[linked], cosine[linked])
    fate = np.select(
        [~alive[0], count > 1, (count == 1) & (best > FOUND), count == 1, cosines.max(0) > NEAR],
        [DEAD, SPLIT, KEPT, DRIFTED, ABSORBED],
        LOST,
    )
    return Step(parent, cosine, given, fate, _gains(smaller, larger, parent, fate, x, y))


def _gains(
    smaller: Dictionary, larger: Dictionary, parent: Index, fate: NDArray[np.str_], x: Floats,
    y: Floats,
) -> Floats:  # fmt: skip
    """How much of the smaller one's error a split saves, (n,).

    On the rows where the parent or a child is active: the smaller dictionary's squared error, less
    that with the children's part of the larger one's reconstruction in place of the parent's.
    """
    families = {int(i): np.flatnonzero(parent == i) for i in np.flatnonzero(fate == SPLIT)}
    before, after = np.zeros(len(fate)), np.zeros(len(fate))
    for wanted, codes, others in _encoded(smaller, larger, x, y):
        error = wanted - smaller.decode(codes)
        for i, children in families.items():
            rows = np.flatnonzero((codes[:, i] > 0) | (others[:, children] > 0).any(1))
            old = error[rows]
            new = old + np.outer(codes[rows, i], smaller.W_dec[i])
            new -= others[np.ix_(rows, children)] @ larger.W_dec[children]
            before[i] += np.square(old, dtype=np.float64).sum()
            after[i] += np.square(new, dtype=np.float64).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(before > 0, 1 - after / before, np.nan)


def _encoded(
    smaller: Dictionary, larger: Dictionary, x: Floats, y: Floats
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """For each chunk of rows, what the smaller one's features are to explain and both's codes."""
    for start in range(0, len(x), CHUNK):
        part, wanted = (rows[start : start + CHUNK] for rows in (x, y))
        if smaller.W_skip is not None:
            wanted = wanted - part @ smaller.W_skip
        yield wanted, smaller.encode(part), larger.encode(part)


def course(steps: list[Step]) -> Iterator[dict[str, int]]:
    """The first dictionary's living features, by what first happened to them up to each size.

    Other than being kept: KEPT are those that are kept up to there.
    """
    n = len(steps[0].fate)
    fate, when, at = np.full(n, KEPT, "<U8"), np.full(n, len(steps)), np.arange(n)
    for number, found in enumerate(steps):
        going = np.flatnonzero(when == len(steps))
        fate[going] = found.fate[at[going]]
        when[going[fate[going] != KEPT]] = number
        child = np.full(len(found.fate), -1)  # of what is kept, the only one
        linked = np.flatnonzero(found.parent >= 0)
        child[found.parent[linked]] = linked
        at = child[at]
    for number in range(len(steps) + 1):
        so_far = np.where(when < number, fate, KEPT)[fate != DEAD]
        yield {name: int((so_far == name).sum()) for name in FATES}


def repeated(
    one: Step, other: Step, parents: tuple[Floats, Floats], children: tuple[Floats, Floats]
) -> dict[str, int]:
    """How many splits of one seed another seed makes too, and how many other features it splits.

    A feature's counterpart is the other seed's nearest, with a cosine above `SHARED_ABOVE`. The
    other seed makes the same split if the counterpart splits and two children have counterparts of
    their own among its children. `parents` are decoder rows of the smaller dictionaries of both,
    (n, d) and (k, d), `children` of the larger ones.

    Of the first seed's `splits`, those whose parent has a `counterpart`, of these those where that
    `splits_too`, and where in the `same` way; of its living features that do not split, those with
    a counterpart (`unsplit`), and where that splits (`unsplit_too`).
    """
    cosines = normalised(parents[0]) @ normalised(parents[1]).T
    cosines[:, other.fate == DEAD] = -1
    nearest, has = cosines.argmax(1), cosines.max(1) > SHARED_ABOVE
    too, parted = other.fate[nearest] == SPLIT, (one.fate == SPLIT) & has
    rest = has & (one.fate != SPLIT) & (one.fate != DEAD)
    same = 0
    for feature in np.flatnonzero(parted & too).tolist():
        mine, theirs = one.children(feature), other.children(int(nearest[feature]))
        near = normalised(children[0][mine]) @ normalised(children[1][theirs]).T > SHARED_ABOVE
        same += min(near.any(0).sum(), near.any(1).sum()) >= 2
    return {
        "splits": int((one.fate == SPLIT).sum()), "counterpart": int(parted.sum()),
        "splits_too": int((parted & too).sum()), "same": int(same),
        "unsplit": int(rest.sum()), "unsplit_too": int((rest & too).sum()),
    }  # fmt: skip


def shares(found: Step, alive: Bools) -> dict[str, float]:
    """From a size to the next, of features `alive`: fates, origins, and what splits are like.

    Shares of the smaller one's living features by fate, and of the larger one's by that of their
    parent; of splits the mean number of children, in how many a child as good as the parent stays,
    and the median gain.
    """
    living, linked = found.fate[found.fate != DEAD], found.parent >= 0
    of = np.where(linked, found.fate[found.parent], BORN)[alive]
    nearest = pd.Series(found.cosine[linked]).groupby(found.parent[linked]).agg(["size", "max"])
    split = nearest[nearest["size"] > 1]
    return {
        **{name: float((living == name).mean()) for name in FATES},
        **{column: float((of == name).mean()) for column, name in ORIGINS.items()},
        "children": split["size"].mean(),
        "stays": (split["max"] > FOUND).mean(),
        "gain": pd.Series(found.gain).median(),
    }
