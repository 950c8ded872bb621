"""MCS and MMCS of a study's dictionaries with their larger ones, in every variant."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.measures import Floats, Index, gaussian_rows, random_directions
from sparse_dict.analysis.measures.mcs import distinct, match, match_codes, nearest, normalised
from sparse_dict.analysis.study import LABELS, Chain, Entry, Study
from sparse_dict.config import ComparisonConfig
from sparse_dict.sae.usefulness import ENOUGH, recommended

MATCHING = {
    "max": "plain maximum",
    "hungarian": "one-to-one (Hungarian)",
    "correlation": "one-to-one by correlation of codes",
}
AGAINST = {
    "next": "next size",
    "next_two": "mean of next two sizes",
    "all_larger": "mean of all larger sizes",
}
GAUSSIAN = "Gaussian rows of the same covariance"  # how that null is called
FEATURES = {"all": "all features", "alive": "alive features only"}
NUMBERS = ["partners", "n", "mmcs", "random_mmcs", "gaussian_mmcs", "n_above", "share_above"]
REACH = {"next": 1, "next_two": 2, "all_larger": None}


@dataclass(frozen=True)
class Variant:
    """How a feature finds its partner, in which dictionaries, and which features count."""

    matching: str
    against: str
    features: str

    def of(self, features: str) -> "Variant":
        """The same with other features: "all", or those ever "alive"."""
        return replace(self, features=features)

    def __str__(self) -> str:
        return ", ".join([MATCHING[self.matching], AGAINST[self.against], FEATURES[self.features]])


# The variants that need dictionaries alone; matching by codes needs activations as well.
VARIANTS = tuple(Variant(*names) for names in product(("max", "hungarian"), AGAINST, FEATURES))


def _counts(entry: Entry, features: str) -> NDArray[np.bool_]:
    """Which features count, (size,): all, or those ever alive."""
    return entry.alive | (features == "all")


class Comparison:
    """MCS between the dictionaries of a study; each pair is compared once and remembered.

    `sample` gives rows of the activations (n, d_in), which matching by correlation needs.
    """

    def __init__(
        self,
        study: Study,
        settings: ComparisonConfig,
        sample: Callable[[], NDArray[np.float32]] | None = None,
    ) -> None:
        self._sample = sample
        self.study = study
        self.settings = settings
        self.shown = Variant(settings.matching, settings.against, settings.features)
        self._rows = {entry: normalised(entry.decoder) for entry in study.entries}
        self._larger = {
            entry: chain.entries[i + 1 :]
            for chain in study.chains
            for i, entry in enumerate(chain.entries)
        }
        for name in ("matched", "distinct", "gaussian_mcs", "_law"):
            setattr(self, name, cache(getattr(self, name)))  # of this comparison alone

    def partners(self, entry: Entry, against: str) -> tuple[Entry, ...]:
        """The larger dictionaries of the same chain in which its features are sought.

        As in the post, "next two" means the one larger dictionary where there is only one.
        """
        return self._larger[entry][: REACH[against]]

    def mcs(self, entry: Entry, variant: Variant | None = None) -> Floats:
        """MCS of each feature averaged over its partners, shape (size,); nan where excluded."""
        variant = variant or self.shown
        partners = self.partners(entry, variant.against)
        how = variant.matching, variant.features
        columns = [self.matched(entry, partner, *how)[1] for partner in partners]
        return np.mean(columns, axis=0, dtype=np.float64)

    def matched(
        self, entry: Entry, other: Entry, matching: str, features: str
    ) -> tuple[Index, Floats]:
        """Which feature of `other` each of `entry` finds (-1: none), and MCS (nan), (size,) each.

        With ``features="alive"`` both sides are restricted to features that fired: the dead ones
        of `entry` find none. So do all if `other` has no feature that fired, or with one-to-one
        matching fewer than `entry`, so that some would stay without a partner. Matched by
        correlation of codes, the value is still the cosine with the partner.
        """
        found = np.full(entry.size, np.nan, dtype=np.float32)
        partner = np.full(entry.size, -1)
        used, offered = (_counts(e, features) for e in (entry, other))
        rows, others = self._rows[entry][used], self._rows[other][offered]
        if len(others) < (1 if matching == "max" else len(rows)):
            return partner, found
        if matching == "max":
            partners, found[used] = nearest(rows, others, self.settings.block_rows)
        elif matching == "hungarian":
            partners, found[used] = match(rows, others)
        else:
            assert self._sample is not None
            x = self._sample()
            one, two = (e.trained.dictionary.encode(x) for e in (entry, other))
            partners, _ = match_codes(one[:, used], two[:, offered])
            found[used] = (rows * others[partners]).sum(1)
        partner[used] = np.flatnonzero(offered)[partners]
        return partner, found

    def distinct(self, entry: Entry, other: Entry, features: str = "all") -> NDArray[np.bool_]:
        """Which features have a partner of their own in `other` above the threshold, (size,).

        With ``features="alive"`` both must have fired.
        """
        used, offered = (_counts(e, features) for e in (entry, other))
        found = np.zeros(entry.size, bool)
        found[used] = distinct(
            self._rows[entry][used], self._rows[other][offered],
            self.settings.threshold, self.settings.block_rows,
        )  # fmt: skip
        return found

    def numbers(
        self, entry: Entry, variant: Variant | None = None, gaussian: bool = False
    ) -> dict[str, Any]:
        """Its partners' sizes, how many features count, MMCS, both nulls, how many are high.

        MMCS of random directions with random dictionaries of the partners' sizes is exact, for the
        plain maximum; one to one it lies a little lower. That of Gaussian rows is simulated, if
        asked for.
        """
        variant = variant or self.shown
        values = pd.Series(self.mcs(entry, variant)).dropna()
        above = values > self.settings.threshold
        like = self.gaussian_mcs(entry, variant) if gaussian else np.empty(0)
        return {
            "partners": " ".join(str(p.size) for p in self.partners(entry, variant.against)),
            "n": len(values),
            "mmcs": values.mean(),
            "random_mmcs": random_directions.mean_mcs(self.study.d_in, self.sizes(entry, variant)),
            "gaussian_mmcs": pd.Series(like).mean(),
            "n_above": int(above.sum()),
            "share_above": above.mean(),
        }

    def sizes(self, entry: Entry, variant: Variant | None = None) -> list[int]:
        """How many features each partner offers (those alive, if only these count)."""
        variant = variant or self.shown
        partners = self.partners(entry, variant.against)
        sizes = [int(_counts(partner, variant.features).sum()) for partner in partners]
        return [size for size in sizes if size]

    def gaussian_mcs(self, entry: Entry, variant: Variant) -> Floats:
        """MCS of rows drawn from Gaussians with the covariances of the rows compared, (draws,).

        Those of `entry` and of its partners, by simulation with a fixed seed; of those alive, if
        only these count. For the plain maximum; empty where no features are there to compare.
        """
        every = (entry, *self.partners(entry, variant.against))
        if not all(_counts(e, variant.features).any() for e in every):
            return np.empty(0)
        law, *others = (self._law(e, variant.features) for e in every)
        return gaussian_rows.mcs(law, others, self.settings.block_rows)

    def _law(self, entry: Entry, features: str) -> gaussian_rows.Law:
        return gaussian_rows.Law.of(self._rows[entry][_counts(entry, features)])

    @cached_property
    def main(self) -> Chain | None:
        """The chain that the main figures show: the first family's, of the lowest seed.

        None if no dictionary has a larger one.
        """
        several = {chain.family for chain in self.study.chains if len(chain.entries) > 1}
        family = next((family for family in self.study.families if family in several), None)
        return self._chosen(family)[0] if family is not None else None

    @property
    def family(self) -> str:
        """The family that main figures show."""
        return self.main.family if self.main else self.study.families[0]

    def shown_of(self, family: str | None = None) -> tuple[Entry, ...]:
        """The dictionaries that figures show of a family: at its level, of the lowest seed."""
        return self._chosen(self.family if family is None else family)[0].entries

    def shown_anywhere(self) -> set[Entry]:
        """The dictionaries at the level of their family at which it is shown, in all seeds."""
        shown = [self._chosen(family)[0] for family in self.study.families]
        return {e for one in shown for chain in self.same_but_seed(one) for e in chain.entries}

    @property
    def rule(self) -> str:
        """A sentence on how the main chain's level was chosen; there must be a main chain."""
        assert self.main is not None
        return (
            f"The main figures show {self.main.setting}, by a rule that does not look at "
            f"agreement: {self._chosen(self.main.family)[1]}."
        )

    def _chosen(self, family: str) -> tuple[Chain, str]:
        """What figures show of a family, of the lowest seed; and why, as the end of a sentence.

        It is the sparsest level (lowest L0) of those whose FVU is at most `comparison.max_fvu`; if
        there is none, the one that a probe recommends, and if that finds none of use the one with
        the lowest FVU. All are means over sizes and seeds, so only chains with as many sizes as the
        family's longest compete. Agreement plays no part in it.
        """
        chains = [chain for chain in self.study.chains if chain.family == family]
        longest = max(len(chain.entries) for chain in chains)
        chains = [chain for chain in chains if len(chain.entries) == longest]
        each = pd.DataFrame(
            {"level": e.level, "dict_size": e.size, "dead": 1 - e.alive.mean()}
            | {key: e.metrics[key] for key in ("fvu", "l0")}
            for chain in chains
            for e in chain.entries
        )
        means = each.groupby("level", sort=False, as_index=False).mean()
        means["dead"] *= means["dict_size"]
        swept, bar = LABELS[chains[0].axis], f"at most {self.settings.max_fvu:g}"
        none = (
            f"no {swept} has an FVU, averaged over sizes and seeds, of {bar} "
            "(comparison.max_fvu), so the "
        )
        rungs: Any = means.to_dict("records")
        if good := [m for m in rungs if m["fvu"] <= self.settings.max_fvu]:
            found: Mapping[Any, Any] = min(good, key=lambda m: m["l0"])
            why = (
                f"of each {swept} whose FVU, averaged over sizes and seeds, is {bar} "
                "(comparison.max_fvu), the sparsest (lowest mean L0)"
            )
        elif useful := recommended(rungs):
            found, best = useful, f"explains {ENOUGH:.0%} of what the best of them does"
            why = f"{none}sparsest that {best}, as in experiment=probe"
        else:
            found = min(rungs, key=lambda m: m["fvu"])
            why = f"{none}one with the lowest FVU, since none is of use"
        alike = [chain for chain in chains if chain.level == found["level"]]
        return min(alike, key=lambda chain: chain.seed), why

    def same_but_seed(self, chain: Chain) -> list[Chain]:
        """Chains that differ from `chain` in the seed at most, and have the same sizes."""
        sizes = [entry.size for entry in chain.entries]
        return [
            other
            for other in self.study.chains
            if (other.family, other.level) == (chain.family, chain.level)
            and [entry.size for entry in other.entries] == sizes
        ]

    def table(self, known: pd.DataFrame) -> pd.DataFrame:
        """MMCS of each dictionary that has a larger one, in the variant shown and all plain ones.

        Of the `known` dictionaries, a row each of the table of dictionaries.
        """
        own = known[(known["site"] == self.study.at) & (known["next_size"] > 0)]
        own = own.rename(columns={"size": "dict_size"}).set_index("dictionary")
        columns = ["family", "dict_size", "l1", "l1_scaling", "axis", "level", "seed", "fvu", "l0"]
        entries = [entry for entry in self.study.entries if self._larger[entry]]
        parts = []
        for variant in dict.fromkeys([self.shown, *(v for v in VARIANTS if v.matching == "max")]):
            shown = variant == self.shown
            rows = {entry.name: self.numbers(entry, variant, shown) for entry in entries}
            part = pd.DataFrame.from_dict(rows, orient="index").reindex(columns=NUMBERS)
            parts.append(own[columns].assign(**asdict(variant)).join(part))
        return pd.concat(parts).reset_index()
