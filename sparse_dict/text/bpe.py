"""Trains a byte-level byte-pair vocabulary."""

import logging
import re
import time
from collections.abc import Iterable, Iterator

from sparse_dict.machine.background import in_background
from sparse_dict.machine.progress import LOG_EVERY_S, Progress

log = logging.getLogger(__name__)

MOST_RUN = 1000
LONG = re.compile(rf"((?<!\s)\s{{{MOST_RUN},}}|(?<!\S)\S{{{MOST_RUN},}})")
MIN_PAIRS = 2  # a merge is learned from a pair seen at least this often


def train_ranks(texts: Iterable[str], n_ranks: int, max_chars: int) -> dict[bytes, int]:
    """Ranks 0..n-1 of the 256 bytes and up to ``n_ranks - 256`` merges (texts may repeat little).

    Sees the first `max_chars` characters of `texts`. Empty if there are none.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    # Splits text by GPT-2's expression and shows each byte as a character.
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=n_ranks,
        min_frequency=MIN_PAIRS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    started = time.monotonic()
    with Progress("vocabulary", max_chars, "characters") as progress:
        in_background(
            lambda: trained.train_from_iterator(_head(texts, max_chars, progress), trainer=trainer),
            LOG_EVERY_S,
            lambda: log.info("vocabulary: %.0f s", time.monotonic() - started),
        )
    if not progress.done:
        return {}
    bytes_of = bytes_by_character()
    vocabulary: dict[str, int] = trained.get_vocab()
    return {
        bytes(bytes_of[character] for character in token): rank
        for token, rank in sorted(vocabulary.items(), key=lambda item: item[1])
    }


def _head(texts: Iterable[str], max_chars: int, progress: Progress) -> Iterator[str]:
    """The first `max_chars` characters of `texts`, unbroken runs in pieces."""
    for text in texts:
        yield from pieces(text[: max_chars - progress.done])
        progress.advance(len(text))
        if progress.done >= max_chars:
            return


def pieces(text: str) -> list[str]:
    """`text`, with words and stretches of blanks of more than `MOST_RUN` characters cut up."""
    words = list(map(len, text.split()))
    blanks = len(text) - sum(words) - len(words)  # beyond one for each word
    if max(words, default=0) < MOST_RUN > blanks + 1:  # quickly seen, and nearly always so
        return [text]
    found = []
    for part in LONG.split(text):
        step = MOST_RUN if LONG.fullmatch(part) else max(len(part), 1)
        found += [part[i : i + step] for i in range(0, len(part), step)]
    return found


def bytes_by_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others from U+0100 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
