"""The language model and the text behind a study's activations, to run the model on it again.

Each is sought where the config says, then where the earlier stages' records say if that is beside
the study, and counts only if its fingerprint is the recorded one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_dict.activations.store import MANIFEST
from sparse_dict.analysis.study import Study
from sparse_dict.config import AnalyzeConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.lm.folder import LoadedLM
from sparse_dict.machine import runtime
from sparse_dict.storage import files
from sparse_dict.text.tokens import TokenStore, TokenStream

Floats = NDArray[np.float32]

SITE = "mlp_post"  # what `GPT.split` and the logit effects are made for


@dataclass(frozen=True)
class Place:
    """Where in the model the activations were taken, and which positions were left out."""

    layer: int
    site: str
    skip_first: int  # positions at the start of each context that have no rows


@dataclass(frozen=True, eq=False)
class Source:
    """The language model that was harvested, and pieces of the text that it read then."""

    lm: LoadedLM
    place: Place
    text: NDArray[np.int32]  # (contexts, n_ctx), the positions without rows among them
    n_harvested: int  # rows

    def rows(self, text: NDArray[np.int32]) -> Floats:
        """The rows that a harvest of `text` (contexts, n_ctx) has: (contexts, kept, d_in)."""
        model = self.lm.model
        with torch.inference_mode():
            tokens = torch.from_numpy(text.astype(np.int64)).to(model.embed.weight.device)
            found = model.activations(tokens, self.place.layer, self.place.site)
        rows: Floats = found[:, self.place.skip_first :].float().cpu().numpy()
        return rows

    def words(self, tokens: Iterable[int]) -> dict[int, str]:
        """Each token as it is shown."""
        return {t: printable(self.lm.tokenizer.token_bytes(t)) for t in sorted(set(tokens))}


def printable(token: bytes) -> str:
    """A token as it is shown: signs for line breaks and tabs, codes for what has no letter."""
    text = token.decode("utf-8", errors="backslashreplace")
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in text)


def open_source(config: AnalyzeConfig, study: Study, n_tokens: int) -> Source:
    """The language model behind a study's activations, and about `n_tokens` of their text.

    Raises:
        UserError: one of them is not there, or cannot be read.
    """
    manifest = manifest_of(config, study)
    taken, lm = place(manifest), model(manifest, config)
    stream, contexts = text(manifest, Path(config.cache_dir), lm.config.n_ctx)
    n_ctx = lm.config.n_ctx
    available = min(contexts, len(stream) // n_ctx)
    n = min(max(n_tokens // n_ctx, 1), available)
    if not n:
        raise UserError(f"the text holds {len(stream)} tokens, less than one context ({n_ctx})")
    starts = np.arange(n) * available // n * n_ctx
    windows = np.stack([stream.window(int(start), n_ctx) for start in starts])
    return Source(lm, taken, windows.astype(np.int32), int(manifest["rows"]))


def manifest_of(config: AnalyzeConfig, study: Study) -> dict[str, Any]:
    """The record of the harvest that a study's dictionaries were trained on; its types unchecked.

    Raises:
        UserError: it is not there, or they were trained on foreign arrays.
    """
    metrics = study.entries[0].metrics
    wanted = (metrics.get("fingerprints") or {}).get("activations")
    recorded = metrics["config"].get("activations_dir")
    return _manifest([config.activations_dir, beside(config, recorded)], wanted)


def place(manifest: dict[str, Any]) -> Place:
    """Where the activations were taken.

    Raises:
        UserError: at another site than the MLP's hidden layer, at several, or in a language model
            that is not ours.
    """
    try:
        config = manifest["config"]
        if "model" not in manifest["fingerprints"] or "lm" in config:
            raise UserError("these activations do not come from a language model of ours")
        if "sites" in manifest:
            names = ", ".join(str(entry["site"]) for entry in manifest["sites"])
            raise UserError(f"these activations are of several sites side by side ({names})")
        if manifest["site"] != SITE:
            raise UserError(f"these activations are of the site {manifest['site']}, not {SITE}")
        layer, skip = manifest["layer"], config["harvest"].get("skip_first") or 0
        if not _counts(layer, skip, manifest["rows"]):
            raise ValueError("whole numbers of layer, rows or skip_first")
        return Place(layer, SITE, skip)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the activations' manifest lacks {error}") from None


def model(manifest: dict[str, Any], config: AnalyzeConfig) -> LoadedLM:
    """The language model that the activations were taken from.

    Raises:
        UserError: it is not there.
    """
    folder, record = model_record(manifest, config)
    if place(manifest).layer >= record["config"]["model"]["n_layers"]:
        raise UserError(f"the model in {folder} has no layer {place(manifest).layer}")
    return lm_folder.load(folder, runtime.device(config.device))


def model_record(manifest: dict[str, Any], config: AnalyzeConfig) -> tuple[Path, dict[str, Any]]:
    """The folder of the language model that the activations were taken from, and its record.

    Raises:
        UserError: it is not there.
    """
    wanted = manifest["fingerprints"].get("model")
    tried = _folders([config.lm_dir, beside(config, manifest.get("lm_dir"))])
    for folder in tried:
        if (folder / lm_folder.RECORD).exists():
            record = lm_folder.read_record(folder)
            if record["fingerprints"]["model"] == wanted:
                return folder, record
    raise UserError(
        f"the language model that was harvested (fingerprint {wanted}) is not in "
        f"{' or '.join(map(str, tried))}; set lm_dir"
    )


def text(manifest: dict[str, Any], cache_dir: Path, n_ctx: int) -> tuple[TokenStream, int]:
    """The tokens of the split that was harvested, and how many contexts from its start were.

    Raises:
        UserError: they are no longer in `cache_dir`, or the manifest does not say which they are.
    """
    stores, split = _stores(manifest, cache_dir)
    skip = place(manifest).skip_first
    if skip >= n_ctx:
        raise UserError(f"the activations leave out {skip} positions of contexts of {n_ctx}")
    return stores.split(split), -(-int(manifest["rows"]) // (n_ctx - skip))


@dataclass(frozen=True, eq=False)
class Unread:
    """Text to try the model on, and what of it was not harvested."""

    stream: TokenStream
    first: int  # where in it what was not harvested begins; its length if all was
    validation: bool  # whether it is the part that a model trained on this corpus has not seen


def unread(manifest: dict[str, Any], cache_dir: Path, n_ctx: int) -> Unread:
    """The corpus's validation part; all of it is training text where it has no such part.

    Raises:
        UserError: as `text`.
    """
    stores, split = _stores(manifest, cache_dir)
    if split == "train":
        return Unread(stores.split("validation"), 0, validation=True)
    stream, contexts = text(manifest, cache_dir, n_ctx)
    end = min(contexts * n_ctx, len(stream))
    if split == "validation" or not len(stores.streams["validation"]):
        return Unread(stream, end, validation=split == "validation")
    part = stores.split("validation")  # "all" has it last
    return Unread(part, max(0, end - (len(stream) - len(part))), validation=True)


def tokens_record(manifest: dict[str, Any], cache_dir: Path) -> dict[str, Any]:
    """The record of the harvested text's tokens; its types unchecked.

    Raises:
        UserError: they are no longer in `cache_dir`, or the manifest does not say which they are.
    """
    return _tokens(manifest, cache_dir)[1]


def _stores(manifest: dict[str, Any], cache_dir: Path) -> tuple[TokenStore, str]:
    """The tokens of the corpus that the activations were taken on, and which split they read."""
    folder, _, split = _tokens(manifest, cache_dir)
    return TokenStore.open(folder), split


def _tokens(manifest: dict[str, Any], cache_dir: Path) -> tuple[Path, dict[str, Any], str]:
    """Folder and record of the harvested text's tokens, and the split that was harvested."""
    try:
        wanted = {
            "corpus": manifest["corpus"],
            "val_fraction": manifest["config"]["data"]["val_fraction"],
            "tokenizer": manifest["fingerprints"]["tokenizer"],
        }
        split = str(manifest["config"]["harvest"]["split"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the activations' {MANIFEST} lacks {error}") from None
    if split not in ("train", "validation", "all"):
        raise UserError(f"the activations' {MANIFEST} names no split {split!r}")
    for path in sorted(cache_dir.glob("tokens/*/manifest.json")):
        there = files.read_json(path)
        if all(there.get(key) == value for key, value in wanted.items()):
            return path.parent, there, split
    raise UserError(
        f"the tokens that were harvested are not in {cache_dir / 'tokens'}; set cache_dir, or run "
        "harvest.py anew with another activations_dir to have them made again"
    )


def _counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def beside(config: AnalyzeConfig, recorded: Any) -> str | None:
    """A folder that a record names, unless it lies elsewhere: a stranger's record may name any."""
    home = Path(config.study_dir).resolve().parent
    try:
        return recorded if Path(recorded).resolve().is_relative_to(home) else None
    except (OSError, TypeError, ValueError):
        return None


def _folders(names: Sequence[str | None]) -> list[Path]:
    return [Path(name) for name in dict.fromkeys(names) if name]


def _manifest(names: Sequence[str | None], wanted: str | None) -> dict[str, Any]:
    tried = _folders(names)
    for folder in tried:
        if (folder / MANIFEST).exists():
            manifest = files.read_json(folder / MANIFEST)
            prints = manifest.get("fingerprints")
            if isinstance(prints, dict) and prints.get("activations") == wanted:
                return manifest
    raise UserError(
        f"the harvest that the dictionaries were trained on (fingerprint {wanted}) is not in "
        f"{' or '.join(map(str, tried))}, or is a folder of foreign arrays; set activations_dir"
    )
