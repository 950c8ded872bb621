"""The name of a dictionary's run, such as ``512 · L1 2.56 · seed 0``, and its final metrics."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sparse_dict.config.identity import SOURCES
from sparse_dict.sae.architectures import Architecture, axes, known

# What stands before the value of a key, by the key's last part, in the order of a name.
WORDS = {"dict_size": "", "sae": "", "site": "", "target": "to "}
WORDS |= {key: f"{axis.short} " for key, axis in axes().items()}
LAST = "seed"


def labels(jobs: Sequence[Iterable[str]]) -> list[str | None]:
    """For each job, given as overrides ``key=value``, those that differ between the jobs."""
    split = [dict(o.lstrip("+").split("=", 1) for o in job if "=" in o) for job in jobs]
    keys = dict.fromkeys(key for job in split for key in job)
    varied = [key for key in keys if len({job.get(key) for job in split}) > 1]
    if {*SOURCES} & {*varied}:
        return [None] * len(split)  # what they give other keys is in the name that is not set
    return [_joined({key: job[key] for key in varied if key in job}) for job in split]


def run_name(config: Mapping[str, Any]) -> str:
    """The name of a dictionary's run, from its config as it is recorded."""
    if label := (config.get("tracking") or {}).get("label"):
        return str(label)
    sae = config["sae"]
    axis = known().get(sae["activation"], Architecture).axis.key
    places = {key: sae[key] for key in ("site", "target") if sae.get(key)}
    named = {"dict_size": sae["dict_size"], axis: sae[axis], LAST: config["seed"]}
    return str(_joined(named | places))


def end_values(metrics: Mapping[str, Any]) -> dict[str, int | float]:
    """The numbers among a dictionary's metrics."""
    return {key: value for key, value in metrics.items() if isinstance(value, int | float)}


def _joined(values: Mapping[str, Any]) -> str | None:
    order = [*WORDS, "", LAST]
    parts = []
    for key, value in values.items():
        name = key.rpartition(".")[2]
        text = f"{WORDS.get(name, f'{name} ')}{_short(value)}"
        parts.append((order.index(name if name in order else ""), text))
    return " · ".join(text for _, text in sorted(parts, key=lambda part: part[0])) or None


def _short(value: Any) -> str:
    try:
        return f"{float(value):.6g}"
    except ValueError:
        return str(value)
