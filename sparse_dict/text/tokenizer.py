"""Byte-pair vocabularies: GPT-2's, or one trained on the corpus; tiktoken encodes with both."""

import base64
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import tiktoken

from sparse_dict.config import BPETokenizer, DataConfig, GPT2Tokenizer
from sparse_dict.errors import UserError, one_line, reading
from sparse_dict.machine.background import in_background, reachable
from sparse_dict.machine.progress import LOG_EVERY_S, Progress
from sparse_dict.machine.threads import available_cores
from sparse_dict.storage import files
from sparse_dict.storage.cache import ensure_sealed
from sparse_dict.storage.untrusted import read_bytes
from sparse_dict.text import corpus

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


END_OF_TEXT = "<|endoftext|>"
# GPT-2's expression, written as tiktoken writes it, which splits alike and faster.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_HOST = "https://openaipublic.blob.core.windows.net"
CACHED_S = 2.0  # more than enough to load GPT-2's vocabulary from a disk
BLANKS = re.compile(r"(\s{100000})")  # a run that is encoded in pieces
RANKS, RECORD = "ranks.tiktoken", "tokenizer.json"
BPE_RULES = 2  # increased when the same corpus and settings give another vocabulary


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        self.name = name
        self.eot = len(ranks)  # id of the end of text, the last one
        self.n_vocab = len(ranks) + 1  # ids in all
        self.dtype = np.dtype(np.uint16 if self.n_vocab <= 2**16 else np.uint32)  # holds each id
        self._ranks = ranks
        self._encoding = tiktoken.Encoding(
            name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.eot},
            explicit_n_vocab=self.n_vocab,
        )
        self.fingerprint = files.fingerprint([GPT2_PATTERN, self._lines()])

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, `dtype` (n,), without end of text; on all cores.

        A literal ``<|endoftext|>`` is ordinary text. Lone surrogates are a UnicodeEncodeError.
        """
        if len(texts) == 1:
            return [self._encode(texts[0])]
        with ThreadPoolExecutor(available_cores()) as pool:
            return list(pool.map(self._encode, texts))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, the end of text its literal name."""
        return self._encoding.decode([int(i) for i in ids])

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` stands for; KeyError if it is not in the vocabulary."""
        return self._encoding.decode_single_token_bytes(int(token))

    def save(self, folder: Path) -> None:
        """Write ``ranks.tiktoken`` (base64 and rank a line) and a record."""
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(folder / RANKS, "\n".join(self._lines()) + "\n")
        files.write_json(folder / RECORD, self._record())

    @classmethod
    def load(cls, folder: Path, fingerprint: str | None = None) -> Self:
        """The tokenizer that was saved in `folder`; None if that is known to be as it was."""
        path = folder / RANKS
        with reading(path):
            lines = read_bytes(path).decode("ascii").splitlines()
            if fingerprint not in (None, files.fingerprint([GPT2_PATTERN, lines])):
                raise UserError(f"{path} has changed since it was written")
            pairs = [line.split(" ") for line in lines]
            ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        return cls(str(files.read_json(folder / RECORD).get("name")), ranks)

    def _record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pat_str": GPT2_PATTERN,
            "special_tokens": {END_OF_TEXT: self.eot},
            "n_vocab": self.n_vocab,
        }

    def _encode(self, text: str) -> np.ndarray:
        # on a million blanks tiktoken would fail, and name no document
        parts = [part for part in BLANKS.split(text) if part] if len(text) > 10**5 else [text]
        ids = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in parts]
        return np.concatenate(ids).astype(self.dtype)

    def _lines(self) -> list[str]:
        ordered = sorted(self._ranks.items(), key=lambda item: item[1])
        return [f"{base64.b64encode(token).decode()} {rank}" for token, rank in ordered]


def build(config: GPT2Tokenizer | BPETokenizer, data: DataConfig, cache_dir: Path) -> Tokenizer:
    """The vocabulary that `config` asks for; a trained one is cached by corpus and settings."""
    if isinstance(config, GPT2Tokenizer):
        return _gpt2()
    settings: dict[str, Any] = {
        "rules": BPE_RULES,
        "corpus": corpus.describe(data, cache_dir),
        "vocab_size": config.vocab_size,
        "train_chars": config.train_chars,
    }
    folder = cache_dir / "tokenizer" / files.fingerprint(settings)

    def make(fresh: Path) -> None:
        started = time.monotonic()
        texts = corpus.Documents(data, cache_dir)
        ranks = train_ranks(texts, config.vocab_size - 1, config.train_chars)
        if not ranks:
            raise UserError("the corpus is empty: there is no text to train a vocabulary on")
        corpus.refuse_change(settings["corpus"], corpus.describe(data, cache_dir))
        Tokenizer("bpe", ranks).save(fresh)
        log.info("vocabulary: trained in %.0f s", time.monotonic() - started)

    ensure_sealed(folder, make)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.n_vocab < config.vocab_size:
        log.warning("vocabulary: the corpus yields %d ids only", tokenizer.n_vocab)
    return tokenizer


def _gpt2() -> Tokenizer:
    """GPT-2's vocabulary from tiktoken's cache or the network.

    tiktoken downloads without a timeout, so it works in a thread that can be given up.
    """
    answers = cache(partial(reachable, GPT2_HOST))

    def see_that_it_comes() -> None:
        if not answers():
            raise UserError(f"{GPT2_HOST} does not answer")

    try:
        found = in_background(partial(tiktoken.get_encoding, "gpt2"), CACHED_S, see_that_it_comes)
    except Exception as error:  # requests', the file system's, or a ValueError of a bad hash
        raise UserError(
            "GPT-2's vocabulary cannot be fetched: set TIKTOKEN_CACHE_DIR, or use tokenizer=bpe "
            f"({one_line(error, 100)})"
        ) from None
    return Tokenizer("gpt2", found._mergeable_ranks)
