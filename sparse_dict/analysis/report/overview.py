"""What was trained on what, and what had to be left out."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sparse_dict.analysis.report import provenance
from sparse_dict.analysis.report.page import Code, Notes, Section, Table
from sparse_dict.analysis.study import LABELS, Entry, Study, number
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import AnalyzeConfig


def section(study: Study, config: AnalyzeConfig, tables: Tables) -> Section:
    """What was trained on what, from the records of all stages."""
    first = study.entries[0]
    sizes = [str(size) for size in sorted({e.size for e in study.entries})]
    levels = {axis: sorted({e.level for e in study.entries if e.axis == axis}) for axis in LABELS}
    swept = "; ".join(
        f"{LABELS[axis]} {_listed([number(v) for v in values])}"
        for axis, values in levels.items()
        if values
    )
    seeds = [str(seed) for seed in sorted({e.seed for e in study.entries})]
    counts = sorted({int(e.metrics.get("n_activations", 0)) for e in study.entries})
    rows = [f"{n:,}" for n in counts]
    batches = [f"{n:,}" for n in sorted({_batch(e) or 0 for e in study.entries} - {0})]
    batched = f" in batches of {_listed(batches)}" if batches else ""
    fingerprint = (first.metrics.get("fingerprints") or {}).get("activations", "unknown")
    kinds = [family for family in study.families if family]
    text = (
        f"The study {config.name} holds {len(study.entries)} dictionaries with "
        f"{_listed(sizes)} features, {swept} and seed {_listed(seeds)}"
    )
    text += f", of {len(kinds)} kinds: {'; '.join(kinds)}. " if len(kinds) > 1 else ". "
    text += (
        f"Each saw {_listed(rows)} activations{batched} (fingerprint "
        f"{fingerprint}), and was evaluated on {first.metrics['eval_rows']:,} others of the same "
        "harvest, on which a feature that was never active counts as dead."
    )
    frame = dictionaries(tables)
    if {e.axis for e in study.entries} == {"l1"}:
        frame = frame.drop(columns=["axis", "level"])
    table = Table("All dictionaries", frame, fold=len(study.entries) > 12)
    return Section("What was trained", [text, provenance.paragraph(config, study), table])


def _batch(entry: Entry) -> int | None:
    """Activations in a training batch, where its config has that."""
    training = entry.metrics["config"].get("training")
    value = training.get("batch_size") if isinstance(training, Mapping) else None
    return value if type(value) is int else None


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


COLUMNS = (
    "dictionary family dict_size l1 axis level seed tied activation l1_scaling fvu mse l0 l1_norm "
    "dead effective_neurons n_activations eval_rows seconds"
)


def dictionaries(tables: Tables) -> pd.DataFrame:
    """Settings and final metrics of the site that is shown, `dead` a number of features."""
    known = tables.dictionaries
    here = known[known["site"] == tables.about.site].rename(columns={"size": "dict_size"})
    counts = {"dead": (here["dead"] * here["dict_size"]).round().astype(int)}
    counts |= {key: here[key].astype("Int64") for key in ("n_activations", "eval_rows")}
    return here.assign(**counts)[COLUMNS.split()]


def left_out(study: Study) -> Section | None:
    """The folders that could not be used; None if all could."""
    if not study.left_out:
        return None
    return Section(
        "Left out",
        [
            "These folders are not part of the analysis.",
            Notes([f"{item.name}: {item.reason}" for item in study.left_out]),
        ],
    )


def configs(study: Study, config: dict[str, Any]) -> Section:
    """The resolved configs: this stage's, and the main settings of each family of dictionaries."""
    section = Section("Configs", ["The resolved configs that made this report."])
    section.blocks.append(Code("analyze", json.dumps(config, indent=2, default=str)))
    for family in study.families:
        first = next(e for e in study.entries if e.family == family)
        label = f"train_sae, {first.name}" + (f" ({family})" if family else "")
        text = json.dumps(first.metrics["config"], indent=2, default=str)
        section.blocks.append(Code(label, text))
    return section
