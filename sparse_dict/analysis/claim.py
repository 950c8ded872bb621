"""Claims as data: a statement, a number of what was measured, and the rule that judges it.

`judge` is the one function that gives verdicts. An interval is over seeds where there are three or
more, else a bootstrap over features; nothing is decided on dictionaries that explain nothing.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.measures.intervals import Estimate, bootstrap, jackknife, over_seeds
from sparse_dict.analysis.report import texts
from sparse_dict.analysis.tables import FEWEST_SEEDS, About, Tables
from sparse_dict.errors import UserError

HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
Array = NDArray[Any]
Sizes = Mapping[Any, Array]  # values of each dictionary size, rising; or of another group


# --- what a claim is made of ----------------------------------------------------------------------


@dataclass(frozen=True)
class Lies:
    """The rule that a 95 % interval must lie between two bars; it fails beyond one of them."""

    low: float = -np.inf
    high: float = np.inf

    def __call__(self, found: Estimate) -> str:
        """The verdict; undecided if the interval crosses a bar."""
        if found.low > self.low and found.high < self.high:
            return HOLDS
        return FAILS if found.high < self.low or found.low > self.high else OPEN

    def __str__(self) -> str:
        bars = {f"above {self.low:g}": self.low, f"below {self.high:g}": self.high}
        where = " and ".join(text for text, bar in bars.items() if np.isfinite(bar))
        return f"holds if the 95 % interval lies {where}, does not hold if it lies beyond"


def both(*verdicts: str) -> str:
    """That of a claim that says several things: all must hold."""
    return FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS


def either(*verdicts: str) -> str:
    """That of a claim for which one of several things is enough."""
    return HOLDS if HOLDS in verdicts else OPEN if OPEN in verdicts else FAILS


@dataclass(frozen=True)
class Need:
    """What a study must have for a claim, and the command that adds it to one that lacks it."""

    what: str
    command: str  # {given}: what the study's dictionaries were trained with; {name}: its name=
    there: Callable[[Tables], bool]

    def told(self, about: About) -> str:
        """The command for a study; what it sets itself is not given twice."""
        own = {word.partition("=")[0] for word in self.command.split()}
        given = [override for override in about.given if override.partition("=")[0] not in own]
        return self.command.format(given=shlex.join(given), name=shlex.quote(f"name={about.study}"))


TRAIN = "python train_sae.py -m {given} "
LARGER = Need(
    "dictionaries that differ in size alone", f"{TRAIN}sae.dict_size=128,256,512",
    lambda study: not study.main.empty,
)  # fmt: skip


def some_sizes(n: int) -> Need:
    """So many dictionary sizes."""
    grid = ",".join(str(64 << i) for i in range(n))
    return Need(
        f"{n} dictionary sizes", f"{TRAIN}sae.dict_size={grid}",
        lambda study: study.level["size"].nunique() >= n,
    )  # fmt: skip


def of_sizes(*sizes: int) -> Need:
    """These dictionary sizes."""
    return Need(
        f"the sizes {' and '.join(map(str, sizes))}",
        f"{TRAIN}sae.dict_size={','.join(map(str, sizes))}",
        lambda study: {*sizes} <= {*study.level["size"]},
    )


SEVERAL_SEEDS = Need(
    "several seeds", f"{TRAIN}seed=0,1,2", lambda study: study.level["seed"].nunique() > 1
)


def mean_of_means(sizes: Sizes) -> float:
    """The mean at each size, averaged over sizes."""
    return float(np.mean([values.mean() for values in sizes.values()]))


@dataclass(frozen=True)
class Found:
    """What a study says of a claim."""

    here: str  # its number in words, or why there is none
    verdict: str = OPEN
    estimate: Estimate | None = None
    need: Need | None = None  # what the study lacks


@dataclass(frozen=True)
class Words:
    """What is said of a claim."""

    claim: str
    number: str  # in words, at the chosen level; that of a claim without `rule` has its rule too
    source: str = "-"  # a figure of the post, "text", a paper; "-": nobody claims it
    said: str = "-"  # what the source says
    verdict: str = HOLDS  # of the source itself

    @classmethod
    def of(cls, claim: "Claim") -> Self:
        """Those of `claims.md`: a list of what the source says, and the number."""
        text = texts.claim(claim.key)
        number = text.paragraphs[-1].format_map(claim.bars)
        listed = "".join(text.paragraphs[:-1])
        return cls(text.title, number, **dict(re.findall(r"- (\w+): (.+?)(?= - \w+: |$)", listed)))


@dataclass(frozen=True)
class Claim:
    """`number` of `values`, judged by `rule`; or what its own `judge` finds."""

    key: str
    # A column of the table, or several; nan: the row does not count.
    values: Callable[[pd.DataFrame], "pd.Series[Any] | pd.DataFrame"] | None = None
    rule: Callable[[Estimate], str] | None = None
    number: Callable[[Sizes], float] = mean_of_means
    # How it is told: a format of the number, or a text from it and the values of each seed.
    shown: str | Callable[[Estimate, Sequence[Sizes]], str] = "{:.0%}"
    # Another number that `rule` judges, and how both verdicts make that of the claim.
    second: tuple[Callable[[Sizes], float], Callable[[str, str], str]] | None = None
    of: str = "main"  # the table that `values` sees: `Tables.main` or `Tables.main_pairs`
    needs: tuple[Need, ...] = (LARGER,)
    sizes: int = 1  # sizes with values that it needs
    fewest: int = 1  # values that such a size has at least
    too_few: str = "too few features that it is about"
    of_all: bool = False  # about all dictionaries, not only those at the chosen level
    living: bool = True  # whether the number of the features that are alive stands beside it
    judge: Callable[[Tables], Found] | None = None
    words: Words | None = None  # of a claim that is not in `claims.md`
    bars: Mapping[str, Any] = field(default_factory=dict)  # what is in braces there


@dataclass(frozen=True)
class Judged:
    """A row of the table of claims, and of `claims.json`."""

    key: str
    claim: str
    figure: str  # of the post or paper
    post: str  # what that says
    ours: str
    interval: tuple[float, float] | None  # 95 %
    over: str  # what the interval is over: seeds, features, dictionaries ...
    verdict: str
    rule: str
    says: str | None  # the verdict of the post or paper itself; None: none makes this claim
    needs: str = ""  # what the study lacks
    command: str = ""  # what would add it

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict is that of the post or paper; None where either has none."""
        if self.says is None or self.verdict == OPEN:
            return None
        return self.verdict == self.says

    def as_json(self) -> dict[str, Any]:
        """Plain values, `agrees` among them; an interval that is not finite becomes null."""
        value = asdict(self) | {"agrees": self.agrees}
        if self.interval is not None and not np.isfinite(self.interval).all():
            value["interval"] = None
        return value

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Self:
        """The row that `as_json` wrote."""
        plain = {key: part for key, part in value.items() if key != "agrees"}
        ends = plain["interval"]
        return cls(**plain | {"interval": None if ends is None else tuple(ends)})


# --- judging --------------------------------------------------------------------------------------


def judge(claim: Claim, study: Tables) -> Judged:
    """What a study says of a claim."""
    found = _found(claim, study)
    if found.estimate is not None and claim.living and not claim.of_all and study.living:
        beside = _found(claim, study.living).here
        same = "the same" if beside == found.here else beside
        found = replace(found, here=f"{found.here}; of those ever active {same}")
    if not found.need and (why := study.useless(claim.of_all)):
        found = replace(found, here=f"cannot be decided: {why}; {found.here}", verdict=OPEN)
    return judged(claim, found, study.about)


def _found(claim: Claim, study: Tables) -> Found:
    try:
        if need := next((need for need in claim.needs if not need.there(study)), None):
            return lacking(need)
        return claim.judge(study) if claim.judge else _measured(claim, study)
    except UserError as error:
        return Found(str(error))


def lacking(need: Need) -> Found:
    """Of a study that lacks what a claim needs."""
    return Found(f"needs {need.what}", need=need)


def judged(claim: Claim, found: Found, about: About) -> Judged:
    """A claim's row."""
    estimate, need, words = found.estimate, found.need, claim.words or Words.of(claim)
    return Judged(
        claim.key, words.claim, words.source, words.said, found.here,
        (estimate.low, estimate.high) if estimate else None, estimate.over if estimate else "",
        found.verdict, f"{words.number}: {claim.rule}." if claim.rule else words.number,
        None if words.source == "-" else words.verdict,
        need.what if need else "", need.told(about) if need else "",
    )  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """The values of one dictionary, or of one pair of them."""

    size: Any  # of the dictionary; or what else groups are made by
    seeds: frozenset[int]
    values: Array


def _measured(claim: Claim, study: Tables) -> Found:
    found, seeds = estimate(claim, study)
    assert claim.rule is not None
    if not found:
        return Found(claim.too_few)
    verdict = claim.rule(found)
    if claim.second:
        number, joined = claim.second
        other, _ = estimate(replace(claim, number=number), study)
        verdict = joined(verdict, claim.rule(other or found))
    return Found(_told(claim, found, seeds), verdict, found)


def estimate(claim: Claim, study: Tables) -> tuple[Estimate | None, Sequence[Sizes]]:
    """A claim's number with its interval, and the values of each seed that it is of.

    None where too few sizes have too few values.
    """
    table = getattr(study, claim.of)
    samples = _samples(claim, table)
    if claim.of == "main":
        seeds = sorted({*table["seed"]})  # one that has no values is no reason to leave it out
        return _over_features(claim, samples, seeds, study.with_intervals)
    return _over_pairs(claim, samples, study.with_intervals)


def _samples(claim: Claim, table: pd.DataFrame) -> list[Sample]:
    assert claim.values is not None
    if table.empty:
        return []
    every = samples(table, claim.values(table).dropna(), "size")
    found = [sample for sample in every if len(sample.values) >= claim.fewest]
    return sorted(found, key=lambda sample: (sample.size, sorted(sample.seeds)))


def samples(
    rows: pd.DataFrame, values: "pd.Series[Any] | pd.DataFrame", by: str | list[str]
) -> list[Sample]:
    """The values of some rows by dictionary, or by pair, with the columns that group these."""
    ends = [end for end in ("seed", "other_seed") if end in rows]
    known, array = rows.loc[values.index], values.to_numpy(float)
    places = known.groupby(["dictionary", "second"][: len(ends)], sort=False).indices
    firsts = known.iloc[[place[0] for place in places.values()]]
    groups = firsts[by].itertuples(index=False, name=None) if isinstance(by, list) else firsts[by]
    seeds = map(frozenset, firsts[ends].to_numpy(int).tolist())
    parts = (array[place] for place in places.values())
    return [Sample(*one) for one in zip(groups, seeds, parts, strict=True)]


def _by_size(samples: Sequence[Sample], values: Sequence[Array]) -> Sizes:
    parts: dict[int, list[Array]] = {}
    for sample, array in zip(samples, values, strict=True):
        parts.setdefault(sample.size, []).append(array)
    return {size: np.concatenate(arrays) for size, arrays in parts.items()}


def groups_of(samples: Sequence[Sample]) -> Sizes:
    """The values of each size, or other group."""
    return _by_size(samples, [sample.values for sample in samples])


def _resampled(
    number: Callable[[Sizes], float], samples: Sequence[Sample], with_interval: bool
) -> Estimate:
    """Each dictionary's features, or each pair's, are drawn anew."""
    if not with_interval:
        return Estimate(number(groups_of(samples)), np.nan, np.nan, "")
    arrays = [sample.values for sample in samples]
    return bootstrap(arrays, lambda drawn: number(_by_size(samples, drawn)))


def _over_features(
    claim: Claim, samples: Sequence[Sample], seeds: Sequence[int], with_interval: bool
) -> tuple[Estimate | None, Sequence[Sizes]]:
    own = [[sample for sample in samples if seed in sample.seeds] for seed in seeds]
    sizes = [groups_of(part) for part in own]
    if min(map(len, sizes), default=0) < claim.sizes:
        return None, sizes
    if len(seeds) > 1:
        return over_seeds([claim.number(part) for part in sizes]), sizes
    return _resampled(claim.number, own[0], with_interval), sizes


def _over_pairs(
    claim: Claim, samples: Sequence[Sample], with_interval: bool
) -> tuple[Estimate | None, Sequence[Sizes]]:
    sizes = groups_of(samples)
    if len(sizes) < claim.sizes:
        return None, [sizes]
    return over_pairs(samples, claim.number, with_interval), [sizes]


def over_pairs(
    samples: Sequence[Sample], number: Callable[[Sizes], float], with_interval: bool = True
) -> Estimate:
    """A number of pairs of dictionaries with its 95 % interval.

    Where all groups have three or more seeds in common, a jackknife over these (pairs that share a
    seed depend on each other); else a bootstrap of the features of each pair.
    """
    seeds: dict[Any, frozenset[int]] = {}
    for sample in samples:
        seeds[sample.size] = seeds.get(sample.size, frozenset()) | sample.seeds
    common = sorted(frozenset.intersection(*seeds.values()))
    if len(common) < FEWEST_SEEDS:
        return _resampled(number, samples, with_interval)
    kept = [sample for sample in samples if sample.seeds <= {*common}]
    without = [
        number(groups_of([sample for sample in kept if seed not in sample.seeds]))
        for seed in common
    ]
    return jackknife(number(groups_of(kept)), without)


def _told(claim: Claim, estimate: Estimate, seeds: Sequence[Sizes]) -> str:
    if not isinstance(claim.shown, str):
        return claim.shown(estimate, seeds)
    text = claim.shown.format(estimate.value)
    if claim.number is not mean_of_means or claim.of != "main":
        return text
    every = {size: np.concatenate([s[size] for s in seeds if size in s]) for size in seeds[0]}
    if not all(np.isin(values, (0, 1)).all() for values in every.values()):
        return text
    counts = ", ".join(f"{int(v.sum())} of {len(v)}" for v in every.values())
    return f"{text} ({counts}{f' in {len(seeds)} seeds' if len(seeds) > 1 else ''})"
