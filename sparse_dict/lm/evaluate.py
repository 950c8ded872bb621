"""The loss of a finished language model on other text: ``python -m sparse_dict.lm.evaluate``."""

import argparse
import logging
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparse_dict.config import FilesData
from sparse_dict.errors import UserError
from sparse_dict.lm import folder
from sparse_dict.text import corpus

BLOCK = 16  # contexts whose mean loss is one measurement: neighbours come from the same documents


@dataclass
class TextLoss:
    """Mean loss over a text."""

    loss: float  # nats a token
    error: float  # standard error of it, from the spread between blocks of contexts
    bits_per_byte: float  # by which models of any vocabulary can be compared
    tokens: int  # targets that it is the mean of


def on_files(lm: folder.LoadedLM, files: Sequence[str], text_column: str = "text") -> TextLoss:
    """The loss on every whole context of `files` (txt, jsonl, parquet; globs too)."""
    import torch

    data = FilesData(val_fraction=0.5, files=list(files), text_column=text_column)
    n_bytes, encoded = 0, [np.empty(0, np.int64)]
    for text in corpus.Documents(data, Path()):
        encoded += [*lm.tokenizer.encode_batch([text]), np.array([lm.tokenizer.eot])]
        n_bytes += len(text.encode())
    ids = torch.from_numpy(np.concatenate(encoded).astype(np.int64))
    n_ctx, size = lm.config.n_ctx, BLOCK * lm.config.n_ctx
    n = (len(ids) - 1) // size
    if n < 2:
        raise UserError(f"{', '.join(files)}: fewer than {2 * size + 1} tokens, too few to measure")
    tokens = n * size
    before, after = (part.view(n, BLOCK, n_ctx) for part in (ids[:tokens], ids[1 : tokens + 1]))
    with torch.no_grad():
        means = [lm.model.loss(*block).item() for block in zip(before, after, strict=True)]
    loss = statistics.fmean(means)
    share = tokens / len(ids)  # of the text that was measured
    return TextLoss(
        loss=loss,
        error=statistics.stdev(means) / len(means) ** 0.5,
        bits_per_byte=loss * tokens / np.log(2).item() / (n_bytes * share),
        tokens=tokens,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the loss; 1 with one line on what is wrong."""
    parser = argparse.ArgumentParser(
        "python -m sparse_dict.lm.evaluate", description="a language model's loss on other text"
    )
    parser.add_argument("lm", type=Path, help="a language model's folder, such as outputs/demo/lm")
    parser.add_argument("files", nargs="+", help="txt, jsonl or parquet files, or globs")
    parser.add_argument("--text-column", default="text", help="jsonl, parquet (default: text)")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    try:
        found = on_files(folder.load(args.lm), args.files, args.text_column)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(
        f"loss {found.loss:.3f} nats a token (standard error {found.error:.3f}), "
        f"{found.bits_per_byte:.3f} bits a byte, on {found.tokens:,} tokens\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
