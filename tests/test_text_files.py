import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparse_dict.config import FilesData
from sparse_dict.errors import UserError
from sparse_dict.text import corpus


def data(files, column="text"):
    return FilesData(val_fraction=0.5, files=files, text_column=column)


def read(files, tmp_path, column="text"):
    return list(corpus.Documents(data(files, column), tmp_path))


def test_txt_jsonl_and_parquet_are_read_in_the_given_order(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffÄ\r\nsecond line".encode())
    (tmp_path / "b.jsonl").write_text('{"text": "row 1"}\n\n{"text": null}\n{"text": "row 2"}\n')
    pq.write_table(pa.table({"n": [1, 2], "text": ["cell", None]}), tmp_path / "c.parquet")
    files = [str(tmp_path / name) for name in ("c.parquet", "b.jsonl", "a.txt")]
    corpus.check(data(files))
    assert read(files, tmp_path) == ["cell", "row 1", "row 2", "Ä\nsecond line"]


def test_a_glob_is_sorted_and_a_file_named_twice_is_read_once(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    files = [str(tmp_path / "a.txt"), str(tmp_path / "**/*.txt")]
    assert read(files, tmp_path) == ["a.txt", "b.txt", "sub/c.txt"]


def test_a_relative_glob_starts_where_you_stand(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "a.txt").write_text("above")
    monkeypatch.chdir(tmp_path / "here")
    assert read("../*.txt", tmp_path) == ["above"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path):
    (tmp_path / "a[1].txt").write_text("bracket")
    assert read(str(tmp_path / "a[1].txt"), tmp_path) == ["bracket"]


def test_repetitions_and_blank_documents_are_dropped(tmp_path):
    rows = ["a b", "a  b\n", "   ", "", "c", "a b"]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    assert read(str(tmp_path / "a.jsonl"), tmp_path) == ["a b", "c"]


def test_a_lone_surrogate_becomes_the_replacement_character(tmp_path):
    (tmp_path / "a.jsonl").write_text(r'{"text": "a\ud800b"}')
    assert read(str(tmp_path / "a.jsonl"), tmp_path) == ["a\ufffdb"]


def test_the_description_follows_the_contents_and_not_the_place(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same")
    x, y = (str(tmp_path / name / "a.txt") for name in ("x", "y"))
    assert corpus.describe(data(x), Path()) == corpus.describe(data(y), Path())
    (tmp_path / "y" / "a.txt").write_text("other")
    assert corpus.describe(data(x), Path()) != corpus.describe(data(y), Path())


def test_a_dictionary_encoded_parquet_column_is_text(tmp_path):
    column = pa.array(["x", "y", "x"]).dictionary_encode()
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert read(str(tmp_path / "a.parquet"), tmp_path) == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2: not valid JSON"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', "line 2: list, not a JSON object"),
        ("a.jsonl", b'{"body": "x", "n": 1}\n', "line 1: no column 'text'; the columns are body"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: text is int, not text"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1: not UTF-8"),
        ("a.txt", b"abc\xff", r"not UTF-8 \(byte 3\)"),
        ("a.parquet", b"no parquet", "cannot be read as parquet"),
        ("a.csv", b"text", "is none of .txt, .jsonl, .parquet"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(str(tmp_path / name), tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"body": ["x"], "n": [1]}, "no column 'text'; the columns are body, n"),
        ({"text": [1]}, "column 'text' holds int64, not text"),
    ],
)
def test_check_finds_a_parquet_file_without_text(tmp_path, values, message):
    pq.write_table(pa.table(values), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message):
        corpus.check(data(str(tmp_path / "a.parquet")))


def test_check_reads_the_first_line_of_a_jsonl_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(UserError, match="the columns are body"):
        corpus.check(data(str(tmp_path / "a.jsonl")))
