"""Claims as data: a statement, a number of what was measured, and the rule that judges it.

`judge` is the one function that gives verdicts. An interval is over seeds where there are three or
more, else a bootstrap over features; nothing is decided on dictionaries that explain nothing.
"""

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.measures.intervals import Estimate, bootstraps, jackknife, over_seeds
from sparse_dict.analysis.measures.two_dictionaries import SHARED_ABOVE
from sparse_dict.analysis.report import texts
from sparse_dict.analysis.tables import FEWEST_SEEDS, MOST_SEEDS, RARE, About, Tables
from sparse_dict.errors import UserError

# What claims.md names in braces of many claims
BARS = {"rare": RARE, "cosine": SHARED_ABOVE, "seeds": MOST_SEEDS}
HOLDS, FAILS, OPEN = "holds", "does not hold", "undecided"
Array = NDArray[Any]
Sizes = Mapping[Any, Array]  # values of each dictionary size, rising; or of another group
Number = Callable[[Sizes], float | Sequence[float]]  # or several of them


# --- what a claim is made of ----------------------------------------------------------------------


def verdict(holds: bool, fails: bool) -> str:
    """Undecided where it is neither."""
    return HOLDS if holds else FAILS if fails else OPEN


def both(*verdicts: str) -> str:
    """That of a claim that says several things: all must hold."""
    return verdict({*verdicts} == {HOLDS}, FAILS in verdicts)


def either(*verdicts: str) -> str:
    """That of a claim for which one of several things is enough."""
    return verdict(HOLDS in verdicts, {*verdicts} == {FAILS})


@dataclass(frozen=True)
class Lies:
    """The rule that a 95 % interval must lie between two bars; it fails beyond one of them.

    Of several numbers the first `n` are judged, and their verdicts `joined`.
    """

    low: float = -np.inf
    high: float = np.inf
    n: int = 1
    joined: Callable[..., str] = both

    def __call__(self, *found: Estimate) -> str:
        """The verdict; undecided if the interval crosses a bar."""
        inside = [e.low > self.low and e.high < self.high for e in found[: self.n]]
        beyond = [e.high < self.low or e.low > self.high for e in found[: self.n]]
        return self.joined(*map(verdict, inside, beyond))

    def __str__(self) -> str:
        bars = {f"above {self.low:g}": self.low, f"below {self.high:g}": self.high}
        where = " and ".join(text for text, bar in bars.items() if np.isfinite(bar))
        return f"holds if the 95 % interval lies {where}, does not hold if it lies beyond"


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


def these_sizes(*sizes: int) -> Need:
    """Dictionaries of these sizes that have a larger one."""
    what = f"size {' and '.join(map(str, sizes))} and a larger one"
    grid = ",".join(map(str, (*sizes, 2 * sizes[-1])))
    return Need(
        what, f"{TRAIN}sae.dict_size={grid}", lambda study: {*sizes} <= {*study.main["size"]}
    )


SEVERAL_SEEDS = Need(
    "several seeds", f"{TRAIN}seed=0,1,2", lambda study: study.level["seed"].nunique() > 1
)


def mean_of_means(sizes: Sizes) -> Any:
    """The mean at each size, or that of each column, averaged over sizes."""
    return np.mean([values.mean(0) for values in sizes.values()], axis=0)


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
    # How the study's number is told: a format of the numbers, of `sizes` (the mean of each),
    # `found` (estimates) and `total` (the numbers' sums over seeds); and if there is none
    here: str = "{:.0%}"
    few: str = "too few features that it is about"

    @classmethod
    def of(cls, claim: "Claim") -> Self:
        """Those of `claims.md`: a list of what is said, and the number."""
        text, bars = texts.claim(claim.key), {**BARS, "fewest": claim.fewest, **claim.bars}
        listed = dict(re.findall(r"- (\w+): (.+?)(?= - \w+: |$)", "".join(text.paragraphs[:-1])))
        told = {"number": text.paragraphs[-1], "few": listed.pop("few", cls.few)}
        return cls(text.title, **listed, **{k: of.format_map(bars) for k, of in told.items()})


@dataclass(frozen=True)
class Claim:
    """`number` of `values`, judged by `rule`; or what its own `judge` finds."""

    key: str
    # Of the rows of a table, one or several; nan: the row does not count. As text: expressions of
    # columns, as `DataFrame.eval` takes them, with commas in between
    values: str | Callable[[pd.DataFrame], "pd.Series[Any] | pd.DataFrame"] = ""
    # The verdict on estimates of the numbers. What `judge` finds it decides if that did not.
    rule: Callable[..., str] | None = None
    number: Number = mean_of_means
    of: str | Callable[[Tables], pd.DataFrame] = "main"  # rows that `values` sees, or their name
    needs: tuple[Need, ...] = (LARGER,)  # besides those of the following
    where: str = ""  # which rows count, for `DataFrame.query`
    at: tuple[int, ...] = ()  # the sizes that it is about; none named: all
    sizes: int = 1  # sizes with values that it needs
    fewest: int = 1  # values that such a size has at least
    of_all: bool = False  # about all dictionaries, not only those at the chosen level
    living: bool = True  # whether the number of the features that are alive stands beside it
    judge: Callable[[Tables], Found] | None = None
    words: Words | None = None  # of a claim that is not in `claims.md`
    bars: Mapping[str, Any] = field(default_factory=dict)  # what is in braces there

    @property
    def every_need(self) -> Iterator[Need]:
        """All that it needs."""
        yield from self.needs
        if self.at:
            yield these_sizes(*self.at)
        elif self.sizes > 1:
            yield some_sizes(self.sizes + (self.of == "main"))


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
        if need := next((need for need in claim.every_need if not need.there(study)), None):
            return lacking(need)
        found = claim.judge(study) if claim.judge else _measured(claim, study)
    except UserError as error:
        return Found(str(error))
    if claim.judge and claim.rule and found.estimate and found.verdict == OPEN:
        return replace(found, verdict=claim.rule(found.estimate))
    return found


def lacking(need: Need) -> Found:
    """Of a study that lacks what a claim needs."""
    return Found(f"needs {need.what}", need=need)


def judged(claim: Claim, found: Found, about: About) -> Judged:
    """A claim's row."""
    estimate, need, words = found.estimate, found.need, claim.words or Words.of(claim)
    return Judged(
        claim.key, words.claim, words.source, words.said, found.here,
        (estimate.low, estimate.high) if estimate else None, estimate.over if estimate else "",
        found.verdict,
        f"{words.number}: {claim.rule}." if isinstance(claim.rule, Lies) else words.number,
        None if words.source == "-" else words.verdict,
        need.what if need else "", need.told(about) if need else "",
    )  # fmt: skip


def _values(claim: Claim, table: pd.DataFrame) -> "pd.Series[Any] | pd.DataFrame":
    if claim.at:
        table = table[table["size"].isin(claim.at)]
    if claim.where:
        table = table.query(claim.where)
    if callable(claim.values):
        return claim.values(table).dropna()
    columns: Any = [table.eval(part) for part in claim.values.split(", ")]
    return cast(pd.DataFrame, pd.concat(columns, axis=1).dropna().squeeze(axis=1))


def _measured(claim: Claim, study: Tables) -> Found:
    assert claim.rule is not None
    words = claim.words or Words.of(claim)
    table = getattr(study, claim.of) if isinstance(claim.of, str) else claim.of(study)
    every = samples(table, _values(claim, table), "size") if len(table) else []
    every = [sample for sample in every if len(sample.values) >= claim.fewest]
    every.sort(key=lambda sample: (sample.size, sorted(sample.seeds)))
    # Of single dictionaries each seed has a number; one without values is too few.
    apart = [{seed} for seed in sorted({*table["seed"]})]
    of = [{*table["seed"]} | {*table["other_seed"]}] if "other_seed" in table else apart
    seeds = [groups_of([s for s in every if s.seeds <= seeds]) for seeds in of]
    if min(map(len, seeds), default=0) < claim.sizes:
        return Found(words.few)
    if len(seeds) > 1:
        numbers = (_numbers(claim.number, own) for own in seeds)
        found = [*map(over_seeds, zip(*numbers, strict=True))]
    else:
        found = estimates(every, claim.number, study.with_intervals)
    return Found(_told(words.here, claim, found, seeds), claim.rule(*found), found[0])


def _told(form: str, claim: Claim, found: Sequence[Estimate], seeds: Sequence[Sizes]) -> str:
    values = [estimate.value for estimate in found]
    sizes = ", ".join(f"{of.mean():.0%} at {size}" for size, of in seeds[0].items())
    total = [value * len(seeds) for value in values]
    text = form.format(*values, sizes=sizes, found=found, total=total)
    every = {size: np.concatenate([s[size] for s in seeds if size in s]) for size in seeds[0]}
    counted = claim.number is mean_of_means and claim.of == "main"
    if not counted or not all(np.isin(values, (0, 1)).all() for values in every.values()):
        return text
    counts = ", ".join(f"{int(v.sum())} of {len(v)}" for v in every.values())
    return f"{text} ({counts}{f' in {len(seeds)} seeds' if len(seeds) > 1 else ''})"


# --- values of dictionaries, and of pairs of them -------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The values of one dictionary, or of one pair of them."""

    size: Any  # of the dictionary; or what else groups are made by
    seeds: frozenset[int]
    values: Array


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


def groups_of(samples: Sequence[Sample], values: Sequence[Array] | None = None) -> Sizes:
    """The values of each size, or other group; or others in their place, such as resamples."""
    parts: dict[Any, list[Array]] = {}
    for sample, array in zip(samples, values or [s.values for s in samples], strict=True):
        parts.setdefault(sample.size, []).append(array)
    return {size: np.concatenate(arrays) for size, arrays in parts.items()}


def _numbers(number: Number, sizes: Sizes) -> list[float]:
    return np.ravel(number(sizes)).tolist()


def estimates(
    samples: Sequence[Sample], number: Number, with_interval: bool = True
) -> list[Estimate]:
    """The numbers of pairs of dictionaries, or of one of each size, with 95 % intervals.

    Where all groups have three or more seeds in common, a jackknife over these (pairs that share a
    seed depend on each other); else a bootstrap of the features of each pair.
    """
    seeds: dict[Any, frozenset[int]] = {}
    for sample in samples:
        seeds[sample.size] = seeds.get(sample.size, frozenset()) | sample.seeds
    common = sorted(frozenset.intersection(*seeds.values()))
    if len(common) >= FEWEST_SEEDS:
        kept = [sample for sample in samples if sample.seeds <= {*common}]
        without = [
            _numbers(number, groups_of([sample for sample in kept if seed not in sample.seeds]))
            for seed in common
        ]
        return [*map(jackknife, _numbers(number, groups_of(kept)), zip(*without, strict=True))]
    if with_interval:
        arrays = [sample.values for sample in samples]
        return bootstraps(arrays, lambda drawn: _numbers(number, groups_of(samples, drawn)))
    values = _numbers(number, groups_of(samples))
    return [Estimate(value, np.nan, np.nan, "") for value in values]
