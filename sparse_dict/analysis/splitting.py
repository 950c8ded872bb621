"""How the features of a study split: the steps of its main chain in every seed, and its trees."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.measures.splitting import DEAD, SPLIT, Step, step
from sparse_dict.analysis.study import Chain


@dataclass(frozen=True, eq=False)
class Splitting:
    """The main chain, and those of the same settings with other seeds; a list of steps each."""

    chains: tuple[Chain, ...]
    rows: NDArray[np.float32]  # evaluation rows, (rows, d_in)
    targets: NDArray[np.float32]  # what is reconstructed, (rows, d_out): `rows`, or a transcoder's

    @cached_property
    def steps(self) -> list[list[Step]]:
        """One `Step` for each size of a chain but the largest."""
        return [self._of(chain) for chain in self.chains]

    def _of(self, chain: Chain) -> list[Step]:
        return [
            step(
                small.trained.dictionary, large.trained.dictionary, (small.alive, large.alive),
                self.rows, self.targets,
            )
            for small, large in zip(chain.entries[:-1], chain.entries[1:], strict=True)
        ]  # fmt: skip

    def trees(self, most: int, largest: int) -> list["Node"]:
        """Trees of features of the smallest dictionary, at most `most`, most splits first.

        Of trees of at most `largest` features, those with the most splits, then the most features.
        """
        first = self.steps[0]
        roots = [self._grown(0, int(i)) for i in np.flatnonzero(first[0].fate != DEAD)]
        fitting = [root for root in roots if root.size <= largest and root.splits]
        return sorted(fitting, key=lambda r: (-r.splits, -r.size, r.index))[:most]

    def _grown(self, level: int, index: int) -> "Node":
        steps, entry = self.steps[0], self.chains[0].entries[level]
        above = steps[level - 1] if level else None
        node = Node(
            level, index, float(entry.frequency[index]),
            float(above.cosine[index]) if above else float("nan"),
            float(above.given[index]) if above else float("nan"),
            str(steps[level].fate[index]) if level < len(steps) else "",
            (),
        )  # fmt: skip
        if level == len(steps):
            return node
        below = tuple(self._grown(level + 1, int(i)) for i in steps[level].children(index))
        return Node(**{**node.__dict__, "children": below})


@dataclass(frozen=True)
class Node:
    """A feature in a tree."""

    level: int  # which dictionary of the chain
    index: int
    frequency: float  # share of the evaluation rows
    cosine: float  # with its parent
    given: float  # P(parent active | this active)
    fate: str  # in the next larger dictionary; "" in the largest
    children: tuple["Node", ...]

    @property
    def size(self) -> int:
        """Features in the tree."""
        return 1 + sum(child.size for child in self.children)

    @property
    def splits(self) -> int:
        """Features in the tree that split."""
        return (self.fate == SPLIT) + sum(child.splits for child in self.children)

    def walk(self) -> list["Node"]:
        """All nodes, parents before children."""
        return [self, *(node for child in self.children for node in child.walk())]
