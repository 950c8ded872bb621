import json
import time
from pathlib import Path

import numpy as np
import pytest
from damage import first_line
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_dict.config import BPETokenizer, FilesData, GPT2Tokenizer
from sparse_dict.errors import UserError
from sparse_dict.text import tokenizer
from sparse_dict.text.tokenizer import Tokenizer

TEXTS = [
    f"The {i} dictionaries of the {i % 7} models don't find the same features." for i in range(200)
]
RANKS = tokenizer.train_ranks(TEXTS, 300, 100_000)
TRAINED = Tokenizer("bpe", RANKS)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return FilesData(val_fraction=0.5, files=str(path), text_column="text")


@given(st.lists(st.text(), max_size=4))
@settings(max_examples=30)
def test_any_text_is_encoded_and_decoded_without_loss(texts):
    for text, ids in zip(texts, TRAINED.encode_batch(texts), strict=True):
        assert TRAINED.decode(ids) == text
        assert b"".join(TRAINED.token_bytes(i) for i in ids) == text.encode()
        assert not (ids == TRAINED.eot).any()


def test_a_literal_end_of_text_is_ordinary_text():
    (ids,) = TRAINED.encode_batch(["<|endoftext|>"])
    assert TRAINED.eot not in ids
    assert TRAINED.decode(ids) == "<|endoftext|>"
    assert TRAINED.token_bytes(TRAINED.eot) == b"<|endoftext|>"


def test_the_vocabulary_holds_bytes_merges_and_the_end_of_text_last():
    assert TRAINED.n_vocab == 301
    assert TRAINED.eot == 300
    assert sorted(RANKS.values()) == list(range(300))
    assert all(bytes([byte]) in RANKS for byte in range(256))
    assert b" dictionaries" in RANKS or b" the" in RANKS


def test_merges_encode_as_the_trainer_itself_encodes():
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers, trainers

    reference = Reference(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            min_frequency=tokenizer.MIN_PAIRS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    texts = [*TEXTS[:20], "We've  spaces\n\n and 12345 Ünïcode — done  "]
    for text, ids in zip(texts, TRAINED.encode_batch(texts), strict=True):
        assert ids.tolist() == reference.encode(text).ids


def test_ids_take_two_bytes_if_they_fit():
    assert TRAINED.dtype == np.uint16
    assert TRAINED.encode_batch(["a", "b"])[1].dtype == np.uint16
    many = dict(RANKS)
    number = 0
    while len(many) < 2**16:
        many.setdefault(b"%d" % number * 3, len(many))
        number += 1
    assert Tokenizer("bpe", many).dtype == np.uint32


def test_training_sees_only_the_first_characters():
    seen = tokenizer.train_ranks(["ab" * 50, "cd" * 50], 258, 100)
    assert {token for token, rank in seen.items() if rank >= 256} == {b"ab", b"abab"}


def test_a_saved_tokenizer_is_loaded_with_the_same_ids(tmp_path):
    TRAINED.save(tmp_path / "t")
    loaded = Tokenizer.load(tmp_path / "t")
    assert loaded.fingerprint == TRAINED.fingerprint
    for before, after in zip(TRAINED.encode_batch(TEXTS), loaded.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(before, after)


def test_the_fingerprint_follows_the_ranks():
    other = tokenizer.train_ranks(TEXTS, 299, 100_000)
    prints = {
        Tokenizer("bpe", RANKS).fingerprint,
        Tokenizer("another name", RANKS).fingerprint,
        Tokenizer("bpe", other).fingerprint,
    }
    assert len(prints) == 2


RANKS_FILE, RECORD = "ranks.tiktoken", "tokenizer.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (RANKS_FILE, first_line("IQ== 7"), r"ranks\.tiktoken has changed since it was written"),
        (RANKS_FILE, first_line("\xff"), r"ranks\.tiktoken is malformed"),
        (RANKS_FILE, Path.unlink, "ranks.tiktoken does not exist"),
        (RECORD, Path.unlink, "tokenizer.json does not exist"),
    ],
)
def test_a_damaged_tokenizer_is_refused_with_what_is_wrong(tmp_path, file, change, message):
    TRAINED.save(tmp_path)
    change(tmp_path / file)
    with pytest.raises(UserError, match=message):
        Tokenizer.load(tmp_path, TRAINED.fingerprint)


def test_a_trained_vocabulary_is_cached_by_corpus_and_settings(tmp_path, data, monkeypatch):
    first = tokenizer.build(BPETokenizer(300, 10_000), data, tmp_path)
    other = tokenizer.build(BPETokenizer(280, 10_000), data, tmp_path)
    assert (first.n_vocab, other.n_vocab) == (300, 280)
    monkeypatch.delattr(tokenizer, "train_ranks")
    again = tokenizer.build(BPETokenizer(300, 10_000), data, tmp_path)
    assert again.fingerprint == first.fingerprint


def test_a_corpus_too_small_for_the_vocabulary_says_so(tmp_path, data, caplog):
    built = tokenizer.build(BPETokenizer(5000, 10_000), data, tmp_path)
    assert 256 < built.n_vocab < 5000
    assert f"yields {built.n_vocab} ids only" in caplog.text


def test_an_empty_corpus_trains_no_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    data = FilesData(val_fraction=0.5, files=str(tmp_path / "a.txt"), text_column="text")
    with pytest.raises(UserError, match="the corpus is empty"):
        tokenizer.build(BPETokenizer(300, 10_000), data, tmp_path)
    assert list((tmp_path / "tokenizer").iterdir()) == []


def test_gpt2_without_network_or_cache_says_what_to_do(tmp_path, data, monkeypatch):
    def fail(name):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match=r"TIKTOKEN_CACHE_DIR.*tokenizer=bpe \(no route\)"):
        tokenizer.build(GPT2Tokenizer(), data, tmp_path)


def test_a_hanging_download_of_gpt2_is_given_up(tmp_path, data, monkeypatch):
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", lambda name: time.sleep(60))
    monkeypatch.setattr(tokenizer, "reachable", lambda url: False)
    monkeypatch.setattr(tokenizer, "CACHED_S", 0.1)
    with pytest.raises(UserError, match="does not answer"):
        tokenizer.build(GPT2Tokenizer(), data, tmp_path)


def test_gpt2_takes_the_ranks_of_tiktoken(tmp_path, data, monkeypatch):
    monkeypatch.setattr(tokenizer.tiktoken, "get_encoding", lambda name: TRAINED._encoding)
    built = tokenizer.build(GPT2Tokenizer(), data, tmp_path)
    assert built.name == "gpt2"
    assert built.fingerprint == TRAINED.fingerprint
