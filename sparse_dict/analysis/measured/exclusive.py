"""Which features of several sites look exclusive to one of them, and which of these are.

By the relative norms of their decoder rows at two sites (Lindsey et al. 2024), with two tests of
those that look exclusive, for an L1 penalty makes shared features look so (Minder et al. 2025).
"""

from itertools import pairwise

import numpy as np
import pandas as pd

from sparse_dict.activations.store import MANIFEST
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import Floats
from sparse_dict.analysis.study import Entry, setting
from sparse_dict.config import ActivationsConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.scaling import Scaling
from sparse_dict.storage import files

Pairs = dict[str, tuple[slice, slice]]  # columns of two sites of a row, one beside the other
EXCLUSIVE, SHARED = 0.1, (0.4, 0.6)  # relative norms: up to the first from either end; within
BARS = {"left_over": 0.2, "left_over_chance": 0.2, "twin": 0.7}  # above which it is not exclusive
SORTS = ["first_only", "shared", "second_only", "between"]
TINY = 1e-30


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Relative norms of every feature, what becomes of those that look exclusive, and counts."""
    pairs, x = neighbours(context), context.evaluation_rows()
    seen = context.study.entries[0].metrics["config"]["activations"]
    balance = Scaling.of(ActivationsConfig(**seen), context.activations).balance
    families = map(context.comparison.shown_of, context.study.families)
    parts = [tested(entry, x, balance, pairs) for entries in families for entry in entries]
    features = pd.concat(parts, ignore_index=True)
    return {"crosscoders": counts(context, features), "crosscoder_features": features}


def neighbours(context: Context) -> Pairs:
    """Each site with the next one of a row, by the names of both."""
    places = (context.activations.manifest or {}).get("sites", [])
    columns = [of for of, _ in context.activations.sites]
    known = [(place["site"], of) for place, of in zip(places, columns, strict=False)]
    return {f"{one} and {other}": (at, to) for (one, at), (other, to) in pairwise(known)}


def norms(rows: Floats, columns: tuple[slice, slice]) -> Floats:
    """Those of the parts of rows (n, d) at two sites, (2, n)."""
    return np.stack([np.linalg.norm(rows[:, part], axis=1) for part in columns])


def tested(entry: Entry, x: Floats, balance: Floats, pairs: Pairs) -> pd.DataFrame:
    """Where each feature is, and whether it is at the other site as well, by rows `x` (rows, d).

    Decoder rows are divided by `balance` (d,) to be as they were in training. With all other
    features as they are, the part of feature k that fits best is
    W_dec[k] + sum_rows c_k error / sum_rows c_k^2. Columns: `relative`, the second site's share of
    both norms; `sort`, where that puts it; `left_over`, the norm of the part that fits best at the
    site where its own is smaller, over that at the other, and by chance, with the rows in another
    order; `twin`, the highest correlation of an exclusive feature's code with one of a feature
    exclusive to the other site.
    """
    dictionary, rows = entry.trained.dictionary, entry.decoder / balance
    codes = dictionary.encode(x).astype(np.float64)
    error = (x - dictionary.reconstruct(x)) / balance
    weight = np.maximum((codes**2).sum(0), TINY)[:, None]
    best = rows + codes.T @ error / weight
    moved = np.roll(codes, len(codes) // 2, axis=0).T @ error / weight
    centred = codes - codes.mean(0)
    centred /= np.maximum(np.linalg.norm(centred, axis=0), TINY)
    at, found = np.arange(entry.size), []
    for name, columns in pairs.items():
        own, fitted, noise = (norms(part, columns) for part in (rows, best, moved))
        relative = own[1] / np.maximum(own.sum(0), TINY)
        first = entry.alive & (relative <= EXCLUSIVE)
        second = entry.alive & (relative >= 1 - EXCLUSIVE)
        shared = (relative >= SHARED[0]) & (relative <= SHARED[1])
        tests = [~entry.alive, first, second, shared]
        sort = np.select(tests, ["dead", "first_only", "second_only", "shared"], "between")
        weaker = np.where(relative > 0.5, 0, 1)
        stronger, twin = np.maximum(fitted[1 - weaker, at], TINY), np.zeros(entry.size)
        if first.any() and second.any():
            correlation = centred[:, first].T @ centred[:, second]
            twin[first], twin[second] = correlation.max(1), correlation.max(0)
        of = {
            "dictionary": entry.name, "sites": name, "feature": at, "relative": relative,
            "sort": sort, "left_over": fitted[weaker, at] / stronger,
            "left_over_chance": noise[weaker, at] / stronger, "twin": twin,
        }  # fmt: skip
        found.append(pd.DataFrame(of))
    return pd.concat(found)


def counts(context: Context, features: pd.DataFrame) -> pd.DataFrame:
    """A row a dictionary and pair of sites: features of each sort, and tests of the exclusive."""
    by = ["dictionary", "sites"]
    sorts = pd.crosstab([features[key] for key in by], features["sort"])
    sorts = sorts.reindex(columns=SORTS, fill_value=0)
    sorts.insert(0, "alive", sorts.sum(axis=1))
    sorts["exclusive"] = sorts["first_only"] + sorts["second_only"]
    only = features[features["sort"].isin(["first_only", "second_only"])].set_index(by)
    tests = only[[*BARS]].gt(pd.Series(BARS)).groupby(by).mean().rename(columns={"twin": "twins"})
    known = context.tables.dictionaries.rename(columns={"size": "dict_size"})
    known["sparsity"] = [*map(setting, known["axis"], known["level"])]
    known = known.set_index("dictionary")[["kind", "dict_size", "sparsity", "fvu", "l0"]]
    table = features[by].drop_duplicates().join(known, on="dictionary")
    return table.join(sorts, on=by).join(tests, on=by).drop(columns="dictionary")


def of_several_sites(context: Context) -> bool:
    """Whether rows hold several sites and dictionaries see all, as far as can be told at once."""
    study, folders = context.study, context.config.activations_dirs
    if study.site is not None or study.target is not None:
        return False
    try:
        places = files.read_json(folders[0] / MANIFEST).get("sites") or []
    except UserError:
        places = []
    return len(folders) > 1 or len(places) > 1
