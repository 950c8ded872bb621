"""The language model, the text and the rows behind a study's activations.

Each is looked for where the config says, then where the earlier stages' records say (a language
model of ours only if it lies beside the study), and used only if it has the recorded fingerprint.
"""

import base64
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.activations.harvest import widths
from sparse_dict.activations.side_by_side import TOGETHER, open_all
from sparse_dict.activations.store import MANIFEST, Activations, Manifest, Rows
from sparse_dict.analysis.study import Study
from sparse_dict.config import AnalyzeConfig, ContextsConfig, HFModel
from sparse_dict.config.sites import Site, parse
from sparse_dict.errors import UserError, one_line, reading
from sparse_dict.lm import folder as lm_folder
from sparse_dict.lm.interface import LanguageModel, OpenLM
from sparse_dict.machine import runtime
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files, records
from sparse_dict.text.tokens import TokenStore, TokenStream

Floats = NDArray[np.float32]

log = logging.getLogger(__name__)

MEMORY = 1 << 30  # bytes of rows that are held at a time
PIECE = 1 << 13  # rows read at a time
NEURONS = ("mlp_pre", "mlp_post")  # sites whose columns are neurons


@dataclass(frozen=True)
class Place:
    """Where in the model the activations were taken, and which positions were left out."""

    sites: tuple[Site, ...]  # side by side in a row
    skip_first: int  # positions at the start of each context that have no rows

    @property
    def of_neurons(self) -> bool:
        """Whether every column of a row is a neuron."""
        return bool(self.sites) and all(site.name in NEURONS for site in self.sites)


@dataclass(frozen=True, eq=False)
class Source:
    """The language model that was harvested, pieces of the text that it read, and their rows."""

    lm: OpenLM | None  # None: of own arrays, whose text is the numbers of their rows
    place: Place  # what decoder rows are directions of: what was read, or a transcoder's target
    columns: tuple[tuple[int, int], ...]  # of each site: first, and one past the last
    text: NDArray[np.int32]  # (contexts, n_ctx), the positions without rows among them
    kept: Rows  # (contexts, kept, d_in): the rows that are read, as they were harvested
    n_harvested: int  # rows of the whole harvest
    show: Callable[[int], str] = str  # a row of own arrays

    @property
    def unit(self) -> str:
        """What the text is made of."""
        return "tokens" if self.lm else "rows"

    def rows(self, contexts: slice | NDArray[np.int64]) -> Floats:
        """The rows of some contexts, (contexts, kept, d_in)."""
        found: Floats = torch.from_numpy(self.kept[contexts]).float().numpy()
        return found

    def words(self, tokens: Iterable[int]) -> dict[int, str]:
        """Each token as it is shown."""
        if self.lm is None:
            return {row: self.show(row) for row in sorted(set(tokens))}
        return {t: printable(self.lm.tokenizer.token_bytes(t)) for t in sorted(set(tokens))}


def printable(token: bytes) -> str:
    """A token as it is shown: signs for line breaks and tabs, codes for what has no letter."""
    text = token.decode("utf-8", errors="backslashreplace")
    text = text.replace("\n", "⏎").replace("\t", "⇥").replace("\u00a0", " ")
    return "".join(c if c.isprintable() or c == " " else f"\\u{ord(c):04x}" for c in text)


def open_source(config: AnalyzeConfig, study: Study, n_tokens: int) -> Source:
    """What is behind a study's activations, with about `n_tokens` of their text.

    Fewer where their rows would need more than MEMORY, which the log says.
    """
    folder, manifest = _harvest(config, study)
    whole, lm = Activations.open(folder), model(manifest, config)
    activations, written = whole.at(study.site), whole.at(study.target or study.site)
    taken = place(manifest, study.target or study.site)
    columns = columns_of(lm.model, taken.sites, written.d_in)
    stream, _ = text(manifest, Path(config.cache_dir), lm.n_ctx)
    kept = lm.n_ctx - taken.skip_first  # rows of one context
    available = min(activations.rows // kept, len(stream) // lm.n_ctx)
    if not available:
        raise UserError(f"the text holds {len(stream)} tokens, less than one context ({lm.n_ctx})")
    dtype = np.dtype(manifest["dtype"])
    fit = max(MEMORY // (kept * activations.d_in * dtype.itemsize), 1)
    n = min(max(n_tokens // lm.n_ctx, 1), available)
    if n > fit:
        log.info("%s tokens, not %s, whose rows need much memory", fit * lm.n_ctx, n * lm.n_ctx)
    contexts = np.arange(n := min(n, fit)) * available // n
    windows = np.stack([stream.window(int(i) * lm.n_ctx, lm.n_ctx) for i in contexts])
    rows = np.empty((n, kept, activations.d_in), dtype)
    _fill(rows, activations, stream, contexts, windows)
    return Source(lm, taken, columns, windows.astype(np.int32), rows, activations.rows)


def open_rows(activations: Activations, study: Study, settings: ContextsConfig) -> Source:
    """As `open_source`, of arrays that no language model made: evenly spaced rows."""
    function = settings.function()
    starts = np.cumsum([0, *(shard.rows for shard in activations.shards)])

    def shown(row: int) -> str:
        which = int(np.searchsorted(starts, row, "right")) - 1
        path, number = activations.shards[which].path, row - int(starts[which])
        if function is None:
            return f"{path.name}, row {number}"
        try:
            found = function(str(path), number)
            if isinstance(found, bytes):
                kind = "png" if found.startswith(b"\x89PNG") else "jpeg"
                return f"data:image/{kind};base64,{base64.b64encode(found).decode()}"
            return printable(str(found).encode())
        except Exception as error:
            raise UserError(
                f"contexts.show={settings.show}: {one_line(error, named=True)}"
            ) from None

    n = min(settings.n_tokens, activations.rows, max(MEMORY // (4 * activations.d_in), 1))
    numbers = np.arange(n) * activations.rows // n
    rows = np.empty((n, 1, activations.d_in), np.float32)
    for start in range(0, activations.rows, PIECE):
        stop = min(start + PIECE, activations.rows)
        first, last = np.searchsorted(numbers, (start, stop))
        rows[first:last, 0] = activations.read(start, stop)[numbers[first:last] - start]
    width = study.entries[0].decoder.shape[1]
    text = numbers[:, None].astype(np.int32)
    return Source(None, Place((), 0), ((0, width),), text, rows, activations.rows, shown)


def rows_of(found: Sequence[Tensor], skip: int) -> Floats:
    """The rows (n, d_in) that a harvest would make of the activations of its sites."""
    taken = torch.cat([part[:, skip:] for part in found], -1)  # (contexts, kept, d_in)
    return taken.flatten(0, 1).float().cpu().numpy()


def put_back(found: Sequence[Tensor], rows: Floats, skip: int) -> list[Tensor]:
    """The activations with other rows; positions without a row stay as they are."""
    kept = [part[:, skip:] for part in found]
    shape = *kept[0].shape[:2], -1
    new = torch.from_numpy(rows).to(kept[0]).view(shape).split([k.shape[-1] for k in kept], -1)
    return [torch.cat([old[:, :skip], part], 1) for old, part in zip(found, new, strict=True)]


def columns_of(
    model: LanguageModel, sites: Sequence[Site], d_in: int
) -> tuple[tuple[int, int], ...]:
    """The columns of a row that each of `sites` has."""
    stops = np.cumsum(found := widths(model, sites)).tolist()
    if stops[-1] != d_in:
        raise UserError(f"rows have {d_in} values, but the sites have {found}: harvest again")
    return tuple((stop - width, stop) for stop, width in zip(stops, found, strict=True))


def _fill(
    rows: Rows,
    activations: Activations,
    stream: TokenStream,
    contexts: NDArray[np.int64],
    windows: NDArray[np.int64],
) -> None:
    """Put into `rows` (n, kept, d_in) those of `contexts`, which have the tokens `windows`."""
    n_ctx = windows.shape[1]
    skip = n_ctx - rows.shape[1]
    which = np.full(len(stream) // n_ctx + 1, -1)
    which[contexts] = np.arange(len(contexts))
    missing = np.ones(rows.shape[:2], bool)
    with Progress("reading the harvest", activations.rows, "rows") as progress:
        for start in range(0, activations.rows, PIECE):
            stop = min(start + PIECE, activations.rows)
            origins = activations.origins(start, stop)
            assert origins is not None
            document, position, token = origins.T.astype(np.int64)
            known = (document >= 0) & (document < len(stream.document_starts))
            place = stream.document_starts[np.where(known, document, 0)] + position
            known &= (place >= 0) & (place < len(stream)) & (place % n_ctx >= skip)
            context, at = which[np.where(known, place, -1) // n_ctx], place % n_ctx
            mine = np.flatnonzero(known & (context >= 0))
            mine = mine[windows[context[mine], at[mine]] == token[mine]]
            to = context[mine], at[mine] - skip
            rows[to], missing[to] = activations.read(start, stop)[mine], False
            progress.advance(stop - start)
    if missing.any():
        raise UserError(f"the origins of {activations.folder} are not of its text: harvest again")


def manifest_of(config: AnalyzeConfig, study: Study) -> dict[str, Any]:
    """The record of the harvest that the dictionaries were trained on; its types unchecked."""
    return _harvest(config, study)[1]


def place(manifest: dict[str, Any], site: str | None = None) -> Place:
    """Where the activations were taken: all sites, or only `site`."""
    if TOGETHER in manifest:
        raise UserError("these activations are of several harvests, not of a single model")
    if "model" not in manifest["fingerprints"]:
        raise UserError("these activations do not come from a language model")
    with reading(Path(MANIFEST)):
        skip = manifest["config"]["harvest"].get("skip_first") or 0
        names = [site] if site else [part["site"] for part in manifest.get("sites", ())]
        sites = [parse(name, None, "site") for name in names]
        return Place(tuple(sites or [parse(manifest["site"], manifest.get("layer"), "site")]), skip)


def model(manifest: dict[str, Any], config: AnalyzeConfig) -> OpenLM:
    """The language model that the activations were taken from, on the config's device."""
    device = runtime.device(config.device)
    if is_ours(manifest):
        return lm_folder.opened(model_record(manifest, config)[0], device)
    wanted = manifest["fingerprints"]["model"]
    with reading(Path(MANIFEST)):
        recorded = manifest["config"]["lm"]
        found = HFModel(
            recorded["name_or_path"], manifest.get("lm_commit") or recorded["revision"],
            recorded["n_ctx"], recorded["dtype"], recorded.get("bos") or False,
        )  # fmt: skip
    moved = Path(config.lm_dir)
    if (moved / "config.json").is_file():
        found.name_or_path, found.revision = str(moved), None
    if lm_folder.hf().fingerprint(found) != wanted:
        raise UserError(
            f"{found.name_or_path} is not the model that was harvested (fingerprint {wanted}); "
            "set lm_dir to that model's folder"
        )
    opened: OpenLM = lm_folder.hf().opened(found, device)
    return opened


def is_ours(manifest: dict[str, Any]) -> bool:
    """Whether the language model is one of train_lm.py's."""
    return "lm" not in manifest.get("config", {})


def model_record(manifest: dict[str, Any], config: AnalyzeConfig) -> tuple[Path, lm_folder.Record]:
    """The folder of the language model that the activations were taken from, and its record."""
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
    """The tokens of the split that was harvested, and how many contexts from its start were."""
    stores, split = _stores(manifest, cache_dir)
    skip = place(manifest).skip_first
    if skip >= n_ctx:
        raise UserError(f"the activations leave out {skip} positions of contexts of {n_ctx}")
    return stores.split(split), -(-int(manifest["rows"]) // (n_ctx - skip))


@dataclass(frozen=True, eq=False)
class Unread:
    """Text to try the model on, and which part of it was not harvested."""

    stream: TokenStream
    first: int  # where in it what was not harvested begins; its length if all was
    validation: bool  # whether it is the part that a model trained on this corpus has not seen


def unread(manifest: dict[str, Any], cache_dir: Path, n_ctx: int) -> Unread:
    """The corpus's validation part; all of it is training text where it has no such part."""
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
    """The record of the harvested text's tokens; its types unchecked."""
    return _tokens(manifest, cache_dir)[1]


def _stores(manifest: dict[str, Any], cache_dir: Path) -> tuple[TokenStore, str]:
    """The tokens of the corpus that the activations were taken on, and which split they read."""
    folder, _, split = _tokens(manifest, cache_dir)
    return TokenStore.open(folder), split


def _tokens(manifest: dict[str, Any], cache_dir: Path) -> tuple[Path, dict[str, Any], str]:
    """Folder and record of the harvested text's tokens, and the split that was harvested."""
    with reading(Path(MANIFEST)):
        wanted = {
            "corpus": manifest["corpus"],
            "val_fraction": manifest["config"]["data"]["val_fraction"],
            "tokenizer": manifest["fingerprints"]["tokenizer"],
        }
        split = manifest["config"]["harvest"]["split"]
    for path in sorted(cache_dir.glob("tokens/*/manifest.json")):
        there = files.read_json(path)
        if all(there.get(key) == value for key, value in wanted.items()):
            return path.parent, there, split
    raise UserError(
        f"the tokens that were harvested are not in {cache_dir / 'tokens'}; set cache_dir, or run "
        "harvest.py anew with another activations_dir to have them made again"
    )


def beside(config: AnalyzeConfig, recorded: Any) -> str | None:
    """A folder that a record names, if it lies beside the study; a foreign record may name any."""
    home = Path(config.study_dir).resolve().parent
    try:
        return recorded if Path(recorded).resolve().is_relative_to(home) else None
    except (OSError, TypeError, ValueError):
        return None


def _folders(names: Sequence[str | None]) -> list[Path]:
    return [Path(name) for name in dict.fromkeys(names) if name]


def folders(config: AnalyzeConfig, study: Study) -> list[list[Path]]:
    """Where to seek the activations of a study's dictionaries; several may lie side by side.

    Wherever the dictionaries recorded theirs to be, they are used only if their fingerprint fits.
    """
    found = [config.activations_dirs]
    recorded = study.entries[0].metrics["config"].get("activations_dir")
    names = recorded if isinstance(recorded, list) else [recorded]
    with suppress(OSError, TypeError, ValueError):  # a record may hold what can be no path
        for name in names:
            Path(name).is_dir()
        found += [[Path(name) for name in names]] if names else []
    if len(config.sae_dirs) > 1:
        found.insert(0, [study.folder.parent / "activations"])
    return [part for i, part in enumerate(found) if part not in found[:i]]


def activations_of(study: Study, config: AnalyzeConfig) -> Activations:
    """The activations that the study's dictionaries read: the columns of their site.

    They may be arrays that no language model made.
    """
    wanted = (study.entries[0].metrics.get("fingerprints") or {}).get("activations")
    reasons = []
    for together in folders(config, study):
        try:
            found = open_all(*together)
        except UserError as error:
            reasons.append(str(error))
            continue
        if found.fingerprint == wanted:
            return found.at(study.site)
        there = f"{' and '.join(map(str, together))} (fingerprint {found.fingerprint})"
        reasons.append(f"{there} holds other activations than the dictionaries were trained on")
    raise UserError(f"{'; '.join(reasons)} (fingerprint {wanted})")


def targets_of(study: Study, config: AnalyzeConfig) -> Activations:
    """What the study's dictionaries reconstruct."""
    read = activations_of(study, config)
    return read if study.target is None else open_all(*read.folders).at(study.target)


def _harvest(config: AnalyzeConfig, study: Study) -> tuple[Path, dict[str, Any]]:
    """The folder and the record of the harvest that a study's dictionaries were trained on."""
    wanted = (study.entries[0].metrics.get("fingerprints") or {}).get("activations")
    reasons = []
    for folder in dict.fromkeys(folder for found in folders(config, study) for folder in found):
        if (folder / MANIFEST).exists():
            manifest = records.read(folder / MANIFEST, Manifest)
            there = manifest["fingerprints"].get("activations")
            if there == wanted:
                return folder, dict(manifest)
            reasons.append(f"{folder} holds others (fingerprint {there})")
        elif folder.is_dir():
            reasons.append(f"{folder} holds arrays without a record of a model and its text")
        else:
            reasons.append(f"{folder} does not exist")
    if len(config.activations_dirs) > 1:
        raise UserError("activations of several harvests side by side are of no one model")
    raise UserError(
        f"no harvest of the dictionaries' activations (fingerprint {wanted}) was found: "
        + "; ".join(reasons)
    )
