"""Whether trained dictionaries are of any use, and what to change if not."""

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_dict.sae.architectures import Architecture, known

Metrics = Mapping[str, Any]  # a dictionary's metrics.json

# A sparser dictionary is preferred as long as it explains this share of what the best one does.
ENOUGH = 0.8
# Best of those with at most this share of features active: nearly the identity explains all.
SPARSE = 0.25


def useless(m: Metrics) -> bool:
    """Whether it explains nothing, or has less than one feature active on a row."""
    return bool(m["fvu"] >= 1 or m["l0"] < 1)


def mostly_dead(m: Metrics) -> bool:
    """Whether no evaluation row activates more than half of its features."""
    return bool(m["dead"] > m["dict_size"] / 2)


def recommended(rungs: Sequence[Metrics]) -> Metrics | None:
    """The sparsest that explains nearly as much as any does; None if all are of no use.

    Each is a dictionary's `fvu`, `l0`, `dead` and `dict_size`, or means over equally sparse ones.
    """
    living = [m for m in rungs if not useless(m) and not mostly_dead(m)]
    living = [m for m in living if m["l0"] <= SPARSE * m["dict_size"]] or living
    best = max((1 - m["fvu"] for m in living), default=0.0)
    good = [m for m in living if 1 - m["fvu"] >= ENOUGH * best]
    return min(good, key=lambda m: m["l0"], default=None)


def axis(m: Metrics) -> str:
    """What makes its kind sparse: l1, k or l0."""
    return known().get(m["activation"], Architecture).axis.key


def warning(found: Sequence[Metrics]) -> str | None:
    """One line on those that are of no use, and what to change; None if all are well."""
    bad = [m for m in found if useless(m) or mostly_dead(m)]
    if not bad:
        return None
    counts = {
        "with an FVU of 1 or more, which explain nothing": sum(m["fvu"] >= 1 for m in bad),
        "with an L0 below 1": sum(m["l0"] < 1 for m in bad),
        "with more than half of their features dead": sum(map(mostly_dead, bad)),
    }
    found_bad = ", ".join(f"{n} {what}" for what, n in counts.items() if n)
    advice = []
    for key in sorted({axis(m) for m in bad if m["l0"] < 1} - {"k"}):
        advice.append(f"lower sae.{key} (experiment=probe shows how far)")
    if any(mostly_dead(m) and m["l0"] >= 1 for m in bad):
        centred = all(m["config"]["activations"].get("centering") == "mean" for m in bad)
        centering = "" if centred else "activations.centering=mean, "
        advice.append(f"try {centering}sae.init=aligned or fewer features")
    if any(m["fvu"] >= 1 and m["l0"] >= 1 for m in bad):
        advice.append("raise training.n_activations")
    return f"of {len(found)} dictionaries, {found_bad}: {'; '.join(advice)}"
