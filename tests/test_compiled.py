"""C that is compiled at its first use: compilers and caches that are not as they should be."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparse_dict.machine import compiled

pytestmark = pytest.mark.skipif(compiled._compiler() is None, reason="needs a C compiler")


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny source, an empty cache, and a compiler that is looked for anew."""
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / "answer.c"
    path.write_text("int answer(void) { return 42; }")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    compiled._compiler.cache_clear()
    yield path
    compiled._compiler.cache_clear()


def answer(source: Path) -> int:
    library = compiled.library(source, ["-O1"])
    assert library is not None
    return int(library.answer())


def cached(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "sparse-dict").iterdir())


def test_it_is_compiled_once_and_nothing_else_is_left(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(source) == 42
    (made,) = cached(tmp_path)
    monkeypatch.setattr(compiled, "_built", None)
    assert answer(source) == 42
    assert cached(tmp_path) == [made]


def test_cc_may_be_several_words(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "two words"
    wrapper.write_text('#!/bin/sh\necho "$1" > "$0.said"\nexec "$@"\n')
    wrapper.chmod(0o755)
    (found,) = compiled._compiler() or []
    compiled._compiler.cache_clear()
    monkeypatch.setenv("CC", f"'{wrapper}' {found}")
    assert answer(source) == 42
    assert Path(f"{wrapper}.said").read_text().strip() == found


@pytest.mark.parametrize("cc", ["no-such-compiler", "'gcc", "false"])
def test_a_compiler_that_does_not_work_is_one_warning(
    source: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cc: str
) -> None:
    monkeypatch.setenv("CC", cc)
    with caplog.at_level(logging.WARNING):
        assert compiled.library(source, []) is None
    (record,) = caplog.records
    assert "by torch instead of compiled loops" in record.getMessage()


@pytest.mark.parametrize("trouble", ["a file is in its place", "it is read-only"])
def test_a_cache_that_cannot_be_written_to_is_done_without(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    if trouble == "it is read-only":
        folder, may = tmp_path / "cache" / "sparse-dict", os.access
        folder.mkdir(parents=True)
        # permissions mean nothing to root
        monkeypatch.setattr(os, "access", lambda path, mode: path != folder and may(path, mode))
    else:
        (tmp_path / "cache").write_text("")
    assert answer(source) == 42
    assert not list(tmp_path.glob("sparse-dict-*"))
    assert not list(tmp_path.glob("cache/sparse-dict/*"))


@pytest.mark.parametrize("damage", [b"", b"\x7fELF and no more"])
def test_a_damaged_library_is_made_anew(source: Path, tmp_path: Path, damage: bytes) -> None:
    assert compiled.library(source, ["-O0"]) is not None  # another one, which stays loaded
    assert compiled._compiler() is not None
    (tmp_path / "src" / "answer.c").write_text("int answer(void) { return 43; }")
    before = {*cached(tmp_path)}
    key = _path_of(source, tmp_path, before)
    key.write_bytes(damage)
    assert answer(source) == 43
    assert key.read_bytes() != damage


def _path_of(source: Path, tmp_path: Path, before: set[Path]) -> Path:
    """Where the library of `source` is kept; it is made by another process, so not loaded here."""
    pid = os.fork()
    if pid == 0:
        os._exit(0 if compiled.library(source, ["-O1"]) is not None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    (made,) = {*cached(tmp_path)} - before
    return made
