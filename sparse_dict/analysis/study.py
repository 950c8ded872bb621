"""Find and load the dictionaries of a study, and sort them into chains of sizes."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.family_labels import axes_of, character, labels_of, oddity
from sparse_dict.config.sites import SITES
from sparse_dict.errors import UserError, printable
from sparse_dict.sae.architectures import axes
from sparse_dict.storage import files
from sparse_dict.storage.records import a_line_of_text, a_line_without_a_formula

if TYPE_CHECKING:
    import pandas as pd

    from sparse_dict.sae.folder import Trained

PLAIN = "plain"  # what the plain kind is called, if it is one of several of an architecture
ARCHITECTURES = {
    "relu": "ReLU", "topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU",
    "crosscoder": "L1 crosscoder", "batch_topk_crosscoder": "BatchTopK crosscoder",
}  # fmt: skip
MARKS = (".hydra", "sae_weights.safetensors", "checkpoint.safetensors")  # of a dictionary begun
ALL_SITES = "all sites"  # what a dictionary of all columns is called where others see one site
LABELS = {key: axis.short for key, axis in axes().items()}
NAMES = {key: axis.long for key, axis in axes().items()}
Places = tuple[str | None, str | None]  # the site that is read, and a transcoder's target


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not part of the analysis, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Entry:
    """One dictionary of the study."""

    name: str  # its folder, relative to the study's sae folder
    family: str  # what it shares with dictionaries that differ only in size, level and seed
    size: int
    axis: str  # what is swept in its family: l1, k or l0
    level: float  # its value there
    seed: int
    trained: "Trained"

    @property
    def metrics(self) -> dict[str, Any]:
        """The dictionary's final metrics, config and fingerprints."""
        return cast(dict[str, Any], self.trained.metrics)

    @property
    def identity(self) -> dict[str, Any]:
        """The first columns of every table that has one row per dictionary."""
        return {
            "dictionary": self.name,
            "family": self.family,
            "dict_size": self.size,
            "l1": self.l1,
            "level": self.level,
            "seed": self.seed,
        }

    @property
    def transcodes(self) -> bool:
        """Whether it reconstructs another site than it reads."""
        return _places(self.metrics)[1] is not None

    @property
    def l1(self) -> float:
        """Its L1 coefficient, whatever is swept."""
        return float(self.metrics["l1"])

    @property
    def setting(self) -> str:
        """What makes it sparse, as text: L1 0.03, or k 8."""
        return setting(self.axis, self.level)

    @property
    def encoder(self) -> NDArray[np.float32]:
        """A row of encoder weights for each feature, shape (size, d_in)."""
        return self.trained.dictionary.W_enc.T

    @property
    def decoder(self) -> NDArray[np.float32]:
        """A row of decoder weights for each feature, shape (size, d_in)."""
        return self.trained.dictionary.W_dec

    @property
    def frequency(self) -> NDArray[np.float64]:
        """Share of evaluation rows on which each feature is active, shape (size,)."""
        return self.trained.fire_count / max(int(self.metrics["eval_rows"]), 1)

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """Which features were active at least once on the evaluation rows, shape (size,)."""
        return self.trained.fire_count > 0

    def features(self, **columns: Any) -> "pd.DataFrame":
        """Columns of the table of features, with their keys."""
        import pandas as pd

        return pd.DataFrame({"dictionary": self.name, "feature": range(self.size), **columns})


@dataclass(frozen=True)
class Chain:
    """Dictionaries that differ in size alone, smallest first."""

    family: str
    axis: str
    level: float
    seed: int
    entries: tuple[Entry, ...]

    @property
    def setting(self) -> str:
        """What makes them sparse, as text."""
        return setting(self.axis, self.level)


@dataclass(frozen=True)
class Study:
    """All dictionaries that can be compared, and what had to be left out."""

    folder: Path
    entries: tuple[Entry, ...]
    left_out: tuple[LeftOut, ...]
    chains: tuple[Chain, ...]
    # The studies of other sites of the same harvest, in the order of their columns in a row
    beside: tuple["Study", ...] = ()

    @property
    def d_in(self) -> int:
        """Width of decoder rows: of the activations, or of a transcoder's target."""
        return int(self.entries[0].decoder.shape[1])

    @property
    def site(self) -> str | None:
        """The site whose columns are read; None: all columns."""
        return _places(self.entries[0].metrics)[0]

    @property
    def target(self) -> str | None:
        """The site that transcoders reconstruct; None: what is read."""
        return _places(self.entries[0].metrics)[1]

    @property
    def at(self) -> str:
        """What distinguishes it from those of other sites: a site, or `A to B` of transcoders."""
        return _at((self.site, self.target))

    @property
    def families(self) -> tuple[str, ...]:
        """Labels of the families: most dictionaries first, then those nearest to the post's."""
        counts, odd = Counter(entry.family for entry in self.entries), self._oddities
        return tuple(sorted(counts, key=lambda name: (-counts[name], odd[name], name)))

    @property
    def plain(self) -> str:
        """The family nearest to the post's dictionaries."""
        return min(self.families, key=self._oddities.__getitem__)

    @property
    def _oddities(self) -> dict[str, int]:
        return {entry.family: oddity(entry.metrics) for entry in self.entries}


def _places(metrics: Mapping[str, Any]) -> Places:
    """Which site a dictionary reads and which it reconstructs, as far as its config says."""
    sae = metrics["config"].get("sae")
    found = (sae.get(key) if isinstance(sae, Mapping) else None for key in ("site", "target"))
    site, target = (str(value) if value is not None else None for value in found)
    return site, target


def _at(places: Places) -> str:
    site, target = places
    return (site or ALL_SITES) + (f" to {target}" if target else "")


def number(value: float) -> str:
    """A coefficient with three significant digits, or a number of features."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def setting(axis: str, level: float) -> str:
    """A value of what is swept, with its name."""
    return f"{LABELS[axis]} {number(level)}"


def seed_groups(study: Study) -> list[list[Entry]]:
    """Dictionaries that are equal in everything but the seed, two or more, by rising seed."""
    groups: dict[tuple[str, float, int], list[Entry]] = defaultdict(list)
    for entry in study.entries:  # which are sorted
        groups[entry.family, entry.level, entry.size].append(entry)
    return [group for group in groups.values() if len(group) > 1]


def kinds(study: Study) -> dict[str, str]:
    """A legible name for each family.

    Its architecture where that says it all, else the settings in which it is not the plain kind.
    """
    short: dict[str, str] = {}
    for entry in study.entries:
        activation = str(entry.metrics.get("activation"))
        tied = ", tied" if entry.metrics.get("tied") else ""
        short.setdefault(entry.family, ARCHITECTURES.get(activation, activation) + tied)
    if len(set(short.values())) == len(short):
        return short
    usual = study.plain.split(", ")
    own = {f: [part for part in f.split(", ") if part not in usual] for f in study.families}
    return {family: ", ".join(parts) or PLAIN for family, parts in own.items()}


def kin(entry: Entry) -> str:
    """A label that is the same for dictionaries which differ in size, seed and rows alone."""
    settings = character(entry.metrics)
    for key in ("training.rows", "training.rows_seed"):
        settings.pop(key, None)
    return files.fingerprint(settings)


def rows(entry: Entry) -> tuple[str, int]:
    """Which rows a dictionary was trained on: `training.rows` and `training.rows_seed`."""
    training = entry.metrics["config"].get("training") or {}
    return training.get("rows", "all"), training.get("rows_seed", 0)


def fault(entry: Entry) -> str | None:
    """Why a dictionary explains nothing; None if it explains something."""
    if not entry.alive.any():
        return "dead"
    if entry.metrics["fvu"] >= 1:
        return "with an FVU of 1 or more"
    if entry.size > 1 and np.ptp(entry.decoder, axis=0).max() < 1e-6:
        return "whose features are all the same"
    return None


def folders(top: Path) -> tuple[list[Path], list[Path]]:
    """Folders of dictionaries: `top` itself, its children and theirs, sorted.

    First those that are finished, which have a `metrics.json`, then those that have Hydra's config
    or weights without it.
    """
    below = _below(top)
    places = [top, *below, *(place for folder in below for place in _below(folder))]
    done = {place for place in places if os.path.lexists(place / "metrics.json")}
    begun = {p for p in places[1:] if any(os.path.lexists(p / mark) for mark in MARKS)}
    return sorted(done), sorted(begun - done)


def _below(folder: Path) -> list[Path]:
    """The folders in a folder, but for hidden ones; none where it cannot be read."""
    with suppress(OSError):
        return [p for p in folder.iterdir() if not p.name.startswith(".") and p.is_dir()]
    return []


def finished(folder: Path) -> list[Path]:
    """Folders of finished dictionaries, of which there are some."""
    if not folder.is_dir():
        raise UserError(f"sae_dir {folder} is not a folder: train dictionaries first, or set it")
    if not (found := folders(folder)[0]):
        raise UserError(f"{folder} holds no finished dictionary (none has a metrics.json)")
    return found


def load(folder: Path, features: str = "all", site: str | None = None) -> Study:
    """Read every dictionary below `folder`; broken, unfinished and foreign ones are left out.

    So are those without an active feature where only features that are ``alive`` count.

    Dictionaries can only be compared on the same activations: where fingerprints or widths differ,
    the largest group is kept and the others are left out by name, as are repetitions. Those of
    different sites of one harvest are studies of their own: `site` (`Study.at`) says which is
    returned, with the others `beside` it; without it the one with most dictionaries, and among
    equals the first in a row.
    """
    paths = finished(folder)
    why = "not finished: it has no metrics.json"
    left_out = [LeftOut(printable(_name(p, folder)), why) for p in folders(folder)[1]]
    found: dict[str, Trained] = {}
    for name, path in ((_name(path, folder), path) for path in paths):
        try:
            found[name] = _usable(name, path, features)
        except UserError as error:
            left_out.append(LeftOut(printable(name), str(error)))
    if not found:
        raise UserError(f"no dictionary in {folder} can be used; the first: {left_out[0].reason}")

    origins = {
        name: (
            str((trained.metrics.get("fingerprints") or {}).get("activations", "unknown")),
            len(trained.dictionary.W_enc),
        )
        for name, trained in found.items()
    }
    kept, _ = Counter(fingerprint for fingerprint, _ in origins.values()).most_common(1)[0]
    by_place: dict[Places, dict[str, Trained]] = defaultdict(dict)
    for name, trained in found.items():
        if origins[name][0] == kept:
            by_place[_places(trained.metrics)][name] = trained
    for place, of in by_place.items():
        width, _ = Counter(origins[name][1] for name in of).most_common(1)[0]
        by_place[place] = {name: t for name, t in of.items() if origins[name][1] == width}
    used = {name for of in by_place.values() for name in of}
    left_out += [
        LeftOut(name, f"trained on other activations ({fingerprint}, {d_in} wide)")
        for name, (fingerprint, d_in) in origins.items()
        if name not in used
    ]
    studies = {_at(place): _study(folder, by_place[place]) for place in sorted(by_place, key=_rank)}
    if site is not None and site not in studies:
        raise UserError(
            f"comparison.site={site}: {folder} holds dictionaries of {', '.join(studies)}"
        )
    chosen = studies.pop(site or max(studies, key=lambda at: len(studies[at].entries)))
    left_out += [item for one in (chosen, *studies.values()) for item in one.left_out]
    return replace(chosen, left_out=tuple(left_out), beside=tuple(studies.values()))


def _usable(name: str, path: Path, features: str) -> "Trained":
    """The dictionary in a folder, if tables and figures can show it."""
    from sparse_dict.sae.folder import read

    trained = read(path)
    if not a_line_of_text(name):
        raise UserError("its folder's name cannot be printed")
    for key, value in character(trained.metrics).items():
        if not a_line_without_a_formula(value):
            raise UserError(f"metrics.json: {key} is {value!r}")
    if features == "alive" and not trained.fire_count.any():
        raise UserError("none of its features is active, and comparison.features=alive")
    return trained


def load_study(folder: str | Path) -> Study:
    """The dictionaries of a study, such as ``outputs/demo``, or of what holds dictionaries."""
    home = Path(folder)
    return load(home / "sae" if (home / "sae").is_dir() else home)


def _rank(place: Places) -> tuple[Any, ...]:
    """Sorts sites in the order of a forward pass, then all columns, transcoders last."""
    site, target = place
    layer, _, name = (site or "").rpartition("/")
    number = int(layer) if layer.isdecimal() else 0
    order = list(SITES).index(name) if name in SITES else len(SITES)
    return target is not None, site is None, number, order, site or "", target or ""


def everywhere(study: Study) -> list[Study]:
    """A study and those of other sites of its harvest, in the order of the sites."""
    return sorted((study, *study.beside), key=lambda one: _rank((one.site, one.target)))


def _study(folder: Path, found: Mapping[str, "Trained"]) -> Study:
    characters = {name: character(trained.metrics) for name, trained in found.items()}
    swept = axes_of(characters)
    labels = labels_of(characters, swept)
    left_out, first = [], dict[tuple[str, float, int, int], Entry]()
    for name, trained in found.items():
        size, seed = len(trained.fire_count), int(trained.metrics["seed"])
        axis, level = swept[name].removeprefix("sae."), float(characters[name][swept[name]])
        entry = Entry(name, labels[name], size, axis, level, seed, trained)
        same = first.setdefault((entry.family, level, seed, size), entry)
        if same is not entry:
            left_out.append(LeftOut(name, f"the same settings as {same.name}"))
    entries = sorted(first.values(), key=lambda e: (e.family, e.level, e.seed, e.axis, e.size))
    chains = groupby(entries, key=lambda e: (e.family, e.axis, e.level, e.seed))
    return Study(
        folder, tuple(entries), tuple(left_out), tuple(Chain(*key, tuple(of)) for key, of in chains)
    )


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else str(path.relative_to(folder))
