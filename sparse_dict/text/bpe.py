"""Trains a byte-level byte-pair vocabulary."""

from collections.abc import Iterable, Iterator
from itertools import chain, islice

MIN_PAIRS = 2  # a merge is learned from a pair seen at least this often


def train_ranks(texts: Iterable[str], n_ranks: int, max_chars: int) -> dict[bytes, int]:
    """Ranks 0..n-1 of the 256 bytes and up to ``n_ranks - 256`` merges.

    Sees the first `max_chars` characters of `texts`. Empty if there are none; fewer than
    `n_ranks` if the text repeats too little.
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
    # The trainer iterates in a thread, where no signal is heard; the first text may take minutes.
    texts = iter(texts)
    first = list(islice(texts, 1))
    if not first:
        return {}
    trained.train_from_iterator(_head(chain(first, texts), max_chars), trainer=trainer)
    bytes_of = bytes_by_character()
    vocabulary: dict[str, int] = trained.get_vocab()
    return {
        bytes(bytes_of[character] for character in token): rank
        for token, rank in sorted(vocabulary.items(), key=lambda item: item[1])
    }


def _head(texts: Iterable[str], max_chars: int) -> Iterator[str]:
    """The first `max_chars` characters of `texts`."""
    for text in texts:
        yield text[:max_chars]
        max_chars -= len(text)
        if max_chars <= 0:
            return


def bytes_by_character() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others from U+0100 on."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
