"""What the dictionaries were trained on, in words: the activations, their text and their model.

All of it is read from records that anyone may have written: what finds something else there than
it tells is left out.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_dict.analysis import harvested
from sparse_dict.analysis.study import Study
from sparse_dict.config import AnalyzeConfig
from sparse_dict.errors import MALFORMED, UserError

Record = Mapping[str, Any]

SHAPE = (
    "{config[model][n_layers]:,} layers", "width {config[model][d_model]:,}",
    "MLP of {config[model][d_mlp]:,}", "{config[model][n_heads]:,} heads",
    "contexts of {config[model][n_ctx]:,} tokens", "vocabulary of {n_vocab:,}",
)  # fmt: skip
TOY = "sparse sums of {config[data][n_features]:,} known random directions"
ACTIVE = ", {config[data][n_active]:g} active on average"
CORRELATED = {"True": ", correlated", "False": ", independent of one another"}
SPLITS = {"train": " (the train part)", "validation": " (the validation part)", "all": " (all)"}


def _told(template: str, record: Record, instead: str = "") -> str:
    """A template filled from a record; `instead` where that holds something else."""
    try:
        text = template.format(**record)
    except MALFORMED:
        return instead
    return text if text.isprintable() else instead


def paragraph(config: AnalyzeConfig, study: Study) -> str:
    """What can be said of the activations that a study's dictionaries were trained on."""
    d_in = study.d_in
    try:
        manifest = harvested.manifest_of(config, study)
    except UserError:
        if len(config.activations_dirs) > 1:
            there = " and ".join(map(str, config.activations_dirs))
            return f"The activations are {d_in:,} values of harvests side by side: {there}."
        return (
            f"The activations are rows of {d_in:,} values whose origin is not known here: "
            "arrays made elsewhere, or a harvest that is no longer where it was."
        )
    rms = _told("; their RMS is {rms:.3g}", manifest)
    if manifest.get("site") == "toy":
        rows = _told("; {rows:,} rows", manifest)
        made = _told(TOY, manifest, "sparse sums of known random directions")
        active = _told(ACTIVE, manifest)
        active += CORRELATED.get(_told("{config[data][correlated]}", manifest), "")
        return (
            "The activations are those of a toy and not of a language model: "
            f"{made} in {d_in:,} dimensions{active}{rows}{rms}."
        )
    kept = _told(" {rows:,} of its positions were kept", manifest)
    if skip := _told("{config[harvest][skip_first]:d}", manifest, "0").removeprefix("0"):
        kept += f", the first {skip} of each context left out"
    text = _text(manifest, Path(config.cache_dir))
    where = f"{_place(manifest, study)} in {_model(manifest, config)}"
    return f"The activations are {where}.{text}" + (f"{kept}{rms}." if kept else "")


def subject(config: AnalyzeConfig, study: Study) -> str:
    """The activations in a few words, after their number."""
    try:
        manifest = harvested.manifest_of(config, study)
    except UserError:
        return f"rows of {study.d_in:,} values"
    values = f"({study.d_in:,} values)"
    if study.site is not None:
        return f"activations of {study.at} {values}"
    if manifest.get("site") == "toy":
        return f"rows of a toy {values}"
    layer = _told(", layer {layer:,}", manifest)
    return f"activations of {_told('{site:.120}', manifest, 'several sites')}{layer} {values}"


def _place(manifest: Record, study: Study) -> str:
    sites, d_in = manifest.get("sites"), study.d_in
    if study.site is not None and isinstance(sites, list):
        text = f"values of {study.site}, one of {len(sites)} sites that were harvested together"
        if study.target is None:
            return f"{d_in:,} {text}"
        return f"{text}, from which {d_in:,} of {study.target} are reconstructed,"
    if isinstance(sites, list):
        names = [_told("{site[site]:.120}", {"site": site}) for site in sites]
        listed = ", ".join(filter(None, names))
        return f"{d_in:,} values of {len(sites)} sites side by side ({listed})"
    neurons = manifest.get("site") == "mlp_post"
    what = "neurons: the hidden layer of the MLP" if neurons else "values"
    name = _told("{site:.120}", manifest, "an unnamed one")
    return f"{d_in:,} {what} (site {name})" + _told(
        " of layer {layer:,}, counted from 0,", manifest
    )


def _model(manifest: Record, config: AnalyzeConfig) -> str:
    """The language model, as far as it is known."""
    if not harvested.is_ours(dict(manifest)):
        name = "the Hugging Face model {config[lm][name_or_path]:.120}"
        return _told(name, manifest, "a Hugging Face model")
    try:
        _, record = harvested.model_record(dict(manifest), config)
    except UserError:
        return "a language model that is no longer where it was"
    shape = ", ".join(filter(None, (_told(part, dict(record)) for part in SHAPE)))
    text = f"a language model of ours ({shape})"
    text += _told(" that was trained on {tokens:,} tokens", dict(record))
    if loss := _told(" to a validation loss of {losses[val_loss]:.2f} nats", dict(record)):
        simple = "({baselines[unigram]:.2f} for unigrams, {baselines[bigram]:.2f} for bigrams)"
        text += loss + _told(f" {simple}", dict(record))
    return text


def _text(manifest: Record, cache_dir: Path) -> str:
    """The corpus that the model read for the activations."""
    try:
        corpus, split = manifest["corpus"], manifest["config"]["harvest"]["split"]
        match corpus["kind"]:
            case "docstrings":
                text = f"docstrings of {len(corpus['versions'])} Python packages"
            case "files":
                n = len(corpus["files"])
                text = f"{n} text file" + ("" if n == 1 else "s")
            case "hub":
                text = _told("the data set {path:.120}", corpus, "a data set of the hub")
            case _:
                return ""
        text = f" The text was {text}{SPLITS[split]}"
    except MALFORMED:
        return ""
    try:
        splits = harvested.tokens(dict(manifest), cache_dir)[1]["splits"]
        of = [splits[part] for part in (("train", "validation") if split == "all" else (split,))]
        documents, tokens = (sum(part[key] for part in of) for key in ("documents", "tokens"))
        return f"{text}, {documents:,} documents, {tokens:,} tokens."
    except (UserError, *MALFORMED):
        return f"{text}."
