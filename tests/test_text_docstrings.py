import json
from pathlib import Path

import pytest

from sparse_dict.config import DocstringsData
from sparse_dict.errors import UserError
from sparse_dict.text import corpus, docstrings
from sparse_dict.text.extract import docstrings as docstrings_of
from sparse_dict.text.extract import extract

LONG = "Describes something at such length that it is worth keeping."


def install(site: Path, name: str, version: str, sources: dict[str, str]) -> None:
    """A distribution as pip leaves it: sources, METADATA and RECORD."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in sources))
    for path, source in sources.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(source)


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    install(
        folder,
        "fake-lib",
        "1.0",
        {
            "fakelib/__init__.py": f'"""Module. {LONG}"""\nraise RuntimeError("imported")\n',
            "fakelib/a.py": f'def f():\n    """First. {LONG}"""\n\nclass C:\n    """Short."""\n',
            "fakelib/b.py": f'def g():\n    """First.  \n    {LONG}"""\n',
            "fakelib/broken.py": f'def (:\n    """Broken. {LONG}"""\n',
        },
    )
    monkeypatch.syspath_prepend(str(folder))
    return folder


def data(packages: list[str] | None) -> DocstringsData:
    return DocstringsData(val_fraction=0.2, packages=packages, min_chars=40)


def test_docstrings_of_modules_classes_and_functions_are_found_wherever_they_nest():
    source = b'''"""module"""
if True:
    try:
        class C:
            """class"""
            async def f(self):
                """function"""
                def inner():
                    """inner"""
    except ValueError:
        def g():
            """handler"""
not_a_docstring = """assigned"""
'''
    assert set(docstrings_of(source)) == {"module", "class", "function", "inner", "handler"}


def test_docstrings_attached_by_a_call_are_found():
    source = (
        b'torch.add_docstr(torch.f, r"""f(x) {y}""".format(y=1))\nadd_newdoc("m", ("g", "g(x)"))'
    )
    assert set(docstrings_of(source)) == {"f(x) {y}", "m", "g", "g(x)"}


def test_docstrings_are_cleaned_and_short_ones_left_out(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(
        'def f():\n    """One.\n\n    Two.\n      Three.\n    """\n\ndef g():\n    """No."""\n'
    )
    assert extract([str(path), str(tmp_path / "gone.py")], 5) == ["One.\n\nTwo.\n  Three."]


def test_a_package_is_read_without_being_imported_and_repetitions_count_once(site, tmp_path):
    texts = list(corpus.Documents(data(["fakelib"]), tmp_path))
    assert len(texts) == 2
    assert {text.split()[0] for text in texts} == {"Module.", "First."}


def test_the_corpus_is_read_from_the_cache_the_second_time(site, tmp_path, monkeypatch):
    first = list(corpus.Documents(data(["fakelib"]), tmp_path))
    monkeypatch.delattr(docstrings, "_extract")
    assert list(corpus.Documents(data(["fakelib"]), tmp_path)) == first


def test_a_cached_corpus_that_has_changed_is_not_read(site, tmp_path):
    list(corpus.Documents(data(["fakelib"]), tmp_path))
    (path,) = tmp_path.rglob("documents.jsonl")
    path.write_text(path.read_text().replace("First", "Fifth"))
    with pytest.raises(UserError, match=r"documents\.jsonl has changed .*: delete"):
        list(corpus.Documents(data(["fakelib"]), tmp_path))


def test_worker_processes_give_the_same_corpus_as_one(site, tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "available_cores", lambda: 1)
    alone = list(corpus.Documents(data(["fakelib"]), tmp_path / "one"))
    monkeypatch.setattr(docstrings, "available_cores", lambda: 2)
    monkeypatch.setattr(docstrings, "FILES_A_TASK", 2)
    assert list(corpus.Documents(data(["fakelib"]), tmp_path / "two")) == alone


def test_another_version_of_a_package_is_another_corpus(site, tmp_path, monkeypatch):
    before = corpus.describe(data(["fakelib"]), Path())
    assert before["versions"] == {"fake-lib": "1.0"}
    newer = tmp_path / "newer"
    install(newer, "fake-lib", "2.0", {"fakelib/__init__.py": ""})
    monkeypatch.syspath_prepend(str(newer))
    assert corpus.describe(data(["fakelib"]), Path())["versions"] == {"fake-lib": "2.0"}


def test_every_installed_distribution_is_described_but_this_project():
    described = corpus.describe(data(None), Path())
    assert {"numpy", "torch", "tiktoken"} <= set(described["versions"])
    assert "sparse-dict" not in described["versions"]
    json.dumps(described)


def test_an_unknown_package_is_named_with_its_nearest_neighbour(site):
    with pytest.raises(UserError, match=r"'fakelob' is installed; did you mean fakelib\?"):
        corpus.check(data(["fakelob"]))


def test_an_empty_list_of_packages_is_refused():
    with pytest.raises(UserError, match="packages is empty"):
        corpus.check(data([]))
