"""Pieces of the text behind a study's activations, with their rows and their language model."""

import base64
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparse_dict.activations.harvest import widths
from sparse_dict.activations.store import Activations, Rows
from sparse_dict.analysis import harvested
from sparse_dict.analysis.harvested import Place
from sparse_dict.analysis.study import Study
from sparse_dict.config import AnalyzeConfig, ContextsConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError, one_line
from sparse_dict.lm.interface import LanguageModel, OpenLM
from sparse_dict.machine.progress import Progress
from sparse_dict.text.tokens import TokenStream

Floats = NDArray[np.float32]

log = logging.getLogger(__name__)

MEMORY = 1 << 30  # bytes of rows that are held at a time
PIECE = 1 << 13  # rows read at a time


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
    activations = harvested.activations_of(study, config)
    manifest = harvested.recorded(activations)
    taken = harvested.place(manifest, study.target or study.site)
    lm = harvested.model(manifest, config)
    columns = columns_of(lm.model, taken.sites, harvested.targets_of(study, config).d_in)
    stream, _ = harvested.text(manifest, Path(config.cache_dir), lm.n_ctx)
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
    starts = np.cumsum([0, *map(len, activations.shards)])

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
    rows, text = activations.take(numbers)[:, None], numbers[:, None].astype(np.int32)
    columns = ((0, study.entries[0].decoder.shape[1]),)
    return Source(None, Place((), 0), columns, text, rows, activations.rows, shown)


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
