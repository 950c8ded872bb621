"""What is typed, and what others' launchers set, before the first job of a launch begins."""

import signal
import subprocess
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from processes import HERE, ROOT, finished, said, started

from sparse_dict import tracking
from sparse_dict.config.ranges import shortened
from sparse_dict.launch.overrides import as_meant
from sparse_dict.machine import distributed


def run(command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    script, *arguments = command.split()
    return finished([sys.executable, str(ROOT / script), *arguments], cwd, {**HERE, **env})


# --- what was typed becomes something else --------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("name=12e4567,2024_01_15,007,3", 'name="12e4567","2024_01_15","007",3'),
        ("lm.revision=1e5", 'lm.revision="1e5"'),
        ("name=True", 'name="True"'),
        ("lm_dir=/x/step=10", 'lm_dir="/x/step=10"'),
        ("data.files=[größe.txt, a (1).txt]", 'data.files=["größe.txt","a (1).txt"]'),
        ("lm_dir=~/x", f"lm_dir={Path.home()}/x"),
        ("training.n_tokens=1e6,2_000", "training.n_tokens=1000000,2000"),
        ("baselines.ks=[1e1,2]", "baselines.ks=[10,2]"),
        *((same, same) for same in (
            "name=demo", "name=x-${seed}", "data.revision=null", "sae.l1=1e-2", "seed=range(0,3)",
            "training.n_tokens=1.5", "model.d_model=inf", "data=files", "+xyzzy=1e3", "-m",
        )),
    ],
)  # fmt: skip
def test_a_key_is_given_what_was_typed_for_it(typed: str, meant: str):
    assert as_meant(typed) == meant


LETTERS = st.characters(exclude_characters="'\"{}\\,[]~\t", exclude_categories=["C", "Z"])


@example("1_0")
@example("-.5e-3")
@example("a b=c")
@example("NaN")
@settings(max_examples=200, derandomize=True, database=None)
@given(st.text(LETTERS | st.sampled_from("0123456789._e-+ "), min_size=1).map(str.strip))
def test_hydra_gives_a_text_key_any_text(text: str):
    if text and text != "null" and not text.startswith(("=", "@")):
        override = OverridesParser.create().parse_override(as_meant(f"name={text}"))
        assert str(override.value()) == text


def job_folder(*typed: str) -> str:
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [as_meant(argument) for argument in typed]
        config = hydra.compose("train_sae", overrides, return_hydra_config=True)
    return Path(config.hydra.run.dir).name


def test_a_dictionary_has_one_folder_however_its_values_are_spelt():
    names = {job_folder(f"sae.l1={l1}", f"training.batch_size={n}", "sae.tied=true", "device=cpu")
             for l1, n in (("1e-2", "1e2"), ("0.01", "100"), (".01", "1_00"))}  # fmt: skip
    assert names == {"sae.l1=0.01,sae.tied=True,training.batch_size=100"}
    assert job_folder("name=x") == "default"
    assert job_folder("sae.site=2/mlp_post", "seed=1") == "sae.site=2-mlp_post,seed=1"


def test_a_folder_s_name_is_one_that_a_file_system_takes(tmp_path: Path):
    many = [
        *("aux_k", "resample_every", "perturb_every"),
        *("aux_coefficient", "freeze_above", "perturb_noise", "perturb_share"),
    ]
    long = ["intervention=freeze_perturb", *(f"sae.{key}=1" for key in many)] + [
        f"training.{key}=12345"
        for key in ("n_activations", "eval_rows", "l1_warmup_steps", "dead_window")
    ]
    names = {job_folder(*long, f"training.batch_size={n}") for n in (1, 2)}
    assert len(names) == 2
    for name in names:
        (tmp_path / name).mkdir()
    assert shortened("é" * 128, 128).encode()[-16:].isalnum()
    assert shortened("é" * 64, 128) == "é" * 64


# --- jobs of a launch -----------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "a.npy", np.random.default_rng(0).standard_normal((500, 4), "f"))
    return tmp_path


@pytest.mark.slow  # three seconds
def test_a_launch_over_studies_leaves_nothing_in_a_third(rows: Path):
    done = run(
        "train_sae.py -m name=12e4567,34e9999 activations_dir=rows sae.dict_size=8 device=cpu "
        "training.n_activations=1e2 training.batch_size=50 training.eval_rows=50 "
        "tracking.mode=disabled",
        rows,
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (rows / "outputs").iterdir()} == {"12e4567", "34e9999"}
    assert len(list(rows.glob("outputs/*/sae/sae.dict_size=8*/metrics.json"))) == 2


def test_a_grid_within_a_sweep_of_wandb_is_refused_in_one_line(tmp_path: Path):
    done = run("train_lm.py -m seed=1", tmp_path, WANDB_SWEEP_ID="x")
    assert done.returncode == 2
    assert done.stderr.startswith("train_lm.py: wandb's agent starts one job at")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# --- torchrun -------------------------------------------------------------------------------------


WHOLE = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}  # fmt: skip


def test_a_process_is_one_of_several_only_where_torchrun_has_started_it(
    monkeypatch: pytest.MonkeyPatch,
):
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.size()) == (1, 2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")  # what a queue or another library has set
    assert (distributed.rank(), distributed.size()) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_waits_for_other_processes_says_so_and_hears_signals(number: signal.Signals):
    code = "from sparse_dict.machine import distributed as d, interrupt\nd.WAIT_S = 0.1\n"
    code += "with interrupt.ending(), d.joined(): pass"
    process = started([sys.executable, "-c", code], ROOT, {**HERE, **WHOLE})
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line == "process 1: waiting for 2 processes at localhost:1\n"
    process.send_signal(number)
    said(process, 10)


# --- settings of libraries ------------------------------------------------------------------------


def test_a_user_without_a_home_needs_none():
    code = (
        "import pathlib, pwd\npwd.getpwuid = {}.__getitem__  # as in many containers\n"
        "from sparse_dict.launch import script\n"
        "script.start(lambda: print(pathlib.Path.home().is_dir(), pathlib.Path.home()))"
    )
    env = {key: value for key, value in HERE.items() if key != "HOME"}
    process = finished([sys.executable, "-c", code], ROOT, env)
    there, home = process.stdout.split()
    assert there == "True"
    assert not Path(home).exists()  # it is gone with the process


@pytest.mark.slow
def test_figures_do_not_depend_on_somebodys_matplotlib_settings(tmp_path: Path):
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nsavefig.transparent: True\n")
    code = (
        "import hashlib, pathlib; from sparse_dict.launch import script\n"
        "def main():\n    from sparse_dict.analysis.report import figures\n"
        "    with figures.style():\n        figure, _ = figures.plt.subplots()\n"
        "        png = figures.save(figure, pathlib.Path(), 'x').read_bytes()\n"
        "        print(hashlib.sha256(png).hexdigest())\n"
        "script.start(main)"
    )
    said = []
    for folder, backend in ((tmp_path, "nonsense"), (tmp_path.parent, "Agg")):
        env = {**HERE, "MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
        said.append(finished([sys.executable, "-c", code], folder, env).stdout)
    assert said[0] == said[1] != ""


# --- tracking that was asked for ------------------------------------------------------------------


def test_a_run_has_a_name_that_wandb_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(tracking, "_init", lambda mode, identity, *_: asked.append(identity))
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = hydra.compose("train_sae", [f"name={'n' * 200}", "tracking.mode=offline"])
    from sparse_dict.launch.jobs import typed

    tracking.open_run(typed(config), "train_sae", "a" * 200, tmp_path)
    assert all(len(asked[0][key]) == 128 for key in ("name", "group"))
