"""Kinds of dictionaries at equal L0: what each has there, and how it differs from the plain kind.

Agreement, reconstruction and all else move with L0, so kinds are compared where theirs is the same:
each measure is read off between the levels of L1 (or k, or the L0 coefficient) that a kind was
trained at, along the logarithm of L0, and nowhere beyond them.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures.effective_neurons import simpson_neurons
from sparse_dict.analysis.measures.intervals import Estimate
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Picture, Table
from sparse_dict.analysis.seeds import FEWEST_SEEDS, SeedPair, common_seeds, estimate, shared
from sparse_dict.analysis.study import Entry
from sparse_dict.storage import files

REACH = 1.05  # factor beyond the lowest and the highest L0 of a kind that counts as the same

Pairs = Sequence[SeedPair]


def of_both(value: Callable[[Entry], float]) -> Callable[[SeedPair], float]:
    """A dictionary's number as that of a pair: the mean of both."""
    return lambda pair: (value(pair.first) + value(pair.second)) / 2


_l0 = of_both(lambda entry: float(entry.metrics["l0"]))


@dataclass(frozen=True)
class Measure:
    """A number of a pair of seeds."""

    name: str
    title: str
    of: Callable[[SeedPair], float]
    share: bool = False  # shown in per cent
    by_feature: bool = False  # with fewer than three seeds, features give its interval

    def text(self, number: float, sign: str = "") -> str:
        """A value as it is shown."""
        if self.share:
            return f"{number:{sign}.1%}"
        return f"{number:{sign}.1f}" if self.name == "neurons" else f"{number:{sign}.3f}"


def _neurons(entry: Entry) -> float:
    return float(np.nanmean(simpson_neurons(entry.decoder[entry.alive])))


MEASURES = (
    Measure("shared", "shared", shared, share=True, by_feature=True),
    Measure("pw_mcc", "PW-MCC", lambda pair: pair.pw_mcc, by_feature=True),
    Measure("fvu", "FVU", of_both(lambda entry: float(entry.metrics["fvu"]))),
    Measure("dead", "dead", of_both(lambda entry: float((~entry.alive).mean())), share=True),
    Measure("neurons", "effective neurons", of_both(_neurons)),
)


def measures(context: Context) -> list[Measure]:
    """MEASURES, and the loss recovered of mean-ablation where that analysis is on and possible."""
    found = [*MEASURES]
    on = context.config.is_on("loss_recovered")
    if on and "loss_recovered" in (known := context.tables.dictionaries):
        shares = known.set_index("dictionary")["loss_recovered"].to_dict()
        share = of_both(lambda entry: float(shares[entry.name]))
        found.append(Measure("recovered", "loss recovered", share, share=True))
    return found


def at(pairs: Pairs, of: Callable[[SeedPair], float], l0: float) -> float:
    """What dictionaries of one kind and size have at an L0, by their pairs; nan beyond theirs."""
    levels: dict[float, list[SeedPair]] = defaultdict(list)
    for pair in pairs:
        levels[pair.first.level].append(pair)
    points = sorted(
        (float(np.mean([_l0(p) for p in group])), float(np.mean([of(p) for p in group])))
        for group in levels.values()
    )
    points = [point for point in points if point[0] > 0]
    if not points:
        return float("nan")
    x, y = np.log([point[0] for point in points]), [point[1] for point in points]
    if not x[0] - np.log(REACH) <= np.log(l0) <= x[-1] + np.log(REACH):
        return float("nan")
    return float(np.interp(np.log(l0), x, y))


def value(pairs: Pairs, measure: Measure, l0: float) -> Estimate:
    """A measure of one kind and size at an L0, with its interval."""
    return _estimate(pairs, lambda some: at(some, measure.of, l0), measure)


def difference(pairs: Pairs, plain: Pairs, measure: Measure, l0: float) -> Estimate:
    """The same less that of the plain kind.

    Over the seeds that both have: each is left out of both at once.
    """
    kind, other = pairs[0].first.family, plain[0].first.family

    def statistic(some: Pairs) -> float:
        ours = at([p for p in some if p.first.family == kind], measure.of, l0)
        return ours - at([p for p in some if p.first.family == other], measure.of, l0)

    return _estimate([*pairs, *plain], statistic, measure)


def _estimate(pairs: Pairs, statistic: Callable[[Pairs], float], measure: Measure) -> Estimate:
    """As `seeds.estimate`; without an interval if features would have to give one and cannot."""
    if measure.by_feature or len(common_seeds(pairs)) >= FEWEST_SEEDS:
        return estimate(pairs, statistic)
    return Estimate(statistic(pairs), float("nan"), float("nan"), "-")


def table(
    context: Context, of: Sequence[Measure], names: Mapping[str, str], level: float
) -> pd.DataFrame:
    """A row for each kind, size and measure, at the L0 that the plain kind has at `level`.

    Columns: kind, dict_size, l0, measure, before (PW-MCC of the initial values), value, low, high,
    over, and the difference from the plain kind as change, change_low, change_high. Kinds without
    levels on both sides of that L0 have no rows.
    """
    plain = context.study.plain
    pairs: dict[tuple[int, str], list[SeedPair]] = defaultdict(list)
    for pair in context.seed_pairs:
        pairs[pair.first.size, pair.first.family].append(pair)
    rows = []
    for (size, family), own in sorted(pairs.items()):
        usual = pairs.get((size, plain), [])
        there = [_l0(pair) for pair in usual if pair.first.level == level]
        l0 = float(np.mean(there)) if there else 0.0
        if l0 <= 0 or np.isnan(at(own, _l0, l0)):
            continue
        before = context.at_step_0(own[0].first, own[0].second)[0]
        for measure in of:
            found, change = value(own, measure, l0), difference(own, usual, measure, l0)
            rows.append(
                {
                    "kind": names[family], "dict_size": size, "l0": l0, "measure": measure.name,
                    "before": before if measure.name == "pw_mcc" else np.nan,
                    "value": found.value, "low": found.low, "high": found.high, "over": found.over,
                    "change": change.value, "change_low": change.low, "change_high": change.high,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def differences(frame: pd.DataFrame, of: Sequence[Measure], plain: str) -> Figure:
    """A panel a measure, a line a kind: the difference from the plain kind with its interval."""
    kinds = [kind for kind in dict.fromkeys(frame["kind"]) if kind != plain]
    sizes = sorted(frame["dict_size"].unique())
    columns = min(3, len(of))
    lines = -(-len(of) // columns)
    figure, axes = figures.grid(lines, columns, lines * (1.0 + 0.19 * len(kinds)), sharey=True)
    colours = figures.shades(len(sizes))
    for axis, measure in zip(axes.flat, of, strict=False):
        for place, (size, colour) in enumerate(zip(sizes, colours, strict=True)):
            part = frame[(frame["measure"] == measure.name) & (frame["dict_size"] == size)]
            part = part[part["kind"] != plain]
            y = np.array([kinds.index(kind) for kind in part["kind"]], dtype=float)
            errors = [part["change"] - part["change_low"], part["change_high"] - part["change"]]
            axis.errorbar(
                part["change"], y + 0.5 * ((place + 0.5) / len(sizes) - 0.5),
                xerr=np.nan_to_num(np.array(errors)), fmt="o", ms=3, lw=1, color=colour,
                label=str(size),
            )  # fmt: skip
        axis.axvline(0, color="0.6", lw=0.8)
        axis.set_yticks(range(len(kinds)), kinds)
        axis.set_title(measure.title)
        if measure.share:
            axis.xaxis.set_major_formatter(PercentFormatter(1))
    for axis in axes.flat[len(of) :]:
        axis.set_visible(False)
    axes[0, 0].invert_yaxis()
    if len(sizes) > 1:
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, title="size", loc="outside lower center", ncols=len(sizes))
    figure.suptitle(f"Difference from {plain} at equal L0")
    return figure


def _cells(frame: pd.DataFrame, of: Sequence[Measure], column: str, sign: str = "") -> pd.DataFrame:
    """A row for each kind and size, and a column a measure: ``value [low, high]``."""
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    ends = ("low", "high") if column == "value" else (f"{column}_low", f"{column}_high")
    by_name = {measure.name: measure for measure in of}
    for row in frame.to_dict("records"):
        kind, size, measure = row["kind"], row["dict_size"], by_name[row["measure"]]
        first = {"kind": kind, "dict_size": size, "L0": round(row["l0"], 2)}
        cells = rows.setdefault((kind, size), first)
        shown, low, high = (measure.text(row[name], sign) for name in (column, *ends))
        cells[measure.title] = shown if np.isnan(row[ends[0]]) else f"{shown} [{low}, {high}]"
        if column == "value" and measure.name == "pw_mcc":
            cells["PW-MCC before training"] = measure.text(row["before"])
    return pd.DataFrame([*rows.values()])


def blocks(context: Context, names: Mapping[str, str], level: float) -> list[str | Picture | Table]:
    """Text, figure and tables, and `equal_l0.csv`; nothing where only one kind can be read off."""
    of, plain = measures(context), names[context.study.plain]
    frame = table(context, of, names, level)
    if frame.empty or frame["kind"].nunique() < 2:
        return []
    files.write_text(context.folder / "equal_l0.csv", frame.to_csv(index=False))
    text = (
        f"The same at equal L0: what each kind has at the L0 of {plain}, read off between the "
        "levels that it was trained at along the logarithm of L0, and the difference from "
        f"{plain} there; intervals of 95 % over {frame['over'].iloc[0]}. PW-MCC before training is "
        "each kind's own chance level: higher than that of random directions where the language "
        "model's weights inform the initial values. The shared fraction asks encoders to "
        "agree as well, which sae.encoder_norm moves by itself; PW-MCC is of decoders alone."
    )
    if missing := sorted({*names.values()} - {*frame["kind"]}):
        text += f" Without levels on both sides of that L0, or seeds: {', '.join(missing)}."
    others = frame[frame["kind"] != plain]
    return [
        text,
        context.draw(
            "equal_l0", differences(frame, of, plain), "Difference from the plain kind at equal L0",
            "Bars: 95 %. Right of the line: more than the plain kind has.",
        ),
        Table("At equal L0", _cells(frame, of, "value")),
        Table("Difference at equal L0", _cells(others, of, "change", "+")),
    ]  # fmt: skip
