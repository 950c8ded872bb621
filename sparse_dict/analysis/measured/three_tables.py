"""What is measured of a study: its dictionaries, their features, and pairs of dictionaries.

Each number is measured once, in arrays, by the functions of `measures/`; `columns.py` says what
each column is.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.analysis import study as studies
from sparse_dict.analysis.columns import COLUMNS
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.effective_neurons import entropy, simpson_neurons
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.measures.two_dictionaries import match_features
from sparse_dict.analysis.study import Entry, Study
from sparse_dict.analysis.tables import BOTH, MOST_SEEDS, RARE, ROWS, SEED, About, Tables
from sparse_dict.errors import UserError
from sparse_dict.storage import records


def measure(
    comparisons: Sequence[Comparison],
    name: str,
    fingerprints: Mapping[str, str],
    with_pairs: bool,
) -> Tables:
    """Measure a study: its sites' comparisons, that of the main figures first."""
    main, rows, parts = comparisons[0], [], []
    for one in comparisons:
        kinds, chosen = studies.kinds(one.study), one.shown_anywhere()
        for entry in one.study.entries:
            parts.append(_features(one, entry))
            rows.append(_row(one, entry, parts[-1]))
            rows[-1] |= {"kind": kinds[entry.family], "chosen": entry in chosen}
    names = [column for column, by in COLUMNS["dictionaries"].items() if not by]
    dictionaries = pd.DataFrame(rows, columns=names)
    features = pd.concat(parts, ignore_index=True)
    pairs = pd.DataFrame()
    if with_pairs:
        limit = main.settings.match_limit
        pairs = matched_pairs([one.study for one in comparisons], limit)
        dictionaries, features = _with_pairs(dictionaries, features, pairs)
    about = About(
        name, main.study.at, main.family, main.study.plain, main.study.d_in,
        main.rule if main.main else "", _given(main.study, name), asdict(main.settings),
        {name: fingerprints[name] for name in dictionaries["dictionary"]},
        [item.name for item in main.study.left_out],
    )  # fmt: skip
    return Tables(about, dictionaries, features, pairs)


def _given(study: Study, name: str) -> list[str]:
    """The overrides that all dictionaries were trained with, as Hydra recorded them."""
    try:
        first, *others = (records.overrides(e.trained.folder / ".hydra") for e in study.entries)
    except UserError:  # made elsewhere
        first, others = [], []
    return [key for key in first if all(key in given for given in others)] or [f"name={name}"]


def _features(comparison: Comparison, entry: Entry) -> pd.DataFrame:
    columns: dict[str, Any] = {"alive": entry.alive, "frequency": entry.frequency}
    columns |= dict.fromkeys(("mcs", "mcs_alive", "next_mcs", "next_mcs_alive"), np.nan)
    columns |= {"partner": -1, "own": False, "own_alive": False, "unrelated": False}
    if larger := comparison.partners(entry, "next"):
        matching, shown = comparison.shown.matching, comparison.shown
        following = comparison.mcs(entry, Variant(matching, "next", "all"))
        bar = random_directions.max_quantile(1 - RARE, comparison.study.d_in, larger[0].size)
        columns |= {
            "mcs": comparison.mcs(entry),
            "mcs_alive": comparison.mcs(entry, shown.of("alive")),
            "next_mcs": following,
            "next_mcs_alive": comparison.mcs(entry, Variant(matching, "next", "alive")),
            "partner": comparison.matched(entry, larger[0], matching, "all")[0],
            "own": comparison.distinct(entry, larger[0]),
            "own_alive": comparison.distinct(entry, larger[0], "alive"),
            "unrelated": following <= bar,
        }
    columns |= {"neurons": simpson_neurons(entry.decoder), "entropy": entropy(entry.decoder)}
    columns["encoder_cosine"] = np.nan
    if entry.encoder.shape == entry.decoder.shape:
        reads = normalised(entry.encoder) * normalised(entry.decoder)
        columns["encoder_cosine"] = reads.sum(1)
    return entry.features(**columns)


def _row(comparison: Comparison, entry: Entry, features: pd.DataFrame) -> dict[str, Any]:
    study, metrics = comparison.study, entry.metrics
    row: dict[str, Any] = {
        **{key: getattr(entry, key) for key in ("family", "axis", "level", "size", "seed", "l1")},
        **{key: str(metrics.get(key)) for key in ("l1_scaling", "activation")},
        "dictionary": entry.name, "site": study.at, "rows": studies.rows(entry)[0],
        "d_in": study.d_in, "tied": bool(metrics.get("tied")), "alike": studies.kin(entry),
        "strategy": (metrics["config"].get("sae") or {}).get("strategy", "plain"),
        "fault": studies.fault(entry) or "",
    }  # fmt: skip
    for key in ("n_activations", "eval_rows", "fvu", "l0", "mse", "l1_norm", "seconds"):
        row[key] = np.nan if metrics.get(key) is None else float(metrics[key])
    row |= {
        "dead": float((~entry.alive).mean()),
        "effective_neurons": features.loc[features["alive"], "neurons"].mean(),
        "counted": 0, "n_above": 0, "next_size": 0, "larger": "",
        "n_above_alive": int((features["mcs_alive"] > comparison.settings.threshold).sum()),
    }  # fmt: skip
    if larger := comparison.partners(entry, "next"):
        row |= comparison.numbers(entry, gaussian=True)
        row |= {"counted": row["n"], "next_size": larger[0].size}
        row["larger"] = " ".join(map(str, comparison.sizes(entry)))
    return row


def partners(study: Study, limit: int) -> Iterator[tuple[Entry, Entry, str]]:
    """Dictionaries of up to `limit` features that are alike but for seed, rows or both.

    With the thing in which they differ. Rows count as other ones if they are the two halves of a
    split, or two bootstraps.
    """
    alike: dict[tuple[int, str], list[Entry]] = defaultdict(list)
    for entry in study.entries:
        if entry.size <= limit:
            alike[entry.size, studies.kin(entry)].append(entry)
    for entries in alike.values():
        seeds = sorted({entry.seed for entry in entries})[:MOST_SEEDS]
        kept = sorted((e for e in entries if e.seed in seeds), key=lambda e: e.seed)
        for first, second in combinations(kept, 2):
            (own, split), (others, other_split) = studies.rows(first), studies.rows(second)
            if (own, split) == (others, other_split):
                yield first, second, SEED
            elif ({own, others} == {"half_a", "half_b"} and split == other_split) or (
                own == others == "bootstrap"
            ):
                yield first, second, ROWS if first.seed == second.seed else BOTH


def matched_pairs(found: Sequence[Study], limit: int) -> pd.DataFrame:
    """The table of pairs of some studies: dictionaries that `partners` names, matched."""
    kinds = {"feature": int, "partner": int, "same": bool, "cosine": float, "encoder_cosine": float}
    none = pd.DataFrame(columns=[*COLUMNS["pairs"]]).astype(kinds)
    parts = []
    for first, second, differ in (pair for study in found for pair in partners(study, limit)):
        matched = match_features((first.encoder, first.decoder), (second.encoder, second.decoder))
        names = {"first": first.name, "second": second.name, "differ": differ}
        parts.append(pd.DataFrame(names | {"feature": range(first.size)} | vars(matched)))
    return pd.concat(parts, ignore_index=True)[[*none]] if parts else none


def _with_pairs(
    dictionaries: pd.DataFrame, features: pd.DataFrame, pairs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    ends = []  # each pair from both its ends: a partner's partner is the feature itself
    for dictionary, feature in (("first", "feature"), ("second", "partner")):
        end = pairs[[dictionary, feature, "differ", "cosine", "same"]]
        ends.append(end.rename(columns={dictionary: "dictionary", feature: "feature"}))
    both = pd.concat(ends, ignore_index=True)
    recurs = both.groupby(["dictionary", "feature"])["same"].mean().rename("recurs").reset_index()
    means = both[both["differ"] == SEED].groupby("dictionary")[["cosine", "same"]].mean()
    means = means.rename(columns={"cosine": "pw_mcc", "same": "shared"}).astype(float)
    return dictionaries.join(means, on="dictionary"), features.merge(recurs, how="left")
