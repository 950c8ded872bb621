"""A study as it was measured, in three tables: its dictionaries, their features, and pairs.

Figures and claims are made from the tables, which are written before them.
"""

import json
import logging
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sparse_dict.analysis import study as studies
from sparse_dict.analysis.columns import COLUMNS, FOLDER
from sparse_dict.analysis.study import Study
from sparse_dict.config.analysis import STANDARD_COMPARISON
from sparse_dict.errors import UserError
from sparse_dict.sae.folder import WEIGHTS
from sparse_dict.storage import files, untrusted

log = logging.getLogger(__name__)

KEYS = {  # of a row
    "dictionaries": ["dictionary"],
    "features": ["dictionary", "feature"],
    "pairs": ["first", "second", "feature"],
}
OF_FIRST = [  # columns that pairs have of their first dictionary
    "dictionary", "kind", "family", "axis", "level", "size", "seed", "alike", "l0", "fault",
    "strategy", "tied", "activation",
]  # fmt: skip
ABOUT = b"sparse_dict"  # in the files' metadata
SEED, ROWS, BOTH = "seed", "rows", "both"  # in what two dictionaries of a pair differ
MOST_SEEDS = 5  # of each setting that are compared, the lowest ones: ten pairs
RARE = 0.01  # share of random directions above the MCS below which a feature has no analogue
FEWEST_SEEDS = 3  # over which an interval is taken


@dataclass(frozen=True)
class About:
    """What the tables are of, and how it was compared."""

    study: str  # its name
    site: str  # the site that main figures show (`Study.at`)
    family: str  # the family that they show
    plain: str  # the family nearest to the post's dictionaries
    d_in: int  # width of decoder rows at that site
    rule: str  # a sentence on how the level of the main figures was chosen
    given: list[str]  # overrides that all its dictionaries were trained with, for commands
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
        of, where = self.dictionaries, ""
        if (of["fault"] == "").any():
            if of_all or self.main.empty:
                return ""
            of, where = self.level, f" at {self.setting}"
        faults = of.loc[of["fault"] != "", "fault"]
        each = ", ".join(f"{n} {why}" for why, n in faults.value_counts(sort=False).items())
        told = f"{len(faults)} of {len(of)} dictionaries{where} explain nothing ({each})"
        return told if len(faults) else ""

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
    def matched(self) -> pd.DataFrame:
        """The pairs of the main site, with columns of the first one and of its features.

        `l0` is the mean of both; `useless` is whether either explains nothing.
        """
        here = self.dictionaries.loc[self.dictionaries["site"] == self.about.site, OF_FIRST]
        second = here[["dictionary", "seed", "l0", "fault"]].add_prefix("other_")
        features = self.features[["dictionary", "feature", "alive", "frequency"]]
        pairs = self.pairs.reindex(columns=[*COLUMNS["pairs"]]) if self.pairs.empty else self.pairs
        joined = pairs.rename(columns={"first": "dictionary"}).merge(here, on="dictionary")
        joined = joined.merge(second, left_on="second", right_on="other_dictionary")
        joined = joined.merge(features, how="left", on=["dictionary", "feature"])
        useless = (joined["fault"] != "") | (joined["other_fault"] != "")
        return joined.assign(l0=(joined["l0"] + joined["other_l0"]) / 2, useless=useless)

    @cached_property
    def seed_pairs(self) -> pd.DataFrame:
        """Those that differ in the seed alone."""
        return self.matched[self.matched["differ"] == SEED]

    @cached_property
    def main_pairs(self) -> pd.DataFrame:
        """Those, of dictionaries of `level`."""
        return self.seed_pairs[self.seed_pairs["dictionary"].isin(self.level["dictionary"])]

    def joined(self, dictionaries: pd.DataFrame) -> pd.DataFrame:
        """The features of some dictionaries, each with the columns of its dictionary."""
        own = self.features[self.features["dictionary"].isin(dictionaries["dictionary"])]
        return own.merge(dictionaries, on="dictionary")


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
    frames = {}
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
        if missing := [c for c, by in COLUMNS[name].items() if not by and c not in frames[name]]:
            raise UserError(f"{path} lacks the column {missing[0]}")
    return Tables(about, **frames)


def open_study(folder: str | Path) -> Tables:
    """The dictionaries, features and pairs of a study such as ``outputs/demo``.

    They are read from the tables that `analyze.py` wrote, if these are there and of the
    dictionaries as they are now; else measured, with the settings of ``conf/analyze.yaml``, and a
    line of the log says why. Nothing is written.
    """
    from sparse_dict.analysis.comparison import Comparison
    from sparse_dict.analysis.measured.three_tables import measure

    home = Path(folder)
    sae_dir = home / "sae"
    done = {str(path.relative_to(sae_dir)): path for path in studies.finished(sae_dir)}
    if (home / "analysis" / FOLDER).is_dir():
        try:
            found = read(home / "analysis")
            known, left_out = found.about.weights, {*found.about.left_out}
            changed = [n for n in known if n not in done or known[n] != _fingerprint(done[n])]
            if changed := changed + sorted(done.keys() - known.keys() - left_out):
                raise UserError(
                    f"the tables are of other dictionaries: {changed[0]} has changed since"
                )
        except UserError as error:
            log.warning("%s: measuring anew", error)
        else:
            if len(found.pairs.columns):
                return found
            log.info("%s holds no pairs: measuring them", home / "analysis" / FOLDER)
    settings = STANDARD_COMPARISON
    loaded = studies.load(sae_dir, settings.features, settings.site)
    comparisons = [Comparison(one, settings) for one in (loaded, *loaded.beside)]
    return measure(comparisons, home.resolve().name, fingerprints(loaded), with_pairs=True)
