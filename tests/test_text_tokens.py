import json
import multiprocessing
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from damage import edited, flip, written
from fault_study import ROOT
from hypothesis import given
from hypothesis import strategies as st

from sparse_dict.config import FilesData
from sparse_dict.errors import UserError
from sparse_dict.storage import cache
from sparse_dict.text import corpus, tokenizer, tokens
from sparse_dict.text.tokenizer import Tokenizer
from sparse_dict.text.tokens import TokenStore, TokenStream

TEXTS = [f"Document {i} of many, {'and more ' * (i % 5)}with é." for i in range(60)]


def make_tokenizer(n_ranks: int = 280) -> Tokenizer:
    return Tokenizer("bpe", tokenizer.train_ranks(TEXTS, n_ranks, 10_000))


def make_data(folder: Path, texts: list[str] = TEXTS, val_fraction: float = 0.3) -> FilesData:
    path = folder / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return FilesData(val_fraction=val_fraction, files=str(path), text_column="text")


def prepare_in(folder: str) -> str:
    data = FilesData(val_fraction=0.3, files=f"{folder}/corpus.jsonl", text_column="text")
    return tokens.prepare(data, make_tokenizer(), Path(folder)).manifest["fingerprint"]


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 100)
    monkeypatch.setattr(tokens, "BATCH_DOCUMENTS", 7)
    return tokens.prepare(make_data(tmp_path), make_tokenizer(), tmp_path)


def expected(split: str) -> list[str]:
    return [t for t in TEXTS if tokens.in_validation(t, 0.3) == (split == "validation")]


def test_each_split_holds_its_documents_each_followed_by_the_end_of_text(store):
    tokenizer = make_tokenizer()
    for name in ("train", "validation"):
        stream = store.split(name)
        texts = expected(name)
        assert tokenizer.decode(stream.window(0, len(stream))) == "".join(
            f"{text}<|endoftext|>" for text in texts
        )
        recorded = store.manifest["splits"][name]
        assert len(stream.document_starts) == len(texts) == recorded["documents"]
        assert recorded["bytes"] == sum(len(text.encode()) for text in texts)
        assert len(stream) == recorded["tokens"]
        assert len(recorded["shards"]) > 2


def test_origins_count_documents_and_positions_from_zero_with_the_end_of_text_last(store):
    stream = store.split("validation")
    ids = stream.window(0, len(stream))
    ends = np.flatnonzero(ids == store.manifest["eot"])
    document, position = stream.origins(0, len(stream))
    lengths = np.diff(np.concatenate([[-1], ends]))
    np.testing.assert_array_equal(document, np.repeat(np.arange(len(lengths)), lengths))
    np.testing.assert_array_equal(position, np.concatenate([np.arange(n) for n in lengths]))
    part = stream.origins(57, 80)
    np.testing.assert_array_equal(part[0], document[57:137])
    np.testing.assert_array_equal(part[1], position[57:137])


def test_all_is_train_followed_by_validation(store):
    train, validation, both = (store.split(name) for name in ("train", "validation", "all"))
    ids = np.concatenate([part.window(0, len(part)) for part in (train, validation)])
    np.testing.assert_array_equal(both.window(0, len(both)), ids)
    document, position = both.origins(len(train), len(validation))
    np.testing.assert_array_equal(
        document - len(train.document_starts), validation.origins(0, len(validation))[0]
    )
    np.testing.assert_array_equal(position, validation.origins(0, len(validation))[1])


@given(st.lists(st.lists(st.integers(0, 65535), max_size=5), max_size=6), st.data())
def test_windows_over_shard_borders_equal_the_concatenation(parts, draw):
    shards = [np.array(part, np.uint16) for part in parts]
    whole = np.concatenate([np.empty(0, np.int64), *shards])
    stream = TokenStream(shards, np.zeros(1, np.int64))
    assert len(stream) == len(whole)
    start = draw.draw(st.integers(0, len(whole)))
    length = draw.draw(st.integers(0, len(whole) - start))
    window = stream.window(start, length)
    assert window.dtype == np.int64
    np.testing.assert_array_equal(window, whole[start : start + length])


def test_a_window_past_the_end_is_an_index_error(store):
    stream = store.split("train")
    for start, length in [(-1, 3), (0, len(stream) + 1), (len(stream), 1), (0, -1)]:
        with pytest.raises(IndexError):
            stream.window(start, length)


def test_a_document_keeps_its_split_when_others_are_added(tmp_path):
    few = tokens.prepare(make_data(tmp_path, TEXTS[:30]), make_tokenizer(), tmp_path)
    more = tokens.prepare(make_data(tmp_path, TEXTS[::-1]), make_tokenizer(), tmp_path)
    tokenizer = make_tokenizer()

    def documents(store: TokenStore, split: str) -> set[str]:
        stream = store.split(split)
        return set(tokenizer.decode(stream.window(0, len(stream))).split("<|endoftext|>"))

    for split in ("train", "validation"):
        assert documents(few, split) < documents(more, split)


def test_about_the_asked_share_of_documents_is_held_out():
    held = sum(tokens.in_validation(f"text {i}", 0.2) for i in range(5000))
    assert 880 < held < 1120


def test_a_store_is_made_once(tmp_path, monkeypatch):
    data = make_data(tmp_path)
    first = tokens.prepare(data, make_tokenizer(), tmp_path)
    monkeypatch.delattr(corpus, "Documents")
    assert tokens.prepare(data, make_tokenizer(), tmp_path).manifest == first.manifest


def test_corpus_split_and_vocabulary_each_make_another_store(tmp_path):
    stores = [
        tokens.prepare(make_data(tmp_path), make_tokenizer(), tmp_path),
        tokens.prepare(make_data(tmp_path, TEXTS[1:]), make_tokenizer(), tmp_path),
        tokens.prepare(make_data(tmp_path, val_fraction=0.4), make_tokenizer(), tmp_path),
        tokens.prepare(make_data(tmp_path), make_tokenizer(270), tmp_path),
    ]
    assert len({store.manifest["fingerprint"] for store in stores}) == 4


def test_the_manifest_tells_what_the_store_was_made_of(store):
    manifest = store.manifest
    assert manifest["tokenizer"] == make_tokenizer().fingerprint
    assert manifest["corpus"]["kind"] == "files"
    assert (manifest["n_vocab"], manifest["eot"], manifest["dtype"]) == (281, 280, "uint16")
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            from sparse_dict.storage.files import sha256_file

            assert sha256_file(store.folder / shard["name"]) == shard["sha256"]


def test_a_corpus_without_documents_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="the corpus is empty"):
        tokens.prepare(make_data(tmp_path, [" "]), make_tokenizer(), tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_split_without_documents_is_refused_only_when_it_is_asked_for(tmp_path):
    store = tokens.prepare(make_data(tmp_path, TEXTS[:1], 1e-9), make_tokenizer(), tmp_path)
    assert len(store.split("train").document_starts) == 1
    assert len(store.split("all").document_starts) == 1
    with pytest.raises(UserError, match=r"no document falls into validation.*val_fraction"):
        store.split("validation")


def test_an_interrupted_preparation_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch):
    data = make_data(tmp_path)
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 100)

    def interrupted(path, column):
        yield from TEXTS[:40]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("sparse_dict.text.files.read_jsonl", interrupted)
        patch.setattr(tokens, "BATCH_DOCUMENTS", 7)
        with pytest.raises(KeyboardInterrupt):
            tokens.prepare(data, make_tokenizer(), tmp_path)
    assert list((tmp_path / "tokens").iterdir()) == []
    store = tokens.prepare(data, make_tokenizer(), tmp_path)
    assert len(store.split("all").document_starts) == len(TEXTS)


def test_two_processes_can_prepare_the_same_store(tmp_path):
    make_data(tmp_path)
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        first, second = pool.map(prepare_in, [str(tmp_path)] * 2)
    assert first == second
    assert [path.name for path in (tmp_path / "tokens").iterdir()] == [first]
    whole = TokenStore.open(tmp_path / "tokens" / first).split("all")
    assert len(whole.document_starts) == len(TEXTS)


def test_a_cache_folder_is_made_by_one_and_waited_for_by_others(tmp_path):
    target = tmp_path / "cache" / "x"
    made = []

    def make(fresh):
        made.append(fresh)
        waiting.start()
        time.sleep(0.5)
        (fresh / "who").write_text("first")

    code = (
        f"from sparse_dict.storage import cache; cache.ensure(cache.Path({str(target)!r}), print)"
    )
    waiting = threading.Thread(target=lambda: outputs.append(subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT)))  # fmt: skip
    outputs = []
    cache.ensure(target, make)
    waiting.join()
    assert (len(made), outputs) == (1, [b""])
    assert (target / "who").read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_what_a_killed_process_left_is_cleared_by_the_same_command(tmp_path):
    (tmp_path / ".x" / "fresh").mkdir(parents=True)
    (tmp_path / ".x" / "fresh" / "half").touch()
    cache.ensure(tmp_path / "x", lambda fresh: (fresh / "whole").touch())
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["whole"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


MANIFEST, TRAIN = "manifest.json", ("splits", "train")


def saved(array):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (MANIFEST, Path.unlink, "manifest.json does not exist"),
        ("train-00001.npy", Path.unlink, "train-00001.npy does not exist"),
        ("train-00001.npy", written(b"x"), "truncated or not an array"),
        ("train-00001.npy", saved(np.array([{}] * 100)), "not an array of"),
        ("train-00001.npy", flip, "train-00001.npy has changed since it was written"),
        ("validation-documents.npy", flip, "validation-documents.npy has changed since it was"),
        ("train-00001.npy", saved(np.zeros(99, np.uint16)), r"uint16 \(99,\), its manifest says"),
        ("train-documents.npy", saved(np.zeros(3, np.int64)), r"int64 \(3,\), its manifest says"),
        (MANIFEST, edited(format=0), "format is 0, not 1"),
        (MANIFEST, edited(dtype="float64"), "dtype is 'float64', not"),
        (MANIFEST, edited(eot=-1), "eot is -1"),
        (MANIFEST, edited(splits={}), "it lacks 'train'"),
        (MANIFEST, edited(*TRAIN, documents=True), "documents is True"),
        (MANIFEST, edited(*TRAIN, shards="x"), "is malformed"),
        (MANIFEST, edited(*TRAIN, "shards", 0, name="../x.npy"), "'../x.npy', not the name of"),
        (MANIFEST, edited(*TRAIN, "document_starts", name="/etc/x"), "'/etc/x', not the name of"),
    ],
)
def test_a_damaged_store_is_named_with_the_way_out(store, name, change, message):
    change(store.folder / name)
    with pytest.raises(UserError, match=f"{message}.*: delete {store.folder} to have it made"):
        TokenStore.open(store.folder)
