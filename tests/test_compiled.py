"""C that is compiled at its first use: compilers and caches that are not as they should be."""

import json
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparse_dict.machine import compiled
from sparse_dict.storage import cache as caches
from sparse_dict.storage import files

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
    monkeypatch.setattr(subprocess, "run", None)
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


@pytest.mark.parametrize("cc", ["no-such-compiler", "false"])
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


def other(source: Path, tmp_path: Path) -> Path:
    """A library that another process has made, so that it is not loaded here."""
    source.write_text("int answer(void) { return 43; }")
    pid = os.fork()
    if pid == 0:
        os._exit(0 if compiled.library(source, ["-O1"]) is not None else 1)
    assert os.waitpid(pid, 0)[1] == 0
    (made,) = cached(tmp_path)
    return made / compiled.LIBRARY


@pytest.mark.parametrize("file", [compiled.LIBRARY, caches.HASHES])
@pytest.mark.parametrize("n", [0, 100, -1])
def test_a_library_that_was_cut_short_is_compiled_again(
    source: Path, tmp_path: Path, file: str, n: int
) -> None:
    made = other(source, tmp_path)
    whole = made.with_name(file).read_bytes()
    made.with_name(file).write_bytes(whole[:n])
    assert answer(source) == 43
    caches.ensure_sealed(made.parent, lambda _: pytest.fail("it was not mended"))


def test_a_library_of_somebody_else_is_not_loaded(source: Path, tmp_path: Path) -> None:
    """Be it where others can write, or theirs and with a hash that fits."""
    made = other(source, tmp_path)
    theirs = made.with_name("theirs.so")
    (tmp_path / "theirs.c").write_text("int answer(void) { return 666; }")
    compiler = compiled._compiler() or []
    command = [*compiler, "-shared", "-fPIC", str(tmp_path / "theirs.c"), "-o", str(theirs)]
    subprocess.run(command, check=True)
    theirs.replace(made)
    (made.parent / caches.HASHES).write_text(json.dumps({made.name: files.sha256_file(made)}))
    cache = made.parent.parent
    cache.chmod(0o777)
    assert answer(source) == 43
    cache.chmod(0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(made.parent, 12345, 12345)
    assert answer(source) == 43
    assert made.stat().st_uid == 0
    os.chown(cache, 12345, 12345)
    (made.parent / caches.HASHES).unlink()  # it would be made anew
    assert answer(source) == 43
    assert not (made.parent / caches.HASHES).exists()


def test_a_cache_named_by_a_relative_path_is_ignored(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert answer(source) == 42
    assert not (tmp_path / "here").exists()
    assert len(list((tmp_path / "home" / ".cache" / "sparse-dict").iterdir())) == 1
