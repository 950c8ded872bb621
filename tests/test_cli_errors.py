"""Wrong command lines of the four scripts, in real processes: one line, and nothing is written."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("train_lm", "harvest", "train_sae", "analyze")

# What is typed, and what the line must hold.
WRONG = {
    # a key that does not exist
    "train_lm model.d_modle=64": "no key model.d_modle: did you mean model.d_model?",
    "train_lm d_mlp=64": "no key d_mlp: did you mean model.d_mlp?",
    "harvest harvest.layr=1": "no key harvest.layr: did you mean harvest.layer?",
    "train_sae sae.dict_sise=64": "no key sae.dict_sise: did you mean sae.dict_size?",
    "train_sae sae.lr=0.1": "no key sae.lr: did you mean optimizer.lr?",
    "train_sae experiments=toy": "no key experiments: did you mean experiment?",
    "train_sae launcher=joblib": "no key launcher: did you mean hydra/launcher?",
    "train_sae +sae.dead_=auxk": "no key sae.dead_: did you mean sae.dead?",
    "train_sae xyzzy=1": "no key xyzzy (--cfg job shows all keys)",
    "analyze analysis.mathcing=max": "did you mean analysis.matching?",
    "train_sae -m hydra.sweep.dirr=x": "did you mean hydra.sweep.dir? (--cfg hydra shows all keys)",
    # the same in a sweep
    "train_lm -m model.d_modle=32,64": "no key model.d_modle: did you mean model.d_model?",
    "train_sae -m sae.dict_sise=64,128": "no key sae.dict_sise: did you mean sae.dict_size?",
    "train_sae -m hydra/launcher=basic sae.dict_sise=1,2": "did you mean sae.dict_size?",
    # a choice that does not exist
    "train_lm data=docstring": "no data=docstring: did you mean docstrings?",
    "train_sae sae=untide": "no sae=untide: did you mean untied? (there is batch_topk, jumprelu,",
    "analyze experiment=demoo": "no experiment=demoo: did you mean demo? (there is artefact,",
    "train_sae hydra/launcher=ensembl": "did you mean ensemble?",
    "train_sae model=gpt": "model is no group of this script",
    "train_sae --config-name=foo": "Cannot find primary config 'foo'.",
    # a value of the wrong type
    "train_lm model.d_model=wide": "model.d_model=wide: Value 'wide' of type 'str' could not be",
    "train_sae sae.tied=maybe": "sae.tied=maybe: Value 'maybe' is not a valid bool",
    "train_sae sae.l1=": "sae.l1=: Value '' of type 'str' could not be converted to Float",
    "analyze analysis.threshold=high": "could not be converted to Float",
    # a value out of range
    "train_lm training.batch_size=0": "training.batch_size must be positive, not 0",
    "train_lm -m training.batch_size=-1,8": "training.batch_size must be positive, not -1",
    "train_lm model.n_heads=5": "must be a multiple of model.n_heads (5)",
    "harvest harvest.layer=-1": "harvest.layer must not be negative, not -1",
    "train_sae sae.dict_size=-3": "sae.dict_size must be positive, not -3",
    "train_sae -m sae.dict_size=-3,64": "sae.dict_size=-3: sae.dict_size must be positive, not -3",
    "train_sae sae.l1=-1e-3": "sae.l1 must not be negative, not -0.001",
    "train_sae sae=topk sae.k=512": "sae.k (512) is larger than sae.dict_size (256)",
    "train_sae name=../elsewhere": "name must be a plain folder name, not '../elsewhere'",
    "train_sae device=abacus": "device must be auto, cpu, cuda, cuda:N or mps, not 'abacus'",
    "analyze analysis.against=all": "analysis.against must be one of",
    "analyze seed=-1": "seed must not be negative, not -1",
    # what Hydra cannot read
    "train_sae sae.dict_size 64": "cannot read 'sae.dict_size': an override is key=value",
    "train_lm [1,2]": "cannot read '[1,2]': an override is key=value",
    "train_sae sae.dict_size=64,128": "sae.dict_size=64,128 holds several values: add -m",
    "train_sae +sae.dict_size=64": "An item is already at 'sae.dict_size'",
    "train_sae ~sae.l2": "'sae.l2' does not exist",
    "harvest 'name=${nmae}'": "name: Interpolation key 'nmae' not found",
    "train_sae 'hydra.run.dir=${nmae}'": "hydra.run.dir: Interpolation key 'nmae' not found",
    "train_sae --resolve": "The --resolve flag can only be used in conjunction with",
}


def run(script: str, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), *arguments],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_line_costs_one_line_and_writes_nothing(
    tmp_path: Path, command: str
) -> None:
    process = run(*shlex.split(command), cwd=tmp_path)
    assert process.returncode in (1, 2)
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"{command.split()[0]}.py: ")
    assert WRONG[command] in line
    assert list(tmp_path.iterdir()) == []


def test_the_answer_comes_within_three_seconds(tmp_path: Path) -> None:
    seconds = []
    for script in SCRIPTS:
        start = time.monotonic()
        run(script, "seeed=1", cwd=tmp_path)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 3  # 0.5 on an idle machine; the least, because others may work beside us


def test_a_single_run_leaves_the_folder_of_another_result_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "a.npy", np.ones((300, 4), dtype=np.float32))
    folder = tmp_path / "outputs" / "x" / "sae" / "default"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"record": {"config": {"seed": 7}}}')
    command = "name=x activations_dir=rows training.eval_rows=100 training.batch_size=100"
    process = run("train_sae", *command.split(), f"hydra.run.dir={folder}", cwd=tmp_path)
    assert process.returncode == 2
    assert f"{folder} was trained differently (config.seed: 7 there, 0 here)" in process.stderr
    assert process.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["metrics.json"]


def test_the_whole_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    process = run("train_sae", "sae.dict_sise=1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ConfigCompositionException" in process.stderr


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "from sparse_dict import cli\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(config):\n"
        "    raise KeyError('a bug')\n"
        "cli.run(main)\n"
    )
    process = subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 1
    assert process.stderr.endswith("KeyError: 'a bug'\n")
    assert 'app.py", line 5, in main' in process.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_what_this_script_takes_and_its_examples_compose(
    script: str, tmp_path: Path
) -> None:
    process = run(script, "--help", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    text = process.stdout
    assert len(text.splitlines()) < 35
    assert max(map(len, text.splitlines())) <= 100
    assert "schema" not in text
    here = {path.stem for path in (ROOT / "conf" / script / "experiment").glob("*.yaml")}
    (choices,) = re.findall(r"experiment=(\S+\|\S+)", text)
    assert set(choices.split("|")) == here
    for group, names in re.findall(r"^  ([\w/]+)=(\S+)$", text, re.MULTILINE):
        folder = ROOT / "conf" / (f"{script}/experiment" if group == "experiment" else group)
        known = {path.stem for path in folder.glob("*.yaml")} | {"basic", "ensemble"}
        assert set(names.split("|")) <= known
    examples = re.findall(rf"^  python {script}\.py(.*)$", text, re.MULTILINE)
    assert 4 <= len(examples) <= 6
    assert any(" -m " in example for example in examples)
    for example in examples:
        overrides = [part for part in shlex.split(example, comments=True) if part != "-m"]
        if any("hydra/sweeper" in part for part in overrides):
            continue  # needs an extra
        compose(script, [re.sub(r"=([^\[]*?),.*", r"=\1", part) for part in overrides])


def compose(script: str, overrides: list[str]) -> None:
    """Compose a job's config; Hydra raises if an override means nothing."""
    import hydra

    from sparse_dict import stage

    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        stage.typed(hydra.compose(script, overrides))
