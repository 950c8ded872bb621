"""What `pip install .` brings: the package, typed, and nothing else."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUILD = "from setuptools import build_meta; build_meta.build_wheel('dist')"  # needs no network


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("wheel") / "repository"
    ignored = shutil.ignore_patterns(".*", "outputs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=ignored)
    subprocess.run([sys.executable, "-c", BUILD], cwd=copy, check=True, capture_output=True)
    (path,) = (copy / "dist").glob("*.whl")
    return path


needs_setuptools = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None, reason="needs setuptools 77 or newer"
)


@pytest.mark.slow
@needs_setuptools
def test_the_wheel_holds_the_whole_package_and_no_other_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (listed,) = (name for name in held if name.endswith("top_level.txt"))
        assert archive.read(listed).decode().split() == ["sparse_dict"]
    package = {name for name in held if ".dist-info/" not in name}
    assert package == {
        str(path.relative_to(ROOT))
        for path in (ROOT / "sparse_dict").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "sparse_dict/py.typed" in package


@pytest.mark.slow
@needs_setuptools
def test_what_was_installed_works_far_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "site")}

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True,
            check=True,
        ).stdout  # fmt: skip

    where = run("-c", "import sparse_dict; sparse_dict.load_study; print(sparse_dict.__file__)")
    assert Path(where.strip()).is_relative_to(tmp_path / "site")
    (tmp_path / "study").mkdir()
    assert "train_lm   not started" in run("-m", "sparse_dict.status", "study")
