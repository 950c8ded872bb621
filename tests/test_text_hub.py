import json
import socket
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from http_server import Handler, LocalServer

from sparse_dict.config import HubData, identity
from sparse_dict.errors import UserError
from sparse_dict.machine.background import reachable
from sparse_dict.text import corpus


@pytest.fixture(autouse=True)
def hub_cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub-cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    datasets.disable_progress_bars()


@pytest.fixture
def silent():
    """The address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def local(tmp_path, **changes):
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({"text": ["x", "y", "x", "z"], "n": [1, 2, 3, 4]}), folder / "train.parquet"
    )
    values = {
        "val_fraction": 0.5, "path": str(folder), "name": None, "revision": None, "split": "train",
        "streaming": True, "text_column": "text", "max_documents": None,
    }  # fmt: skip
    return HubData(**(values | changes))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_is_read_streaming_or_not(tmp_path, streaming):
    data = local(tmp_path, streaming=streaming)
    assert list(corpus.Documents(data, tmp_path)) == ["x", "y", "z"]


def test_max_documents_ends_the_stream(tmp_path):
    assert list(corpus.Documents(local(tmp_path, max_documents=2), tmp_path)) == ["x", "y"]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_missing_column_or_split_names_those_that_are_there(tmp_path, streaming):
    for changes, message in [
        ({"text_column": "body"}, "no column 'body'; the columns are text, n"),
        ({"text_column": "n"}, "n is int, not text"),
        ({"split": "test"}, "(?i)split.*test.*train"),
    ]:
        data = local(tmp_path, streaming=streaming, **changes)
        with pytest.raises(UserError, match=message):
            list(corpus.Documents(data, tmp_path))


def test_without_network_the_error_comes_soon_and_says_what_to_do(tmp_path, monkeypatch, silent):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", silent)
    monkeypatch.setattr("sparse_dict.text.hub.ANSWER_S", 0.3)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"there is no network.*data=files data\.files="):
        list(corpus.Documents(local(tmp_path, path="someone/something"), tmp_path))
    assert time.monotonic() - started < 5
    assert datasets.config.HF_HUB_OFFLINE is False


def test_offline_mode_does_not_ask_the_network(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("sparse_dict.text.hub.reachable", lambda *_: pytest.fail("asked"))
    with pytest.raises(UserError, match="offline mode is on"):
        list(corpus.Documents(local(tmp_path, path="someone/something"), tmp_path))


def test_a_commit_is_looked_up_once_and_then_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_dict.text.hub.reachable", lambda *_: 200)
    monkeypatch.setattr("sparse_dict.text.hub._looked_up", lambda data: "0123abcd")
    described = corpus.describe(local(tmp_path, path="someone/something"), tmp_path)
    assert described["commit"] == "0123abcd"
    monkeypatch.setattr("sparse_dict.text.hub.reachable", lambda *_: pytest.fail("asked"))
    again = local(tmp_path, path="someone/something", streaming=False)
    assert corpus.describe(again, tmp_path) == described


def test_records_without_a_commit_agree_with_those_that_have_one():
    older, newer = {"path": "a/b"}, {"path": "a/b", "commit": "0123abcd"}
    assert identity.differences(older, newer) == identity.differences(newer, older) == []
    assert identity.differences(newer, newer | {"commit": "4567"}) != []


def test_a_config_that_cannot_work_is_refused_by_check(tmp_path):
    with pytest.raises(UserError, match=r"data\.max_documents must be positive"):
        local(tmp_path, max_documents=0)
    with pytest.raises(UserError, match=r"data\.path is empty"):
        corpus.check(local(tmp_path, path=""))


def test_a_server_that_never_answers_is_unreachable_and_a_refusal_too(silent):
    started = time.monotonic()
    assert not reachable(silent, 0.2)
    assert time.monotonic() - started < 2
    assert not reachable("http://127.0.0.1:9")


def test_a_server_that_answers_with_an_error_is_reachable():
    class Refuses(Handler):
        def do_HEAD(self):
            self.head(404, 0, {})

    with LocalServer(Refuses) as server:
        assert reachable(server.url)


def test_without_network_an_earlier_download_is_read(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr("sparse_dict.text.hub.reachable", lambda *_: None)
    data = local(tmp_path, path="someone/something")
    # A download as the client leaves it: a local data set's cache under the hub's naming.
    made = datasets.load_dataset(str(tmp_path / "set"), split="train").cache_files[0]["filename"]
    source = Path(made).parent
    folder = tmp_path / "hub-cache" / "someone___something" / "default" / "0.0.0" / source.name
    folder.mkdir(parents=True)
    (folder / "something-train.arrow").write_bytes(Path(made).read_bytes())
    info = json.loads((source / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"dataset_name": "something"}))
    assert list(corpus.Documents(data, tmp_path)) == ["x", "y", "z"]
    with pytest.raises(UserError, match=r"split.*test.*train"):
        list(corpus.Documents(local(tmp_path, path="someone/something", split="test"), tmp_path))
