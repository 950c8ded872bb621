"""What is measured of a study, in three tables: its dictionaries, their features, and pairs.

Each number is measured once, in arrays, by the functions of `measures/`; `columns.py` says what
each column is. Figures and claims are made from the tables, which are written before them.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparse_dict.analysis import study as studies
from sparse_dict.analysis.columns import COLUMNS, FOLDER
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.effective_neurons import entropy, simpson_neurons
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.analysis.measures.two_dictionaries import match_features
from sparse_dict.analysis.study import Entry, Study
from sparse_dict.config.analysis import STANDARD_COMPARISON
from sparse_dict.errors import UserError
from sparse_dict.sae.folder import WEIGHTS
from sparse_dict.storage import files, records, untrusted

log = logging.getLogger(__name__)

KEYS = {  # of a row
    "dictionaries": ["dictionary"],
    "features": ["dictionary", "feature"],
    "pairs": ["first", "second", "feature"],
}
ABOUT = b"sparse_dict"  # in the files' metadata
SEED, ROWS, BOTH = "seed", "rows", "both"  # in what two dictionaries of a pair differ
MOST_SEEDS = 5  # of each setting that are compared, the lowest ones: ten pairs
FEWEST_SEEDS = 3  # over which an interval is taken
RARE = 0.01  # share of random directions above the MCS below which a feature has no analogue


@dataclass(frozen=True)
class About:
    """What the tables are of, and how it was compared."""

    study: str  # its name
    site: str  # the site that main figures show (`Study.at`)
    family: str  # the family that they show
    plain: str  # the family nearest to the post's dictionaries
    d_in: int  # width of decoder rows at that site
    rule: str  # a sentence on how the level of the main figures was chosen
    given: list[
        str
    ]  # overrides that all its dictionaries were trained with: for commands that add some
    comparison: dict[str, Any]  # the settings of `ComparisonConfig`
    weights: dict[str, str]  # fingerprints of its dictionaries' weights, by their folder
    left_out: list[str]  # folders that are not in the tables


@dataclass(eq=False)
class Tables:
    """A study as it was measured."""

    about: About
    dictionaries: pd.DataFrame
    features: pd.DataFrame
    pairs: pd.DataFrame = field(default_factory=pd.DataFrame)  # empty where nobody asked for it
    # What analyses measured besides, by name; each is a CSV file of the analysis.
    others: dict[str, pd.DataFrame] = field(default_factory=dict)
    with_intervals: bool = True  # whether numbers of it are given one, which takes long

    @property
    def threshold(self) -> float:
        """An MCS above it is called high."""
        return float(self.about.comparison["threshold"])

    @property
    def setting(self) -> str:
        """What makes the dictionaries of `level` sparse, as text: L1 0.03."""
        one = self.level.iloc[0]
        return studies.setting(one["axis"], one["level"])

    def useless(self, of_all: bool = False) -> str:
        """Why nothing can be decided, if dictionaries explain nothing; empty otherwise.

        One of `level` that explains nothing is enough. What is about all dictionaries (`of_all`),
        and anything if none has a larger one, needs only that some dictionary explains something.
        """
        if (self.dictionaries["fault"] != "").all():
            return _useless(self.dictionaries, "")
        if of_all or self.main.empty:
            return ""
        return _useless(self.level, f" at {self.setting}")

    @cached_property
    def level(self) -> pd.DataFrame:
        """The dictionaries that main figures show: a site, a family and a level, in all seeds."""
        shown = self.dictionaries
        here = (shown["site"] == self.about.site) & (shown["family"] == self.about.family)
        return shown[here & shown["chosen"]]

    @cached_property
    def main(self) -> pd.DataFrame:
        """The features of `level` that claims are about, with their dictionaries' columns.

        Of dictionaries that have a larger one; of all seeds if there are three or more, over which
        an interval is taken, else of the lowest. `found` is whether the MCS exceeds the threshold
        (nan where the feature does not count), `near` the same of the next size, whatever features
        count.
        """
        of = self.level[self.level["next_size"] > 0]
        if of["seed"].nunique() < FEWEST_SEEDS:
            of = of[of["seed"] == of["seed"].min()]
        joined = self.joined(of)
        found = (joined["mcs"] > self.threshold).astype(float).where(joined["mcs"].notna())
        return joined.assign(found=found, near=joined["next_mcs"] > self.threshold)

    @cached_property
    def shown(self) -> pd.DataFrame:
        """`main` of the lowest seed: what main figures show."""
        return self.main[self.main["seed"] == self.main["seed"].min()]

    @cached_property
    def living(self) -> "Tables | None":
        """The same of features that are alive, as are those that they are compared with.

        None if all of `main` are. Its numbers get no interval.
        """
        if self.main["alive"].all():
            return None
        names = [str(name) for name in self.features if f"{name}_alive" in self.features]
        features = self.features[self.features["alive"]]
        features = features.assign(**{name: features[f"{name}_alive"] for name in names})
        keys = features[["dictionary", "feature"]].rename(columns={"dictionary": "first"})
        pairs = self.pairs if self.pairs.empty else self.pairs.merge(keys)
        return Tables(self.about, self.dictionaries, features, pairs, self.others, False)

    @cached_property
    def main_pairs(self) -> pd.DataFrame:
        """The pairs of dictionaries of `level`, with the first one's columns and its features'."""
        if self.pairs.empty:
            return self.pairs
        chosen = self.pairs[self.pairs["first"].isin(self.level["dictionary"])]
        first = chosen.rename(columns={"first": "dictionary"})
        features = self.joined(self.level)[["dictionary", "feature", "alive", "frequency"]]
        columns = ["dictionary", "family", "level", "size", "seed"]
        second = self.dictionaries.set_index("dictionary")["seed"]
        joined = first.merge(self.level[columns], on="dictionary").merge(features, how="left")
        return joined.assign(other_seed=joined["second"].map(second).astype(int))

    def joined(self, dictionaries: pd.DataFrame) -> pd.DataFrame:
        """The features of some dictionaries, each with the columns of its dictionary."""
        own = self.features[self.features["dictionary"].isin(dictionaries["dictionary"])]
        return own.merge(dictionaries, on="dictionary")


def _useless(dictionaries: pd.DataFrame, where: str) -> str:
    faults = dictionaries.loc[dictionaries["fault"] != "", "fault"]
    if faults.empty:
        return ""
    each = ", ".join(f"{n} {why}" for why, n in faults.value_counts(sort=False).items())
    n = len(dictionaries)
    return f"{len(faults)} of {n} dictionaries{where} explain nothing ({each})"


# --- measuring ------------------------------------------------------------------------------------


def measure(
    comparisons: Sequence[Comparison],
    name: str,
    pairs: pd.DataFrame,
    fingerprints: Mapping[str, str],
) -> Tables:
    """Measure a study: its sites' comparisons, that of the main figures first."""
    main = comparisons[0]
    every = [entry for one in comparisons for entry in one.study.entries]
    dictionaries = pd.concat([_dictionaries(one) for one in comparisons], ignore_index=True)
    features = _features(comparisons)
    if len(pairs.columns):
        dictionaries, features = _with_pairs(dictionaries, features, pairs)
    about = About(
        name, main.study.at, main.family, main.study.plain, main.study.d_in,
        main.rule if main.main else "", _given(main.study, name), asdict(main.settings),
        {entry.name: fingerprints[entry.name] for entry in every},
        [item.name for item in main.study.left_out],
    )  # fmt: skip
    return Tables(about, dictionaries, features, pairs)


def _given(study: Study, name: str) -> list[str]:
    """The overrides that all dictionaries were trained with, as Hydra recorded them."""
    common: list[str] | None = None
    for entry in study.entries:
        try:
            given = records.overrides(entry.trained.folder / ".hydra")
        except UserError:  # made elsewhere
            given = []
        common = given if common is None else [key for key in common if key in given]
    return common or [f"name={name}"]


def _dictionaries(comparison: Comparison) -> pd.DataFrame:
    study, threshold = comparison.study, comparison.settings.threshold
    kinds = studies.kinds(study)
    lowest = (min(comparison.chosen(f), key=lambda chain: chain.seed) for f in study.families)
    chains = (chain for first in lowest for chain in comparison.same_but_seed(first))
    chosen = {entry for chain in chains for entry in chain.entries}
    rows = []
    for entry in study.entries:
        metrics, neurons = entry.metrics, simpson_neurons(entry.decoder[entry.alive])
        larger = comparison.sizes(entry) if comparison.partners(entry, "next") else []
        next_size = [partner.size for partner in comparison.partners(entry, "next")]
        mcs = living = np.full(entry.size, np.nan)
        if next_size:
            alive = Variant(comparison.shown.matching, comparison.shown.against, "alive")
            mcs, living = comparison.mcs(entry), comparison.mcs(entry, alive)
        counted = np.isfinite(mcs)
        row: dict[str, Any] = {
            "dictionary": entry.name, "site": study.at, "kind": kinds[entry.family],
            "family": entry.family, "axis": entry.axis, "level": entry.level,
            "size": entry.size, "seed": entry.seed, "rows": studies.rows(entry)[0],
            "d_in": study.d_in, "l1": entry.l1,
        }  # fmt: skip
        row |= {key: str(metrics.get(key)) for key in ("l1_scaling", "activation")}
        row["strategy"] = (metrics["config"].get("sae") or {}).get("strategy", "plain")
        row["alike"] = studies.kin(entry)
        row["tied"] = bool(metrics.get("tied"))
        row |= {
            key: float(metrics[key]) if metrics.get(key) is not None else np.nan
            for key in ("n_activations", "eval_rows", "fvu", "l0", "mse", "l1_norm", "seconds")
        }
        row |= {
            "dead": float((~entry.alive).mean()),
            "effective_neurons": float(np.nanmean(neurons)) if len(neurons) else np.nan,
            "fault": studies.fault(entry) or "", "chosen": entry in chosen,
            "next_size": next_size[0] if next_size else 0,
            "larger": " ".join(map(str, larger)), "counted": int(counted.sum()),
            "mmcs": float(mcs[counted].mean()) if counted.any() else np.nan,
            "random_mmcs": comparison.random_mean(entry) if next_size else np.nan,
            "gaussian_mmcs": comparison.gaussian_mean(entry) if next_size else np.nan,
            "n_above": int((mcs > threshold).sum()),
            "n_above_alive": int((living > threshold).sum()),
        }  # fmt: skip
        rows.append(row)
    names = [c.name for c in COLUMNS["dictionaries"] if not c.by]
    return pd.DataFrame(rows, columns=names)


def _features(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({"dictionary": entry.name, "feature": range(entry.size)} | _of(one, entry))
        for one in comparisons
        for entry in one.study.entries
    ]
    return pd.concat(parts, ignore_index=True)


def _of(comparison: Comparison, entry: Entry) -> dict[str, NDArray[Any]]:
    """The columns of one dictionary's features, (size,) each."""
    n, shown = entry.size, comparison.shown
    columns: dict[str, NDArray[Any]] = {"alive": entry.alive, "frequency": entry.frequency}
    larger = comparison.partners(entry, "next")
    if larger:
        following = comparison.mcs(entry, Variant(shown.matching, "next", "all"))
        bar = random_directions.max_quantile(1 - RARE, comparison.study.d_in, larger[0].size)
        columns |= {
            "mcs": comparison.mcs(entry),
            "mcs_alive": comparison.mcs(entry, Variant(shown.matching, shown.against, "alive")),
            "next_mcs": following,
            "next_mcs_alive": comparison.mcs(entry, Variant(shown.matching, "next", "alive")),
            "partner": comparison.partner(entry, larger[0]),
            "own": comparison.distinct(entry, larger[0]),
            "own_alive": comparison.distinct(entry, larger[0], "alive"),
            "unrelated": following <= bar,
        }
    else:
        unknown, never = np.full(n, np.nan), np.zeros(n, bool)
        columns |= dict.fromkeys(("mcs", "mcs_alive", "next_mcs", "next_mcs_alive"), unknown)
        columns |= {"partner": np.full(n, -1)}
        columns |= dict.fromkeys(("own", "own_alive", "unrelated"), never)
    reads = np.full(n, np.nan)
    if entry.encoder.shape == entry.decoder.shape:
        reads = (normalised(entry.encoder) * normalised(entry.decoder)).sum(1)
    columns |= {"neurons": simpson_neurons(entry.decoder), "entropy": entropy(entry.decoder)}
    return columns | {"encoder_cosine": reads}


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
    none = pd.DataFrame(columns=[column.name for column in COLUMNS["pairs"]]).astype(kinds)
    parts = []
    for first, second, differ in (pair for study in found for pair in partners(study, limit)):
        matched = match_features((first.encoder, first.decoder), (second.encoder, second.decoder))
        names = {"first": first.name, "second": second.name, "differ": differ}
        parts.append(pd.DataFrame(names | {"feature": range(first.size)} | vars(matched)))
    return pd.concat(parts, ignore_index=True)[[*none]] if parts else none


def _with_pairs(
    dictionaries: pd.DataFrame, features: pd.DataFrame, pairs: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables with what the pairs say of each dictionary and feature."""
    ends = []  # each pair from both its ends: a partner's partner is the feature itself
    for dictionary, feature in (("first", "feature"), ("second", "partner")):
        end = pairs[[dictionary, feature, "differ", "cosine", "same"]]
        ends.append(end.rename(columns={dictionary: "dictionary", feature: "feature"}))
    both = pd.concat(ends, ignore_index=True)
    recurs = both.groupby(["dictionary", "feature"])["same"].mean().rename("recurs").reset_index()
    means = both[both["differ"] == SEED].groupby("dictionary")[["cosine", "same"]].mean()
    means = means.rename(columns={"cosine": "pw_mcc", "same": "shared"}).astype(float)
    return dictionaries.join(means, on="dictionary"), features.merge(recurs, how="left")


# --- files ----------------------------------------------------------------------------------------


def fingerprints(study: Study) -> dict[str, str]:
    """Those of the weights of a study's dictionaries, at all of its sites, by their folder."""
    entries = [entry for one in (study, *study.beside) for entry in one.entries]
    return {entry.name: _fingerprint(entry.trained.folder) for entry in entries}


def _fingerprint(folder: Path) -> str:
    return files.fingerprint(files.sha256_file(folder / WEIGHTS))


def write(tables: Tables, folder: Path) -> None:
    """Write the tables to FOLDER in the analysis' folder; pairs only if they were measured."""
    about = json.dumps(asdict(tables.about)).encode()
    for name in COLUMNS:
        frame = getattr(tables, name)
        if len(frame.columns):
            table = pa.Table.from_pandas(frame, preserve_index=False)
            table = table.replace_schema_metadata({ABOUT: about})
            with files.replacing(folder / FOLDER / f"{name}.parquet") as temporary:
                pq.write_table(table, temporary)


def read(folder: Path) -> Tables:
    """The tables in the analysis' folder; pairs empty if there are none."""
    frames, abouts = {}, []
    for name in COLUMNS:
        path = folder / FOLDER / f"{name}.parquet"
        if name == "pairs" and not path.exists():
            continue
        try:
            with untrusted.opened(path) as file:
                table = pq.read_table(file)
            about = About(**json.loads(table.schema.metadata[ABOUT]))
            frames[name] = table.to_pandas(ignore_metadata=True)
        except (pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is damaged: {type(error).__name__}") from None
        if missing := [c.name for c in COLUMNS[name] if not c.by and c.name not in frames[name]]:
            raise UserError(f"{path} lacks the column {missing[0]}")
        abouts.append(about)
    if any(about != abouts[0] for about in abouts):
        raise UserError(f"the tables in {folder / FOLDER} are of different analyses")
    return Tables(abouts[0], **frames)


def _current(tables: Tables, sae_dir: Path) -> None:
    """See that the tables are of the dictionaries as they are now."""
    done = {str(path.relative_to(sae_dir)): path for path in studies.finished(sae_dir)}
    known, left_out = tables.about.weights, {*tables.about.left_out}
    changed = [
        name for name in known if name not in done or known[name] != _fingerprint(done[name])
    ]
    if changed := changed + sorted(done.keys() - known.keys() - left_out):
        raise UserError(f"the tables are of other dictionaries: {changed[0]} has changed since")


def open_study(folder: str | Path) -> Tables:
    """A study's dictionaries, features and pairs.

    They are read from the tables that `analyze.py` wrote, if these are there and of the
    dictionaries as they are now; else measured, with the settings of ``conf/analyze.yaml``, and a
    line of the log says why. Nothing is written.

    Args:
        folder: the study's, such as ``outputs/demo``.
    """
    home = Path(folder)
    sae_dir = home / "sae"
    studies.finished(sae_dir)
    if (home / "analysis" / FOLDER).is_dir():
        try:
            found = read(home / "analysis")
            _current(found, sae_dir)
        except UserError as error:
            log.warning("%s: measuring anew", error)
        else:
            if len(found.pairs.columns):
                return found
            log.info("%s holds no pairs: measuring them", home / "analysis" / FOLDER)
    settings = STANDARD_COMPARISON
    loaded = studies.load(sae_dir, settings.features, settings.site)
    comparisons = [Comparison(one, settings) for one in (loaded, *loaded.beside)]
    pairs = matched_pairs((loaded, *loaded.beside), settings.match_limit)
    return measure(comparisons, home.resolve().name, pairs, fingerprints(loaded))
