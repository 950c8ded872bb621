"""Whether a stage's folder holds what is asked for: finished, begun, or another's."""

import json
from pathlib import Path
from typing import Any

import pytest

from sparse_dict.activations import stage as harvest
from sparse_dict.analysis import stage as analysis
from sparse_dict.errors import UserError
from sparse_dict.lm import stage as lm
from sparse_dict.sae import stage as sae
from sparse_dict.storage.files import read_json
from sparse_dict.storage.output import MARK, Output

STAGES = [lm.OUTPUT, harvest.OUTPUT, sae.OUTPUT, analysis.OUTPUT]


def made_from(folder: Path) -> dict[str, Any] | None:
    for name in ("manifest.json", "checkpoint.json"):
        if (folder / name).exists():
            return read_json(folder / name)
    return None


OUTPUT = Output("harvest", "activations_dir", "manifest.json", made_from)
WANTED = {"config": {"seed": 0}, "model": "a"}


def test_a_result_is_begun_until_its_manifest_is_there(tmp_path: Path):
    assert not OUTPUT.is_finished(tmp_path / "new", WANTED)
    OUTPUT.begin(tmp_path)
    for name, finished in (("checkpoint.json", False), ("manifest.json", True)):
        (tmp_path / name).write_text(json.dumps(WANTED))
        assert OUTPUT.is_finished(tmp_path, WANTED) == finished
        assert OUTPUT.is_finished(tmp_path, {"config": {"seed": 0}}) == finished


@pytest.mark.parametrize("name", ["checkpoint.json", "manifest.json"])
@pytest.mark.parametrize(
    ("there", "key"),
    [({"config": {"seed": 1}, "model": "a"}, "seed is 1 there, 0 now"),
     ({"config": {"seed": 0}, "model": "b"}, "model is 'b' there, 'a' now"),
     ({"config": {"seed": 0}}, "model is None there, 'a' now"), ({}, "")],
)  # fmt: skip
def test_another_result_or_its_beginning_is_refused_by_the_first_key_that_differs(
    tmp_path: Path, name: str, there: dict[str, Any], key: str
):
    (tmp_path / name).write_text(json.dumps(there))
    line = f"was made with another config .*{key}.*choose another name= or activations_dir="
    with pytest.raises(UserError, match=line):
        OUTPUT.is_finished(tmp_path, WANTED)


@pytest.mark.parametrize("output", STAGES, ids=lambda output: output.stage)
def test_a_folder_that_this_project_did_not_make_is_refused(tmp_path: Path, output: Output):
    output.refuse_foreign(tmp_path)
    for name in (".hydra", "notes.log", ".lock", "wandb_run_id.txt"):
        (tmp_path / name).touch()
    output.refuse_foreign(tmp_path)
    for name in ("partial", "checkpoint"):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"holds {name}, which {output.stage} did not make"):
            output.refuse_foreign(tmp_path)
        (tmp_path / name).rmdir()
    (tmp_path / "x").write_text("")
    for other in STAGES:
        other.begin(tmp_path)
        if other is output:
            output.refuse_foreign(tmp_path)
        else:
            with pytest.raises(UserError, match="holds x, which"):
                output.refuse_foreign(tmp_path)


def test_what_was_begun_before_there_were_marks_is_known_by_what_hydra_noted(tmp_path: Path):
    (tmp_path / "partial").mkdir()
    (tmp_path / ".hydra").mkdir()
    noted = tmp_path / ".hydra" / "hydra.yaml"
    text = "hydra:\n  job:\n    name: {}\n  callbacks:\n    _target_: {}.launch.stage.CheckFirst\n"
    for name, package in (("train_lm", "sparse_dict"), ("harvest", "another")):
        noted.write_text(text.format(name, package))
        with pytest.raises(UserError, match="holds partial"):
            harvest.OUTPUT.refuse_foreign(tmp_path)
    noted.write_text(text.format("harvest", "sparse_dict"))
    harvest.OUTPUT.refuse_foreign(tmp_path)


@pytest.mark.parametrize("mark", ["", "harv", "harvest", "train_"])
def test_a_mark_that_was_cut_short_is_as_if_it_were_not_there(tmp_path: Path, mark: str):
    (tmp_path / MARK).write_text(mark)
    (tmp_path / "manifest.json").write_text(json.dumps(WANTED))
    assert OUTPUT.is_finished(tmp_path, WANTED)
    (tmp_path / "manifest.json").rename(tmp_path / "x")
    with pytest.raises(UserError, match="holds x, which harvest did not make"):
        OUTPUT.is_finished(tmp_path, WANTED)


def test_a_file_is_no_folder(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"activations_dir: .*file is not a folder"):
        OUTPUT.refuse_foreign(tmp_path / "file")
    assert not (tmp_path / MARK).exists()
