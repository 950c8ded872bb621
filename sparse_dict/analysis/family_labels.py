"""Which dictionaries belong together: families, what is swept in them, and what they are called."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from sparse_dict.config.identity import NEUTRAL, SOURCES
from sparse_dict.sae import interventions
from sparse_dict.sae.architectures import Architecture, known

# Two dictionaries belong to the same family if their configs agree in everything but these and the
# axis of their family: the setting that is swept to make them sparse.
INCIDENTAL = {*NEUTRAL, *SOURCES, "training.snapshots", "sae.dict_size", "seed"}
NAMED = ("tied", "l1_scaling", "activation")  # settings that the metrics repeat
POST = {  # the settings of the post's dictionaries that define families
    "activation": "relu", "tied": False, "l1_scaling": "none", "strategy": "plain",
    "init": "independent", "dead": "none", "guide": "none", "encoder_norm": False,
}  # fmt: skip

Characters = Mapping[str, Mapping[str, str]]  # of each dictionary, by its name


def oddity(metrics: Mapping[str, Any]) -> int:
    """In how many of the settings that define families a dictionary differs from the post's."""
    sae, activations = (metrics["config"].get(key) or {} for key in ("sae", "activations"))
    odd = sum(sae.get(key, usual) != usual for key, usual in POST.items())
    return odd + (activations.get("centering", "none") != "none")


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


def axes_of(characters: Characters) -> dict[str, str]:
    """What is swept in each dictionary's family: of `_sparsity` the first setting with two values.

    Where none has two, it is the one meant for the kind.
    """
    alike = defaultdict(list)  # the names of those that agree in all else
    for name, character in characters.items():
        keys = tuple(_sparsity(character))
        alike[keys, frozenset((k, v) for k, v in character.items() if k not in keys)].append(name)
    return {
        name: next((k for k in keys if len({characters[n][k] for n in names}) > 1), keys[0])
        for (keys, _), names in alike.items()
        for name in names
    }


def _sparsity(character: Mapping[str, str]) -> list[str]:
    """The settings that make a dictionary of this kind sparse, of those recorded: its own first."""
    kind = known().get(character["sae.activation"], Architecture)
    keys = dict.fromkeys((kind.axis.key, "l1"))
    return [f"sae.{key}" for key in keys if f"sae.{key}" in character]


def labels_of(characters: Characters, axes: Mapping[str, str]) -> dict[str, str]:
    """A short label a dictionary: the settings in which the study's families differ.

    What is swept within a family is no part of its label, nor is a key that only some kinds have
    and that has one value in each of these.
    """

    def differs(key: str) -> bool:
        there = [c for name, c in characters.items() if key != axes[name]]
        values = {c.get(key) for c in there}
        by_kind = {(c["sae.activation"], c.get(key)) for c in there}
        implied = None in values and len(by_kind) == len({kind for kind, _ in by_kind})
        return len(values) > 1 and not implied

    differing = [key for key in sorted({k for c in characters.values() for k in c}) if differs(key)]
    return {
        name: ", ".join(
            f"{key.rpartition('.')[2]}={c[key]}"
            for key in differing
            if key in c and key != axes[name]
        )
        for name, c in characters.items()
    }
