"""Which keys decide a result: what is recorded of a config, and whether two records agree.

`NEUTRAL` is the one list of the keys that do not change a result. Records and comparisons of all
stages leave them out, and so do the names of a multirun's folders (`config._job_folder`).
"""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from sparse_dict.config.ranges import Checked
from sparse_dict.config.stages import StudyConfig, TrackingConfig

NEUTRAL = (
    "name",
    "study_dir",
    "lm_dir",
    "activations_dir",
    "sae_dir",
    "analysis_dir",
    "cache_dir",
    "device",
    *(f"tracking.{field.name}" for field in fields(TrackingConfig)),
    "training.log_every",
    "training.checkpoint_every",
)

# Keys that older records, and those of a data set that was not looked up, may lack.
UNKNOWN = ("commit",)

# Sections that only give other keys their values: those keys are recorded in their place.
SOURCES = ("sparsity",)


def record(config: StudyConfig) -> dict[str, Any]:
    """The part of a stage's config that decides its result, as JSON; without empty sections."""
    return _kept(asdict(config), "")


def _kept(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    kept = {}
    for key, value in values.items():
        if prefix + key in (*NEUTRAL, *SOURCES):
            continue
        if isinstance(value, dict):
            value = _kept(value, f"{prefix}{key}.")
            if not value:
                continue
        kept[key] = value
    return kept


def differences(old: Any, new: Any, schema: object = None, key: str = "") -> list[str]:
    """The keys in which two records differ, each as ``KEY is A there, B now``.

    `schema` is the config that `new` was taken from, or None for a record that is no config. With
    it, records of other versions count as the same: a key that the schema does not know is ignored,
    and one that only one of them has counts as its default there.
    """
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        return [] if old == new else [f"{key} is {old!r} there, {new!r} now"]
    known, defaults = _schema_of(schema) if is_dataclass(schema) else ({*old}, {})
    found = []
    for name in [*new, *(name for name in old if name in known and name not in new)]:
        if name in UNKNOWN and not (name in old and name in new):
            continue
        below, usual = f"{key}.{name}" if key else name, defaults.get(name)
        values = old.get(name, usual), new.get(name, usual)
        found += differences(*values, getattr(schema, name, None), below)
    return found


def _schema_of(schema: Any) -> tuple[set[str], dict[str, Any]]:
    own = type(schema)
    root = next((kind for kind in own.__mro__ if Checked in kind.__bases__), own)
    every = [field for kind in _tree(root) for field in fields(kind)]
    # MISSING of OmegaConf ("???") is no value that a complete config has
    defaults = {f.name: f.default for f in every if f.default not in (MISSING, "???")}
    return {field.name for field in every}, defaults


def _tree(kind: Any) -> list[Any]:
    return [kind, *(found for below in kind.__subclasses__() for found in _tree(below))]
