"""What the dictionaries were trained on, in words: the activations, their text and their model.

All of it is read from records that anyone may have written: what is not of the expected type is
left out without a message.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparse_dict.analysis import harvested
from sparse_dict.analysis.study import Study
from sparse_dict.config import AnalyzeConfig
from sparse_dict.errors import UserError

LONGEST = 120  # characters of a name that is shown


def paragraph(config: AnalyzeConfig, study: Study) -> str:
    """What can be said of the activations that a study's dictionaries were trained on."""
    try:
        manifest = harvested.manifest_of(config, study)
    except UserError:
        if len(config.activations_dirs) > 1:
            there = " and ".join(map(str, config.activations_dirs))
            return f"The activations are {study.d_in:,} values of harvests side by side: {there}."
        return (
            f"The activations are rows of {study.d_in:,} values whose origin is not known here: "
            "arrays made elsewhere, or a harvest that is no longer where it was."
        )
    if manifest.get("site") == "toy":
        return _toy(manifest, study.d_in)
    return " ".join(
        part
        for part in (
            f"The activations are {_site(manifest, study)} in {_model(manifest, config)}.",
            _text(manifest, Path(config.cache_dir)),
            _size(manifest),
        )
        if part
    )


def subject(config: AnalyzeConfig, study: Study) -> str:
    """The activations in a few words, after their number."""
    try:
        manifest = harvested.manifest_of(config, study)
    except UserError:
        return f"rows of {study.d_in:,} values"
    if study.site is not None:
        return f"activations of {study.at} ({study.d_in:,} values)"
    site, layer = _word(manifest, "site"), _count(manifest, "layer")
    if site == "toy":
        return f"rows of a toy ({study.d_in:,} values)"
    at = f"{site or 'several sites'}" + ("" if layer is None else f", layer {layer}")
    return f"activations of {at} ({study.d_in:,} values)"


def _get(record: Any, *path: str) -> Any:
    """The value below `path`; None where a step is missing or no mapping."""
    for key in path:
        if not isinstance(record, Mapping):
            return None
        record = record.get(key)
    return record


def _count(record: Any, *path: str) -> int | None:
    value = _get(record, *path)
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _number(record: Any, *path: str) -> float | None:
    value = _get(record, *path)
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if known and math.isfinite(value) else None


def _word(record: Any, *path: str) -> str | None:
    value = _get(record, *path)
    if not isinstance(value, str) or not value or not value.isprintable():
        return None
    return value if len(value) <= LONGEST else f"{value[:LONGEST]}…"


def _listed(record: Any, parts: Mapping[str, str]) -> str:
    """The counts that `record` has, each as its text says: {"n_layers": "{} layers"}."""
    known = {text: _count(record, key) for key, text in parts.items()}
    return ", ".join(text.format(f"{n:,}") for text, n in known.items() if n is not None)


def _site(manifest: Mapping[str, Any], study: Study) -> str:
    sites, d_in = manifest.get("sites"), study.d_in
    if study.site is not None and isinstance(sites, list):
        text = f"values of {study.site}, one of {len(sites)} sites that were harvested together"
        if study.target is None:
            return f"{d_in:,} {text}"
        return f"{text}, from which {d_in:,} of {study.target} are reconstructed,"
    if isinstance(sites, list):
        names = [name for site in sites if (name := _word(site, "site"))]
        return f"{d_in:,} values of {len(sites)} sites side by side ({', '.join(names)})"
    name, layer = _word(manifest, "site") or "an unnamed site", _count(manifest, "layer")
    what = "neurons: the hidden layer of the MLP" if name == "mlp_post" else "values"
    return f"{d_in:,} {what} (site {name}" + (
        ")" if layer is None else f") of layer {layer}, counted from 0,"
    )


def _model(manifest: Mapping[str, Any], config: AnalyzeConfig) -> str:
    """The language model, as far as it is known."""
    if _get(manifest, "config", "lm") is not None:
        name = _word(manifest, "config", "lm", "name_or_path")
        return f"the Hugging Face model {name}" if name else "a Hugging Face model"
    try:
        _, record = harvested.model_record(dict(manifest), config)
    except UserError:
        return "a language model that is no longer where it was"
    parts = {"n_layers": "{} layers", "d_model": "width {}", "d_mlp": "MLP of {}"}
    parts |= {"n_heads": "{} heads", "n_ctx": "contexts of {} tokens"}
    parts_known = [_listed(_get(record, "config", "model"), parts)]
    parts_known.append(_listed(record, {"n_vocab": "vocabulary of {}"}))
    text = f"a language model of ours ({', '.join(filter(None, parts_known))})"
    if seen := _count(record, "tokens"):
        text += f" that was trained on {seen:,} tokens"
    loss = _number(record, "losses", "val_loss")
    if loss is not None:
        text += f" to a validation loss of {loss:.2f} nats"
        simple = {name: _number(record, "baselines", name) for name in ("unigram", "bigram")}
        beside = [f"{value:.2f} for {name}s" for name, value in simple.items() if value is not None]
        text += f" ({', '.join(beside)})" if beside else ""
    return text


def _text(manifest: Mapping[str, Any], cache_dir: Path) -> str:
    """The corpus that the model read for the activations."""
    corpus = manifest.get("corpus")
    match _word(corpus, "kind"):
        case "docstrings":
            versions = _get(corpus, "versions")
            n = f"{len(versions)} " if isinstance(versions, Mapping) else ""
            text = f"docstrings of {n}Python packages"
        case "files":
            listed = _get(corpus, "files")
            n = f"{len(listed)} " if isinstance(listed, list) else ""
            text = f"{n}text file" + ("" if n == "1 " else "s")
        case "hub":
            text = f"the data set {_word(corpus, 'path') or 'of an unreadable name'}"
        case _:
            return ""
    split = _word(manifest, "config", "harvest", "split")
    if split in ("train", "validation"):
        text += f" (the {split} part)"
    elif split == "all":
        text += " (all of it)"
    try:
        splits = harvested.tokens_record(dict(manifest), cache_dir).get("splits")
    except UserError:
        return f"The text was {text}."
    parts = ("train", "validation") if split == "all" else (split or "",)
    found = {
        key: [count for part in parts if (count := _count(splits, part, key)) is not None]
        for key in ("documents", "tokens")
    }
    known = ", ".join(f"{sum(counts):,} {key}" for key, counts in found.items() if counts)
    return f"The text was {text}" + (f", {known}." if known else ".")


def _size(manifest: Mapping[str, Any]) -> str:
    rows, rms = _count(manifest, "rows"), _number(manifest, "rms")
    if rows is None:
        return ""
    skip = _count(manifest, "config", "harvest", "skip_first")
    text = f"{rows:,} of its positions were kept"
    if skip:
        text += f", the first {skip} of each context left out"
    return text + (f"; their RMS is {rms:.3g}." if rms is not None else ".")


def _toy(manifest: Mapping[str, Any], d_in: int) -> str:
    data = _get(manifest, "config", "data")
    n, active = _count(data, "n_features"), _number(data, "n_active")
    of = f"{n:,} known random directions" if n is not None else "known random directions"
    text = "The activations are those of a toy and not of a language model: "
    text += f"sparse sums of {of} in {d_in:,} dimensions"
    text += f", {active:g} active on average" if active is not None else ""
    correlated = _get(data, "correlated")
    if isinstance(correlated, bool):
        text += ", " + ("correlated" if correlated else "independent of one another")
    rows, rms = _count(manifest, "rows"), _number(manifest, "rms")
    text += f"; {rows:,} rows" if rows is not None else ""
    return text + (f" of RMS {rms:.3g}." if rms is not None else ".")
