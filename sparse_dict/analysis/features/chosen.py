"""Which features of a study are shown with their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures.effective_neurons import outliers, simpson_neurons
from sparse_dict.analysis.study import Entry, Study
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


def partner(comparison: Comparison, chosen: Chosen) -> tuple[Entry, int, float] | None:
    """The feature of the next larger dictionary that is nearest to one, and their cosine."""
    entry = chosen.entry
    if entry is None or not (larger := comparison.partners(entry, "next")):
        return None
    index = int(comparison.partner(entry, larger[0])[chosen.index])
    one, other = entry.decoder[chosen.index], larger[0].decoder[index]
    lengths = max(float(np.linalg.norm(one) * np.linalg.norm(other)), 1e-30)
    return None if index < 0 else (larger[0], index, float(one @ other) / lengths)


def choose(
    comparison: Comparison, settings: ContextsConfig, seed: int, also: Sequence[Chosen] = ()
) -> list[Chosen]:
    """The features that `settings` ask for, each once, then the neurons nearest to them.

    Without `settings.features`: of each size of the main chain those with the highest and the
    lowest MCS and a random sample, all of them alive; outliers in effective neurons; dead ones;
    and those of `also` that are not among these.
    """
    entries = comparison.main.entries if comparison.main else comparison.study.entries[:1]
    chosen: list[Chosen] = []
    for name in dict.fromkeys(settings.features or []):
        entry, index = _asked(name, entries, comparison.study)
        value = float(_mcs(comparison, entry)[index]) if entry else float("nan")
        chosen.append(Chosen(entry, index, (ASKED,), value))
    for entry in entries if settings.features is None else ():
        mcs = _mcs(comparison, entry)
        groups = _groups(entry, mcs, settings.per_group, np.random.default_rng(seed))
        for index in dict.fromkeys(i for members in groups.values() for i in members):
            names = tuple(name for name, members in groups.items() if index in members)
            chosen.append(Chosen(entry, index, names, float(mcs[index])))
    if settings.features is None:
        known = {(c.entry, c.index) for c in chosen}
        chosen += [c for c in also if (c.entry, c.index) not in known]
    there = {c.index for c in chosen if c.entry is None}
    nearest = {found[0] for c in chosen if (found := c.nearest())}
    return chosen + [Chosen(None, index, (NEURON,)) for index in sorted(nearest - there)]


def _mcs(comparison: Comparison, entry: Entry) -> NDArray[Any]:
    """MCS of each feature, (size,); nan throughout where there is no larger dictionary."""
    if comparison.partners(entry, comparison.shown.against):
        return comparison.mcs(entry)
    return np.full(entry.size, np.nan)


def _groups(
    entry: Entry, mcs: NDArray[Any], n: int, rng: np.random.Generator
) -> dict[str, list[int]]:
    alive = np.flatnonzero(entry.alive)
    known = alive[np.isfinite(mcs[alive])]
    ranked = known[np.argsort(-mcs[known], kind="stable")]
    effective = simpson_neurons(entry.decoder)
    groups = {
        TOP: ranked,
        LOW: ranked[::-1],
        RANDOM: rng.permutation(alive),
        OUTLIER: outliers(np.where(entry.alive, effective, np.nan)),
        DEAD: np.flatnonzero(~entry.alive),
    }
    return {name: members[:n].tolist() for name, members in groups.items()}


def _asked(name: str, chain: Sequence[Entry], study: Study) -> tuple[Entry | None, int]:
    """The dictionary and index of ``NAME/INDEX``; NAME as `ContextsConfig.features` says."""
    owner, _, number = name.rpartition("/")
    index = int(number)  # the config has checked that this is a number
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
