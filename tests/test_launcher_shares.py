"""A launch in shares: real processes of joblib, submitit, ray and of a stand-in for Slurm."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import launcher_app
import numpy as np
import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_store import ConfigStore
from launcher_app import launch, logged, worker
from omegaconf import OmegaConf
from processes import ROOT, finished

from hydra_plugins.sparse_dict_launcher import launchers
from hydra_plugins.sparse_dict_launcher.launchers import OwnConfigs, cores_of, split
from sparse_dict.errors import UserError
from sparse_dict.launch.jobs import Job
from sparse_dict.machine.interrupt import Interrupted


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launcher_app.write(tmp_path_factory.mktemp("app"))


def job(number: int, weight: float) -> Job:
    return Job(number, (), OmegaConf.create(), Path(str(number)), weight)


def test_shares_weigh_about_the_same_and_keep_the_order() -> None:
    weights = [1, 8, 2, 4, 1, 8, 4, 4]
    shares = split([job(i, w) for i, w in enumerate(weights)], 3)
    assert sorted(j.number for share in shares for j in share) == list(range(8))
    assert all(share == sorted(share, key=lambda j: j.number) for share in shares)
    sums = [sum(j.weight for j in share) for share in shares]
    assert max(sums) - min(sums) <= 2


def test_there_are_no_more_shares_than_jobs() -> None:
    assert [[j.number for j in share] for share in split([job(3, 1), job(4, 1)], 8)] == [[3], [4]]


@pytest.mark.parametrize("n_shares", [1, 2, 3, 7])
def test_every_core_is_in_use_and_no_worker_without_one(n_shares: int) -> None:
    shares = cores_of(n_shares)
    assert len(shares) == n_shares
    assert all(shares)
    here = os.sched_getaffinity(0)
    assert {core for cores in shares for core in cores} <= here
    if n_shares <= len(here):
        assert sorted(core for cores in shares for core in cores) == sorted(here)


JOBLIB = "hydra/launcher=joblib"
LAUNCHERS = [
    pytest.param("joblib", "joblib"),
    pytest.param("submitit_local", "submitit"),
    pytest.param("ray", "ray", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("launcher", "package"), LAUNCHERS)
def test_two_workers_train_a_share_each(
    app: Path, tmp_path: Path, launcher: str, package: str
) -> None:
    pytest.importorskip(package)
    bare = {"PATH": str(tmp_path)} if package == "joblib" else {}  # as a container without pgrep
    process = launch(app, tmp_path, f"hydra/launcher={launcher}", "size=3,1,14,2,7", **bare)
    assert process.returncode == 1, process.stdout + process.stderr
    runs = tmp_path / "runs"
    for size in (3, 1, 2, 7):
        folder = runs / f"size={size}"
        assert f"size: {size}\n" in (folder / ".hydra" / "config.yaml").read_text()
        assert (folder / ".hydra" / "overrides.yaml").read_text() == f"- size={size}\n"
        assert f"training {size}" in logged(folder)
    assert logged(runs / "size=14")[:2] == ["batch of 1", "training 14"]
    assert logged(runs / "size=3")[0] == "batch of 4"
    pids, cores = ({worker(runs / f"size={size}")[i] for size in (3, 1)} for i in (0, 2))
    assert len(pids) == 1, "one process a share"
    assert "#2 size=14 failed: Unsendable: this and that" in process.stdout
    assert "Traceback" not in process.stderr
    assert len(cores.pop().split(",")) == max(1, len(os.sched_getaffinity(0)) // 2)


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "package"), LAUNCHERS)
def test_dictionaries_of_shares_are_those_of_one_ensemble(
    tmp_path: Path, launcher: str, package: str
) -> None:
    pytest.importorskip(package)
    (tmp_path / "rows").mkdir()
    rows = np.random.default_rng(0).standard_normal((5000, 16), dtype=np.float32)
    np.save(tmp_path / "rows" / "a.npy", rows)
    weights = {}
    for name in ("ensemble", launcher):
        command = f"""
            -m hydra/launcher={name} name={name} activations_dir=rows tracking.mode=disabled
            sae.dict_size=16,32 training.n_activations=4000 training.batch_size=100
            training.eval_rows=500
        """
        script = str(ROOT / "train_sae.py")
        process = finished([sys.executable, script, *command.split()], tmp_path)
        assert process.returncode == 0, process.stdout + process.stderr
        files = sorted((tmp_path / "outputs" / name / "sae").glob("*/sae_weights.safetensors"))
        weights[name] = [file.read_bytes() for file in files]
        assert len(weights[name]) == 2
    assert weights["ensemble"] == weights[launcher]


@pytest.mark.parametrize(
    ("error", "caught"),
    [(Interrupted(143), True), (KeyboardInterrupt(), True), (SystemExit(-1), False)],
)
def test_a_share_lets_submitit_exit_and_tells_of_an_interrupt(monkeypatch, error, caught) -> None:
    """With -1 submitit ends a job that it has queued again."""

    def train(*_: object) -> None:
        raise error

    monkeypatch.setattr(launchers, "train_together", train)
    monkeypatch.setattr(launchers, "configure_log", lambda *_: None)
    monkeypatch.setattr(os, "chdir", lambda _: None)
    config = OmegaConf.create(
        {"hydra": {"runtime": {"cwd": ".", "version_base": "1.3"}, "job": {"name": "x"},
                   "hydra_logging": None, "verbose": False}}
    )  # fmt: skip
    share = launchers.Share([Job(0, (), config, Path("0"))], "json", None)
    if caught:
        assert isinstance(share(), UserError)
    else:
        with pytest.raises(SystemExit) as ended:
            share()
        assert ended.value.code == -1


@pytest.mark.slow
def test_workers_share_the_cores_and_the_gpus(app: Path, tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    process = launch(
        app, tmp_path, JOBLIB, "size=1,2", "hydra.launcher.gpus=2", CUDA_VISIBLE_DEVICES="4,6,7"
    )
    assert process.returncode == 0, process.stderr
    first, second = (worker(tmp_path / "runs" / f"size={size}") for size in (1, 2))
    assert first[0] != second[0]
    if len(os.sched_getaffinity(0)) > 1:
        assert not set(first[2].split(",")) & set(second[2].split(","))
    assert {first[3], second[3]} == {"4", "6"}


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        pytest.param(66, "its worker ended: ", marks=pytest.mark.slow),
        (77, "interrupted: the same command goes on from the last"),
    ],
)
def test_a_worker_that_dies_leaves_the_other_shares_alone(
    app: Path, tmp_path: Path, size: int, reason: str
) -> None:
    pytest.importorskip("joblib")
    process = launch(app, tmp_path, JOBLIB, f"size=5,{size}")
    assert process.returncode == 1
    assert "failed: " + reason in process.stdout
    assert "Traceback" not in process.stdout + process.stderr
    assert logged(tmp_path / "runs" / "size=5")[:2] == ["batch of 1", "training 5"]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["size=1,-2"], "app.py: size=-2: size must not be negative"),
        (
            ["hydra.launcher.n_shares=0"],
            "app.py: hydra/launcher=joblib needs hydra.launcher.n_shares of at least 1, not 0",
        ),
        (
            ["hydra/launcher=submitit_slurm"],
            "app.py: hydra/launcher=submitit_slurm needs ",
        ),
        (
            ["hydra/launcher=ray", "hydra.launcher.address=auto"],
            "app.py: hydra/launcher=ray on a cluster needs hydra.launcher.num_cpus",
        ),
    ],
)
def test_what_cannot_work_is_told_in_one_line_before_anything_is_written(
    app: Path, tmp_path: Path, overrides: list[str], line: str
) -> None:
    pytest.importorskip("joblib")
    process = launch(app, tmp_path, JOBLIB, *overrides)
    assert process.returncode == 2
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("launcher", "package", "extra"),
    [("joblib", "joblib", "joblib"), ("submitit_local", "submitit", "slurm"),
     ("submitit_slurm", "submitit", "slurm"), ("ray", "ray", "ray")],
)  # fmt: skip
def test_a_missing_package_names_the_extra_that_brings_it(
    app: Path, tmp_path: Path, launcher: str, package: str, extra: str
) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    process = launch(app, tmp_path, f"hydra/launcher={launcher}")
    assert process.returncode == 2
    assert process.stderr == (
        f"app.py: hydra/launcher={launcher} needs {package}: pip install -e '.[{extra}]'\n"
    )


def test_a_plugin_that_stores_a_config_of_the_same_name_does_not_hide_ours() -> None:
    store = ConfigStore.instance()
    for name in ("joblib", "another"):
        store.store(group="hydra/launcher", name=name, node={"n_jobs": 1})
    OwnConfigs().manipulate_search_path(ConfigSearchPathImpl())
    assert "joblib.yaml" not in store.list("hydra/launcher")
    assert "another.yaml" in store.list("hydra/launcher")


# What submitit needs of Slurm: sbatch starts each job of an array, sacct says that all run.
SBATCH = """#!{python}
import os, re, subprocess, sys
script = sys.argv[-1]
text = open(script).read()
open({log!r}, "w").write(text)
first, last = re.search(r"--array=(\\d+)-(\\d+)", text).groups()
for task in range(int(first), int(last) + 1):
    env = dict(
        os.environ,
        SLURM_JOB_ID=str(100 + task),
        SLURM_ARRAY_JOB_ID="99",
        SLURM_ARRAY_TASK_ID=str(task),
        SLURM_JOB_NUM_NODES="1",
        SLURM_NTASKS="1",
        SLURM_JOB_NODELIST="here",
        SLURM_NODEID="0",
        SLURM_PROCID="0",
        SLURM_LOCALID="0",
    )
    quiet = subprocess.DEVNULL
    subprocess.Popen(["bash", script], env=env, stdout=quiet, stderr=quiet)
print("Submitted batch job 99")
"""
SRUN = """#!{python}
import os, sys
command = sys.argv[sys.argv.index({python!r}):]
os.execv(command[0], command)
"""
SACCT = """#!/bin/sh
echo 'JobID|State|NodeList'
echo '99_0|RUNNING|here'
echo '99_1|RUNNING|here'
"""


def test_slurm_gets_an_array_with_the_options_set(app: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "sbatch": SBATCH.format(python=sys.executable, log=str(tmp_path / "batch.sh")),
        "srun": SRUN.format(python=sys.executable),
        "sacct": SACCT,
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    process = launch(
        app,
        tmp_path,
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.n_shares=2",
        "hydra.launcher.partition=gpu",
        "hydra.launcher.mem_gb=1.5",
        "hydra.launcher.setup=[true]",
        "+hydra.launcher.additional_parameters.reservation=spring",
        "size=1,2,3",
        PATH=f"{tools}{os.pathsep}{os.environ['PATH']}",
        OMP_NUM_THREADS="1",
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert logged(tmp_path / "runs" / "size=3")[:2] == ["batch of 1", "training 3"]
    assert logged(tmp_path / "runs" / "size=1")[:2] == ["batch of 2", "training 1"]
    script = (tmp_path / "batch.sh").read_text()
    for option in ("array=0-1%2", "partition=gpu", "mem=1536M", "reservation=spring", "time=240"):
        assert f"#SBATCH --{option}" in script


def test_optuna_gets_the_objectives_of_every_batch(app: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    process = launch(
        app,
        tmp_path,
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.params=null",
        "size=choice(1,2)",  # of three trials two are the same, and need one folder only
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert len(re.findall("Launching [12] jobs together", process.stdout)) == 2
    tried = [int(path.name.removeprefix("size=")) for path in (tmp_path / "runs").glob("size=*")]
    best = {"params": {"size": min(tried)}, "values": [min(tried), 2 * min(tried)]}
    found = OmegaConf.load(tmp_path / "runs" / "optimization_results.yaml").solutions
    assert all(solution == best for solution in found)
    assert len(found) > 0
