"""What was trained on what, and what had to be left out."""

import json
from typing import Any

import pandas as pd

from sparse_dict.analysis.report import provenance
from sparse_dict.analysis.report.page import Code, Notes, Section, Table
from sparse_dict.analysis.study import Study
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import AnalyzeConfig


def section(study: Study, config: AnalyzeConfig, tables: Tables) -> Section:
    """What was trained on what, from the records of all stages."""
    metrics = study.entries[0].metrics
    fingerprint = (metrics.get("fingerprints") or {}).get("activations", "unknown")
    text = (
        f"Evaluated on {metrics['eval_rows']:,} rows of the harvest (fingerprint {fingerprint}) "
        "that no dictionary was trained on; a feature that is active on none of these counts as "
        "dead."
    )
    if len(study.families) > 1:
        kinds = "; ".join(family or "plain" for family in study.families)
        text = f"{len(study.families)} kinds of dictionaries: {kinds}. {text}"
    frame = dictionaries(tables)
    if {e.axis for e in study.entries} == {"l1"}:
        frame = frame.drop(columns=["axis", "level"])
    table = Table("All dictionaries", frame, fold=len(study.entries) > 12)
    return Section("What was trained", [text, provenance.paragraph(config, study), table])


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
    notes = Notes([f"{item.name}: {item.reason}" for item in study.left_out])
    return Section("Left out", ["These folders are not part of the analysis.", notes])


def configs(study: Study, config: dict[str, Any]) -> Section:
    """The resolved configs: this stage's, and the main settings of each family of dictionaries."""
    shown = {"analyze": config}
    for family in study.families:
        first = next(e for e in study.entries if e.family == family)
        label = f"train_sae, {first.name}" + (f" ({family})" if family else "")
        shown[label] = first.metrics["config"]
    codes = [Code(name, json.dumps(of, indent=2, default=str)) for name, of in shown.items()]
    return Section("Configs", ["The resolved configs that made this report.", *codes])
