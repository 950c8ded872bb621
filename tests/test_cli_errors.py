"""Wrong command lines of the four scripts, in real processes: one line, and nothing is written."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import hydra
import messages
import pytest
from omegaconf import OmegaConf
from processes import HERE, ROOT, finished

from sparse_dict import config
from sparse_dict.launch import check_first, jobs

SCRIPTS = ("train_lm", "harvest", "train_sae", "analyze")

SHOWN = messages.PAGE.read_text(encoding="utf-8")


def run(script: str, *arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, str(ROOT / f"{script}.py"), *arguments], cwd, {**HERE, **env})


def sane(answer: messages.Answer) -> None:
    """One line, and before the stage itself nothing is written."""
    script = answer.command.split()[0]
    assert answer.code in (1, 2), answer
    assert "Traceback" not in answer.out + answer.err
    assert len(answer.message.splitlines()) == 1, answer
    if answer.kind != messages.LATER:
        assert answer.out == ""
        assert answer.message.startswith(f"{script}: ")
        assert answer.written == []


def forked(*arguments: str) -> str:
    """What tests/messages.py prints, in a process that has no other threads."""
    command = [sys.executable, str(ROOT / "tests" / "messages.py"), "--json", *arguments]
    process = finished(command, ROOT, {**HERE, "OMP_NUM_THREADS": "1"})
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_wrong_command_of_each_kind_costs_the_line_that_the_page_of_messages_shows() -> None:
    found = [messages.Answer(**each) for each in json.loads(forked("--first"))]
    assert len(found) == SHOWN.count("\n## ")
    for answer in found:
        sane(answer)
        assert f": {messages.in_code(answer)}\n" in SHOWN


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_of_messages_is_what_the_scripts_say() -> None:
    found = [messages.Answer(**each) for each in json.loads(forked())]
    assert len(found) >= 30
    assert {answer.command.split(".")[0] for answer in found} == set(SCRIPTS)
    for answer in found:
        sane(answer)
    assert messages.page(SHOWN, found) == SHOWN, "python tests/messages.py writes it anew"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("train_lm model.d_modle=64", 1),
        ("analyze analysis.matching=max", 1),
        ("harvest name=x", 2),
        ("train_sae name=x -m sae.dict_size=-3,64", 2),
    ],
)
def test_a_wrong_command_line_of_a_real_process_costs_one_line_and_writes_nothing(
    tmp_path: Path, command: str, code: int
) -> None:
    process = run(*shlex.split(command), cwd=tmp_path)
    assert process.returncode == code
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith(f"{command.split()[0]}.py: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_flag_of_a_multirun_may_stand_anywhere(tmp_path: Path) -> None:
    swept = "sae.dict_size=0,1"
    lines = {
        run("train_sae", *order.split(), cwd=tmp_path).stderr
        for order in (f"-m seed=0 {swept}", f"seed=0 -m {swept}", f"seed=0 {swept} --multirun")
    }
    said = "seed=0 sae.dict_size=0: sae.dict_size must be positive, not 0"
    assert lines == {f"train_sae.py: {said}\n"}


@pytest.mark.slow
def test_the_answer_comes_within_three_seconds(tmp_path: Path) -> None:
    seconds = []
    for script in SCRIPTS:
        start = time.monotonic()
        run(script, "seeed=1", cwd=tmp_path)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 3  # 0.5 on an idle machine; the least, because others may work beside us


def test_the_whole_traceback_is_there_for_who_asks(tmp_path: Path) -> None:
    process = run("train_sae", "sae.dict_sise=1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "ConfigCompositionException" in process.stderr


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(
        "import hydra\n"
        "from sparse_dict.launch import script\n"
        "@hydra.main(version_base='1.3', config_path=None)\n"
        "def main(config):\n"
        "    raise KeyError('a bug')\n"
        "script.start(main)\n"
    )
    process = run(str(tmp_path / "app"), cwd=tmp_path)
    assert process.returncode == 1
    assert process.stderr.endswith("KeyError: 'a bug'\n")
    assert 'app.py", line 5, in main' in process.stderr


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(("bug", "line"), [(KeyError("bug"), "KeyError: 'bug'\n"), (Odd(), "")])
def test_any_error_of_a_check_ends_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bug: Exception, line: str
) -> None:
    """Hydra would make a warning of it and go on, unchecked."""
    monkeypatch.setattr(check_first.distributed, "size", mock.Mock(side_effect=bug))
    handlers = {"root": {"handlers": ["console"]}}
    hydra_part = {"job": {"chdir": False}, "job_logging": handlers, "hydra_logging": handlers}
    with pytest.raises(SystemExit) as ended:
        check_first.CheckFirst().on_multirun_start(OmegaConf.create({"hydra": hydra_part}))
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(line)


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
    text = re.sub(r"\|\n +", "|", text)
    here = {path.stem for path in (ROOT / "conf" / script / "experiment").glob("*.yaml")}
    (choices,) = re.findall(r"experiment=(\S+\|\S+)", text)
    assert set(choices.split("|")) == here
    for group, names in re.findall(r"^  ([\w/]+)=(\S+)$", text, re.MULTILINE):
        known = config.choices(f"{script}/experiment" if group == "experiment" else group)
        assert set(names.split("|")) <= {*known, "basic", "ensemble"}
    examples = re.findall(rf"^  python {script}\.py(.*)$", text, re.MULTILINE)
    assert 4 <= len(examples) <= 6
    assert any(" -m " in example for example in examples)
    for example in examples:
        overrides = [part for part in shlex.split(example, comments=True) if part != "-m"]
        if any("hydra/sweeper" in part or part == "experiment=probe" for part in overrides):
            continue  # needs an extra; asks the activations for their width
        compose(script, [re.sub(r"=([^\[]*?),.*", r"=\1", part) for part in overrides])


def compose(script: str, overrides: list[str]) -> None:
    """Compose a job's config; Hydra raises if an override means nothing."""
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        jobs.typed(hydra.compose(script, overrides))


def completed(line: str) -> list[str]:
    """What bash offers at the end of `line`, by the function that Hydra installs."""
    script = f"""
eval "$(python {line.split()[1]} -sc install=bash)"
COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_CWORD={len(line.split()) - 1}
hydra_bash_completion
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = finished(["bash", "-c", script], ROOT, {**HERE, "PATH": python})
    assert process.stderr == ""
    return process.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("python train_lm.py model.d_", ["model.d_mlp=", "model.d_model="]),
        pytest.param("python train_sae.py sae=un", ["sae=untied"], marks=pytest.mark.slow),
        pytest.param(
            "python harvest.py name=x experiment=",
            [
                f"experiment={name}"
                for name in ("demo", "neuron_basis", "other_model", "paper", "sites", "toy")
            ],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "python analyze.py comparison.m",
            ["comparison.match_limit=", "comparison.matching=", "comparison.max_fvu="],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_shell_completes_keys_and_choices(line: str, offered: list[str]) -> None:
    assert sorted(completed(line)) == offered


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [(["--help"], "dict_size"), (["-c", "job"], "dict_size"), (["-sc", "query=bash"], "sae=tied")],
)
def test_questions_to_a_script_load_nothing_heavy(arguments: list[str], shown: str) -> None:
    code = (
        "import runpy, sys, sparse_dict\n"
        "assert not {'numpy', 'hydra'} & set(sys.modules)\n"
        f"sys.argv = ['train_sae.py', *{arguments}]\n"
        "try:\n"
        "    runpy.run_path('train_sae.py', run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'wandb', 'datasets', 'seaborn', 'scipy', 'sklearn'}\n"
        "    assert not heavy & set(sys.modules)\n"
        "    assert 'hydra_plugins.sparse_dict_launcher.launchers' in sys.modules\n"
    )
    line = "python train_sae.py sae=t"
    env = {**HERE, "COMP_LINE": line, "COMP_POINT": str(len(line))}
    process = finished([sys.executable, "-c", code], ROOT, env)
    assert process.returncode == 0, process.stderr
    assert shown in process.stdout
