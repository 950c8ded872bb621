"""Find and load the dictionaries of a study, and sort them into chains of sizes."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from sparse_dict.config.identity import NEUTRAL, SOURCES
from sparse_dict.config.sites import SITES
from sparse_dict.errors import UserError, printable
from sparse_dict.sae import interventions
from sparse_dict.sae.architectures import Architecture, axes, known
from sparse_dict.storage import files
from sparse_dict.storage.records import a_line_of_text, a_line_without_a_formula

if TYPE_CHECKING:
    from sparse_dict.sae.folder import Trained

PLAIN = "plain"  # what the plain kind is called, if it is one of several of an architecture
ARCHITECTURES = {
    "relu": "ReLU", "topk": "TopK", "batch_topk": "BatchTopK", "jumprelu": "JumpReLU",
    "crosscoder": "L1 crosscoder", "batch_topk_crosscoder": "BatchTopK crosscoder",
}  # fmt: skip
ALL_SITES = "all sites"  # what a dictionary of all columns is called where others see one site
LABELS = {key: axis.short for key, axis in axes().items()}
NAMES = {key: axis.long for key, axis in axes().items()}
# Two dictionaries belong to the same family if their configs agree in everything but these and the
# axis of their family: the setting that is swept to make them sparse.
Places = tuple[str | None, str | None]  # the site that is read, and a transcoder's target
INCIDENTAL = {*NEUTRAL, *SOURCES, "training.snapshots", "sae.dict_size", "seed"}


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
            "axis": self.axis,
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
        counts = Counter(entry.family for entry in self.entries)
        oddity = self._oddities
        return tuple(sorted(counts, key=lambda name: (-counts[name], oddity[name], name)))

    @property
    def plain(self) -> str:
        """The family nearest to the post's dictionaries."""
        return min(self.families, key=self._oddities.__getitem__)

    @property
    def _oddities(self) -> dict[str, int]:
        return {entry.family: _oddity(entry.metrics) for entry in self.entries}


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
    for entry in study.entries:
        groups[entry.family, entry.level, entry.size].append(entry)
    return [sorted(g, key=lambda e: e.seed) for g in groups.values() if len(g) > 1]


def kinds(study: Study) -> dict[str, str]:
    """A legible name for each family.

    Its architecture where that says it all, else the settings in which it is not the plain kind.
    """
    firsts = {e.family: e for e in reversed(study.entries)}
    short = {family: _architecture(entry) for family, entry in firsts.items()}
    if len(set(short.values())) == len(short):
        return short
    usual = study.plain.split(", ")
    own = {f: [part for part in f.split(", ") if part not in usual] for f in study.families}
    return {family: ", ".join(parts) or PLAIN for family, parts in own.items()}


def _architecture(entry: Entry) -> str:
    activation = str(entry.metrics.get("activation"))
    name = ARCHITECTURES.get(activation, activation)
    return f"{name}, tied" if entry.metrics.get("tied") else name


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


def _oddity(metrics: Mapping[str, Any]) -> int:
    """In how many of the settings that define families a dictionary differs from the post's."""
    sae, activations = (metrics["config"].get(key) or {} for key in ("sae", "activations"))
    post = {"activation": "relu", "tied": False, "l1_scaling": "none", "strategy": "plain"}
    post |= {"init": "independent", "dead": "none", "guide": "none", "encoder_norm": False}
    odd = sum(sae.get(key, usual) != usual for key, usual in post.items())
    return odd + (activations.get("centering", "none") != "none")


def finished(folder: Path) -> list[Path]:
    """Folders with a `metrics.json`: `folder` itself, its children and theirs, sorted."""
    if not folder.is_dir():
        raise UserError(f"sae_dir {folder} is not a folder: train dictionaries first, or set it")
    found = sorted(
        path.parent
        for pattern in ("metrics.json", "*/metrics.json", "*/*/metrics.json")
        for path in folder.glob(pattern)
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise UserError(f"{folder} holds no finished dictionary (none has a metrics.json)")
    return found


def unfinished(folder: Path, done: list[Path]) -> list[Path]:
    """Folders that look like a dictionary's (Hydra's config or weights) without `metrics.json`."""
    marks, known = (".hydra", "sae_weights.safetensors", "checkpoint.safetensors"), {*done}
    return sorted(
        path
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path not in known and path.is_dir()
        if any(os.path.exists(path / mark) for mark in marks)  # noqa: PTH110  # of mode 000: no
    )


NAMED = ("tied", "l1_scaling", "activation")  # settings that the metrics repeat


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if f"{prefix}{key}" in INCIDENTAL:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:  # which older records lack
            yield f"{prefix}{key}", value


def character(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What must agree within a family, and what may be swept in it, flattened; values as text.

    Sizes, seeds and keys that change no result are left out.
    """
    named = {f"sae.{key}": metrics.get(key) for key in NAMED}
    usual = {f"sae.{k}": v for own in interventions.keys().values() for k, v in own.items()}
    every = {**usual, **named, **dict(_flat(metrics["config"])), "sae.l1": metrics["l1"]}
    return {key: str(value) for key, value in every.items()}


def _axes(characters: dict[str, dict[str, str]]) -> dict[str, str]:
    """What is swept in each dictionary's family: of `_sparsity` the first setting with two values.

    Where none has two, it is the one meant for the kind.
    """
    values: dict[tuple[tuple[str, str], ...], dict[str, set[str]]] = {}
    sparsity = {name: _sparsity(character) for name, character in characters.items()}
    kinds = {
        name: tuple(sorted((k, v) for k, v in c.items() if k not in sparsity[name]))
        for name, c in characters.items()
    }
    for name, kind in kinds.items():
        for key in sparsity[name]:
            found = values.setdefault(kind, {}).setdefault(key, set())
            found.add(characters[name][key])
    return {
        name: next((k for k in sparsity[name] if len(values[kind][k]) > 1), sparsity[name][0])
        for name, kind in kinds.items()
    }


def _sparsity(character: Mapping[str, str]) -> list[str]:
    """The settings that make a dictionary of this kind sparse, of those recorded: its own first."""
    kind = known().get(character["sae.activation"], Architecture)
    keys = dict.fromkeys((kind.axis.key, "l1"))
    return [f"sae.{key}" for key in keys if f"sae.{key}" in character]


def _labels(characters: dict[str, dict[str, str]], axes: dict[str, str]) -> dict[str, str]:
    """A short label a dictionary: the settings in which the study's families differ.

    What is swept within a family is no part of its label, nor is a key that only some kinds have
    and that has one value in each of these.
    """
    fixed = {
        name: {key: value for key, value in c.items() if key != axes[name]}
        for name, c in characters.items()
    }
    keys = sorted({key for character in characters.values() for key in character})

    def differs(key: str) -> bool:
        there = [c for name, c in fixed.items() if key != axes[name]]
        values = {c.get(key) for c in there}
        by_kind = {(c["sae.activation"], c.get(key)) for c in there}
        implied = None in values and len(by_kind) == len({kind for kind, _ in by_kind})
        return len(values) > 1 and not implied

    differing = [key for key in keys if differs(key)]
    return {
        name: ", ".join(f"{key.rpartition('.')[2]}={c[key]}" for key in differing if key in c)
        for name, c in fixed.items()
    }


def _origin(trained: "Trained") -> tuple[str, int]:
    fingerprints = trained.metrics.get("fingerprints") or {}
    return str(fingerprints.get("activations", "unknown")), len(trained.dictionary.W_enc)


def _wrong(name: str, metrics: Mapping[str, Any]) -> str | None:
    """What keeps a readable dictionary out of the analysis, if anything."""
    if not a_line_of_text(name):
        return "its folder's name cannot be printed"
    for key, value in character(metrics).items():
        if not a_line_without_a_formula(value):
            return f"metrics.json: {key} is {value!r}"
    return None


def load(folder: Path, features: str = "all", site: str | None = None) -> Study:
    """Read every dictionary below `folder`; broken, unfinished and foreign ones are left out.

    So are those without an active feature where only features that are ``alive`` count.

    Dictionaries can only be compared on the same activations: where fingerprints or widths differ,
    the largest group is kept and the others are left out by name, as are repetitions. Those of
    different sites of one harvest are studies of their own: `site` (`Study.at`) says which is
    returned, with the others `beside` it; without it the one with most dictionaries, and among
    equals the first in a row.
    """
    from sparse_dict.sae.folder import read

    paths = finished(folder)
    left_out = [
        LeftOut(printable(_name(path, folder)), "not finished: it has no metrics.json")
        for path in unfinished(folder, paths)
    ]
    found: dict[str, Trained] = {}
    for path in paths:
        try:
            trained = read(path)
            wrong = _wrong(_name(path, folder), trained.metrics)
            if wrong is None and features == "alive" and not trained.fire_count.any():
                wrong = "none of its features is active, and comparison.features=alive"
        except UserError as error:
            wrong = str(error)
        if wrong is None:
            found[_name(path, folder)] = trained
        else:
            left_out.append(LeftOut(printable(_name(path, folder)), wrong))
    if not found:
        raise UserError(f"no dictionary in {folder} can be used; the first: {left_out[0].reason}")

    origins = {name: _origin(trained) for name, trained in found.items()}
    kept, _ = Counter(fingerprint for fingerprint, _ in origins.values()).most_common(1)[0]
    widths: dict[Places, Counter[int]] = defaultdict(Counter)
    for name, (fingerprint, d_in) in origins.items():
        if fingerprint == kept:
            widths[_places(found[name].metrics)][d_in] += 1
    by_place: dict[Places, dict[str, Trained]] = defaultdict(dict)
    for name, (fingerprint, d_in) in origins.items():
        place = _places(found[name].metrics)
        if fingerprint == kept and d_in == widths[place].most_common(1)[0][0]:
            by_place[place][name] = found[name]
        else:
            left_out.append(
                LeftOut(name, f"trained on other activations ({fingerprint}, {d_in} wide)")
            )
    studies = {_at(place): _study(folder, by_place[place]) for place in sorted(by_place, key=_rank)}
    if site is not None and site not in studies:
        there = ", ".join(studies)
        raise UserError(f"comparison.site={site}: {folder} holds dictionaries of {there}")
    chosen = studies.pop(site or max(studies, key=lambda at: len(studies[at].entries)))
    left_out += [item for one in (chosen, *studies.values()) for item in one.left_out]
    return replace(chosen, left_out=tuple(left_out), beside=tuple(studies.values()))


def load_study(folder: str | Path) -> Study:
    """The dictionaries of a study, or of a folder of them, with those of other sites `beside`.

    Args:
        folder: the study's, such as ``outputs/demo``, or what holds dictionaries.
    """
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
    """Dictionaries of one site, sorted; repetitions are left out."""
    left_out = []
    characters = {name: character(trained.metrics) for name, trained in found.items()}
    axes = _axes(characters)
    labels = _labels(characters, axes)
    seen: dict[tuple[str, float, int, int], str] = {}
    entries = []
    for name, trained in found.items():
        metrics = trained.metrics
        size, seed = len(trained.fire_count), int(metrics["seed"])
        axis, level = axes[name].removeprefix("sae."), float(characters[name][axes[name]])
        first = seen.setdefault((labels[name], level, seed, size), name)
        if first != name:
            left_out.append(LeftOut(name, f"the same settings as {first}"))
        else:
            entries.append(Entry(name, labels[name], size, axis, level, seed, trained))
    entries.sort(key=lambda e: (e.family, e.level, e.seed, e.size))
    return Study(folder, tuple(entries), tuple(left_out), _chains(entries))


def _name(path: Path, folder: Path) -> str:
    return path.name if path == folder else str(path.relative_to(folder))


def _chains(entries: list[Entry]) -> tuple[Chain, ...]:
    groups: dict[tuple[str, str, float, int], list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.family, entry.axis, entry.level, entry.seed].append(entry)
    return tuple(Chain(*key, tuple(group)) for key, group in groups.items())
