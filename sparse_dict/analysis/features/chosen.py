"""Which features of a study are shown with their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures.effective_neurons import outliers
from sparse_dict.analysis.study import Entry
from sparse_dict.config import ContextsConfig
from sparse_dict.errors import UserError

ASKED, TOP, RANDOM, LOW, OUTLIER, DEAD, NEURON = (
    "asked for", "top MCS", "random", "low MCS", "outlier", "dead", "neuron basis",
)  # fmt: skip
NEURONS = "neuron"  # how a neuron is named in `contexts.features`


@dataclass(frozen=True, eq=False)
class Chosen:
    """A feature of a dictionary, or a neuron, that is to be shown."""

    entry: Entry | None  # None: a neuron
    index: int
    groups: tuple[str, ...]  # why it was chosen
    mcs: float = float("nan")
    partner: tuple[str, float] | None = None  # SIZE/INDEX in the next larger, and their cosine

    @classmethod
    def of(cls, context: Context, entry: Entry, index: int, groups: tuple[str, ...]) -> "Chosen":
        """A feature, with what the table of features says of it."""
        row: Any = context.once(_features).loc[(entry.name, index)]
        larger, partner = context.comparison.partners(entry, "next"), None
        if larger and row["partner"] >= 0:
            partner = f"{larger[0].size}/{row['partner']}", float(row["next_mcs"])
        return cls(entry, index, groups, float(row["mcs"]), partner)

    def decoder(self, d_out: int) -> NDArray[np.float32]:
        """What a unit of activation adds to a row, (d_out,)."""
        if self.entry is not None:
            return self.entry.decoder[self.index]
        return np.eye(1, d_out, self.index, np.float32)[0]

    def nearest(self) -> tuple[int, float] | None:
        """The neuron with the largest absolute cosine with a feature, and that cosine.

        None for a neuron, and for a transcoder's feature, which writes where it does not read.
        """
        if self.entry is None or self.entry.transcodes:
            return None
        row = self.entry.decoder[self.index]
        index = int(np.abs(row).argmax())
        return index, float(row[index] / max(np.linalg.norm(row), 1e-30))


def _features(context: Context) -> pd.DataFrame:
    return context.tables.features.set_index(["dictionary", "feature"])


def choose(context: Context, settings: ContextsConfig, also: Sequence[Chosen] = ()) -> list[Chosen]:
    """The features that `settings` ask for, each once, then the neurons nearest to them.

    Without `settings.features`: of each size of the main chain those with the highest and the
    lowest MCS and a random sample, all of them alive; outliers in effective neurons; dead ones;
    and those of `also` that are not among these.
    """
    main = context.comparison.main
    entries = main.entries if main else context.study.entries[:1]
    chosen: list[Chosen] = []
    for name in dict.fromkeys(settings.features or []):
        entry, index = _asked(name, entries, context)
        asked = Chosen.of(context, entry, index, (ASKED,)) if entry else None
        chosen.append(asked or Chosen(None, index, (ASKED,)))
    for entry in entries if settings.features is None else ():
        of = _groups(context, entry, settings.per_group)
        for index in dict.fromkeys(i for members in of.values() for i in members):
            names = tuple(name for name, members in of.items() if index in members)
            chosen.append(Chosen.of(context, entry, index, names))
    if settings.features is None:
        known = {(c.entry, c.index) for c in chosen}
        chosen += [c for c in also if (c.entry, c.index) not in known]
    there = {c.index for c in chosen if c.entry is None}
    nearest = {found[0] for c in chosen if (found := c.nearest())}
    return chosen + [Chosen(None, index, (NEURON,)) for index in sorted(nearest - there)]


def _groups(context: Context, entry: Entry, n: int) -> dict[str, list[int]]:
    own = context.once(_features).loc[entry.name]
    alive = own[own["alive"]]
    ranked = alive["mcs"].dropna().sort_values(ascending=False, kind="stable").index
    groups: dict[str, Any] = {
        TOP: ranked,
        LOW: ranked[::-1],
        RANDOM: np.random.default_rng(context.config.seed).permutation(alive.index),
        OUTLIER: outliers(own["neurons"].where(own["alive"]).to_numpy()),
        DEAD: own.index[~own["alive"]],
    }
    return {name: members[:n].tolist() for name, members in groups.items()}


def _asked(name: str, chain: Sequence[Entry], context: Context) -> tuple[Entry | None, int]:
    """The dictionary and index of ``NAME/INDEX``; NAME as `ContextsConfig.features` says."""
    owner, _, number = name.rpartition("/")
    index, study = int(number), context.study  # the config has checked that this is a number
    known: dict[str, Entry | None] = {} if study.target else {NEURONS: None}
    for key, one in [(str(e.size), e) for e in chain] + [(e.name, e) for e in study.entries]:
        known.setdefault(key, one)
    if owner not in known:
        raise UserError(
            f"contexts.features: {name!r} names no dictionary; there are {', '.join(known)}"
        )
    entry = known[owner]
    if index >= (size := entry.size if entry else study.d_in):
        raise UserError(f"contexts.features: {name!r}: indices end at {size - 1}")
    return entry, index
