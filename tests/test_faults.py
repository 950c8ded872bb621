"""Processes that are killed, starved of disk or locked out, and folders that were damaged."""

import ctypes
import fcntl
import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fault_study
import numpy as np
import processes
import pytest
from damage import edited, flip, resealed, truncate
from fault_study import ENVIRONMENT, ROOT, SCRIPTS, contents
from processes import said, signalled, wait_for
from safetensors import safe_open
from wandb_server import WandbServer

from sparse_dict import tracking
from sparse_dict.launch import explain
from sparse_dict.lm import checkpoint
from sparse_dict.storage import lock
from sparse_dict.tools import status, verify

# kills of each stage: in the fast tier, and beyond it
FAST = {"train_lm": 6, "harvest": 4, "train_sae": 8, "analyze": 2}
ONE = "sae/sae.dict_size=48"
SUBDIR = 'hydra.sweep.subdir="sae.dict_size=${sae.dict_size}"'
SLOW = {"train_lm": 16, "harvest": 14, "train_sae": 18, "analyze": 6}


class Zygote:
    """See `fault_zygote`."""

    def __init__(self) -> None:
        python_path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self.said = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with this object
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "fault_zygote.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True,
            env={**ENVIRONMENT, "PYTHONPATH": python_path},
        )  # fmt: skip

    def run(self, stage: str, base: Path, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"stage": stage, "base": str(base), **order}) + "\n")
        self.process.stdin.flush()
        if line := self.process.stdout.readline():
            return dict(json.loads(line))
        self.said.seek(0)
        raise AssertionError(self.said.read())


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(10)


class Study:
    """An undisturbed study: its folder, what is in it, and how long each stage took."""

    def __init__(self, base: Path, zygote: Zygote) -> None:
        self.base = base
        self.seconds = {}
        for stage in SCRIPTS:
            done = zygote.run(stage, base)
            assert done["rc"] == 0, done["text"]
            self.seconds[stage] = done["seconds"]
        self.contents = {stage: contents(base / folder) for stage, folder in SCRIPTS.items()}

    def remake_analysis(self, zygote: Zygote, stage: str = "analyze") -> None:
        """Its tables hold how long the dictionaries took, which may be new ones by now."""
        if stage == "analyze":
            assert zygote.run("analyze", self.base)["rc"] == 0
            self.contents["analyze"] = contents(self.base / "analysis")

    def completes(self, zygote: Zygote, stage: str) -> None:
        """The stage runs to its end, and leaves what an undisturbed one leaves."""
        done = zygote.run(stage, self.base)
        assert done["rc"] == 0, done["text"]
        self.equals(stage)

    def equals(self, stage: str) -> None:
        assert contents(self.base / SCRIPTS[stage]) == self.contents[stage]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Study:
    top = tmp_path_factory.mktemp("faults")
    fault_study.write_corpus(top / "text.jsonl")
    return Study(top / "study", zygote)


@pytest.fixture
def copy(whole: Study) -> Iterator[Path]:
    """A copy to damage, under the same path: manifests hold it."""
    kept = whole.base.with_name("kept")
    shutil.copytree(whole.base, kept, copy_function=shutil.copy2)
    yield whole.base
    shutil.rmtree(whole.base)
    kept.rename(whole.base)


def started(name: str, base: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
    """A script on the study."""
    command = fault_study.command(name, base, *more)
    return processes.started(command, base.parent, **{"env": ENVIRONMENT} | options)


def run_script(
    name: str, base: Path, *more: str, **options: Any
) -> subprocess.CompletedProcess[str]:
    process = started(name, base, *more, **options)
    output, errors = process.communicate(timeout=100)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a script has failed."""
    output = done.stdout + done.stderr
    assert done.returncode in (1, 2), output
    assert "Traceback" not in output
    assert "Logging error" not in output
    lines = [*re.findall(r"\[ERROR\] - (.*)", done.stdout), *done.stderr.splitlines()]
    assert len(lines) == 1, output
    return str(lines[0])


# --- kill -9 --------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("stage", "kills", "seed"),
    [
        *((stage, kills, 0) for stage, kills in FAST.items()),
        *(pytest.param(stage, n, 1, marks=pytest.mark.slow) for stage, n in SLOW.items()),
    ],
)
def test_a_stage_killed_at_random_moments_ends_as_if_undisturbed(
    zygote: Zygote, whole: Study, stage: str, kills: int, seed: int
):
    """In turn at a random moment, and at a random change of a file, where damage is likeliest."""
    rng = random.Random(f"{stage} {seed}")
    whole.remake_analysis(zygote, stage)
    died, most_changes = 0, 60 if stage == "train_sae" else 30
    while died < kills:
        shutil.rmtree(whole.base / SCRIPTS[stage])
        if rng.random() < 0.3 and stage == "train_lm":
            shutil.rmtree(whole.base.parent / "cache")
        while died < kills:
            if died % 2:
                order: dict[str, Any] = {"die_at": rng.randint(1, most_changes)}
            else:
                order = {"after": rng.uniform(0, whole.seconds[stage])}
            done = zygote.run(stage, whole.base, **order)
            if done["rc"] == 0:
                break
            assert done["rc"] == -signal.SIGKILL, done["text"]
            died += 1
            status.table(whole.base)  # works at every moment
        whole.completes(zygote, stage)
    assert verify.main([str(whole.base)]) == 0


SUBDIR_OF_SEEDS = ['hydra.sweep.subdir="sae.dict_size=${sae.dict_size},seed=${seed}"']
PAIRS = ["-m", "sae.dict_size=32", "seed=0,1", *SUBDIR_OF_SEEDS]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_script_killed_at_random_moments_ends_as_if_undisturbed(
    zygote: Zygote, whole: Study, copy: Path, stage: str
):
    """The whole process, from the first import on, with Hydra's files and wandb's."""
    whole.remake_analysis(zygote, stage)
    more = [*(PAIRS if stage == "train_sae" else []), "tracking.mode=offline"]
    folder = copy / SCRIPTS[stage]
    for path in folder.glob("sae.dict_size=32*" if stage == "train_sae" else "*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rng = random.Random(f"script {stage}")
    codes = []
    for _ in range(4):
        process = started(stage, copy, *more)
        while process.poll() is None:
            if any(lock.holder(path.parent) for path in folder.rglob(lock.FILE)):
                time.sleep(rng.uniform(0, 2))
                break
            time.sleep(0.05)
        process.kill()
        process.communicate()
        codes.append(process.returncode)
        status.table(copy)
    assert -signal.SIGKILL in codes
    done = run_script(stage, copy, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [p for p in folder.rglob(tracking.ID_FILE) if tracking.remembered(p.parent)]
    whole.equals(stage)
    assert verify.main([str(copy)]) == 0


# --- signals --------------------------------------------------------------------------------------

# What makes a stage long enough to be stopped, and the file that tells that it is at work.
ENDLESS = {
    "train_lm": (["training.n_tokens=100_000_000"], "lm/checkpoint/state.safetensors"),
    "harvest": (
        ["harvest.n_tokens=100_000", "harvest.split=all", "harvest.batch_size=1"],
        "activations/partial/*",
    ),
    "train_sae": (
        ["-m", "training.n_activations=100_000_000", "sae.dict_size=32,48"],
        "sae/*/checkpoint.safetensors",
    ),
    "analyze": ([], "analysis/partial/*.png"),
}


def stopped(name: str, base: Path, number: signal.Signals, *more: str, **env: str) -> str:
    """What a stage says that gets a signal while it is at work."""
    shutil.rmtree(base / SCRIPTS[name])
    longer, sign = ENDLESS[name]
    process = started(name, base, *longer, *more, env={**ENVIRONMENT, **env})
    wait_for(lambda: any(base.glob(sign)), process)
    output = signalled(process, number)
    assert not any(lock.holder(path.parent) for path in base.rglob(lock.FILE))
    assert re.search(rf"{name} +(interrupted|failed|not started) ", status.table(base))
    return output


def test_sigterm_costs_a_checkpoint_and_a_non_zero_exit_code_within_ten_seconds(copy: Path):
    output = stopped("train_lm", copy, signal.SIGTERM)
    (step,) = re.findall(r"stopped at step (\d+):", output)
    state = copy / "lm" / "checkpoint" / "state.safetensors"
    assert checkpoint.identity(state) is not None
    with safe_open(state, framework="np") as file:
        assert f'"step": {step},' in file.metadata()["record"]
    assert not (copy / "lm" / "lm.json").exists()


@pytest.fixture
def tracked(copy: Path) -> Iterator[tuple[WandbServer, dict[str, str]]]:
    """A server, and the environment of a script that logs to it."""
    with WandbServer() as server:
        key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        yield server, {**key, "HOME": str(copy.parent)}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", SCRIPTS)
def test_a_stopped_stage_ends_its_wandb_runs_as_stopped(
    copy: Path, tracked: tuple[WandbServer, dict[str, str]], stage: str, number: signal.Signals
):
    server, env = tracked
    stopped(stage, copy, number, "tracking.mode=online", **env)
    codes = [run["exit_code"] for run in server.runs.values()]
    assert codes == [tracking.KILLED] * (2 if stage == "train_sae" else 1)
    for folder in (copy / "sae").glob("sae.dict_size=*") if stage == "train_sae" else ():
        assert (folder / "checkpoint.safetensors").exists()


@pytest.mark.slow
def test_sigterm_ends_a_multirun_in_ten_seconds_though_the_wandb_server_hangs(
    copy: Path, tracked: tuple[WandbServer, dict[str, str]]
):
    shutil.rmtree(copy / "sae")
    server, env = tracked
    longer, sign = ENDLESS["train_sae"]
    env = {**ENVIRONMENT, **env}
    process = started("train_sae", copy, *longer, "tracking.mode=online", env=env)
    wait_for(lambda: len(list(copy.glob(sign))) == 2, process)
    server.delay = 60.0
    time.sleep(1)  # its requests hang by now
    assert "wandb sync --include-online" in signalled(process, signal.SIGTERM)
    assert len(list(copy.glob(sign))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_terminal_s_signal_to_all_processes_costs_one_line(
    tmp_path: Path, number: signal.Signals
):
    command = [
        sys.executable, str(ROOT / "train_lm.py"), "name=x", "tracking.mode=disabled",
        "data.packages=[numpy,torch]", "training.n_tokens=100_000_000", "cache_dir=cache",
    ]  # fmt: skip
    process = processes.started(command, tmp_path, ENVIRONMENT, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_for(lambda: len(children.read_text().split()) > 1, process)  # they extract docstrings
    time.sleep(1)  # and are at it
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert error.splitlines() == [
        f"train_lm.py: stopped by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}: "
        "run the same command to resume"
    ]


@pytest.mark.slow
def test_sigterm_reaches_the_workers_of_a_grid_that_was_split(copy: Path):
    pytest.importorskip("joblib")
    split = ["hydra/launcher=joblib", "hydra.launcher.n_shares=2"]
    stopped("train_sae", copy, signal.SIGTERM, *split)
    logs = [path.read_text() for path in (copy / "sae").glob("*/train_sae.log")]
    assert any("the same command goes on" in log for log in logs)


# --- a folder in use ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", [p if p == "train_lm" else pytest.param(p, marks=pytest.mark.slow) for p in SCRIPTS]
)
def test_a_second_process_on_the_same_folder_is_refused_before_it_writes(copy: Path, stage: str):
    folder = copy / SCRIPTS[stage] / ("default" if stage == "train_sae" else "")
    shutil.rmtree(folder, ignore_errors=True)
    with lock.holding(folder):
        done = run_script(stage, copy, f"hydra.run.dir={folder}")
        assert [path.name for path in folder.iterdir()] == [lock.FILE]
        if stage != "train_sae":  # of dictionaries, status shows those that have begun
            assert f"process {os.getpid()}" in status.table(copy)
            assert verify.main([str(copy)]) == 1
    assert (done.returncode, done.stdout) == (2, "")
    assert one_error(done).startswith(
        f"{stage}.py: {folder} is in use by process {os.getpid()} on "
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["ensemble", "basic"])
def test_a_multirun_is_refused_as_a_whole_if_one_of_its_folders_is_in_use(
    copy: Path, launcher: str
):
    shutil.rmtree(copy / "sae")
    with lock.holding(copy / ONE):
        grid = ["-m", "sae.dict_size=32,48", SUBDIR, f"hydra/launcher={launcher}"]
        line = one_error(run_script("train_sae", copy, *grid))
        assert f"in use by process {os.getpid()}" in line
        assert not (copy / ONE / ".hydra").exists()


def test_a_folder_in_use_fails_its_dictionary_alone(zygote: Zygote, whole: Study, copy: Path):
    folders = sorted(path for path in (copy / "sae").iterdir() if path.is_dir())
    for folder in folders:
        shutil.rmtree(folder)
    with lock.holding(folders[0]):
        done = zygote.run("train_sae", copy)
    assert done["rc"] == 1
    assert f"in use by process {os.getpid()}" in done["text"]
    assert [(folder / "metrics.json").exists() for folder in folders] == [False, True, True]
    whole.completes(zygote, "train_sae")


@pytest.mark.slow
def test_of_two_multiruns_started_at_once_one_trains_each_dictionary(whole: Study, copy: Path):
    for folder in (copy / "sae").glob("sae.dict_size=*"):
        shutil.rmtree(folder)
    both = [started("train_sae", copy, *PAIRS) for _ in range(2)]
    codes = {said(each): each.returncode for each in both}
    assert min(codes.values()) == 0
    for output in (output for output, code in codes.items() if code):
        assert "is in use by process" in output  # or it has come when all was done
    assert run_script("train_sae", copy, "-m", "sae.dict_size=48", SUBDIR).returncode == 0
    whole.equals("train_sae")


def test_locks_nest_within_a_process_and_leave_nothing_behind(tmp_path: Path):
    folder = tmp_path / "a" / "b"
    with lock.holding(folder):
        with lock.holding(folder, folder):
            pass
        assert (folder / lock.FILE).exists()
        assert lock.holder(folder) == f"process {os.getpid()} on {os.uname().nodename}"
    assert list(tmp_path.iterdir()) == []
    assert lock.holder(folder) is None


def test_who_looks_for_a_holder_does_not_keep_a_stage_from_starting(tmp_path: Path):
    file = (tmp_path / lock.FILE).open("w")
    fcntl.flock(file, fcntl.LOCK_SH)  # as `lock.holder` does for an instant
    timer = threading.Timer(0.1, file.close)
    timer.start()
    with lock.holding(tmp_path):
        assert lock.holder(tmp_path) is not None
    timer.join()


# --- damaged files --------------------------------------------------------------------------------

ADVICE = re.compile(
    r"(\S+) is damaged \(.*?\): delete it|delete (?!it )(\S+?)(?= and | to |$)", re.M
)


def advised(said: str) -> set[Path]:
    """What is to be deleted."""
    return {Path(it or other) for it, other in ADVICE.findall(said)}


def follow(said: str) -> None:
    """Delete it."""
    for path in advised(said):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize(
    "launcher",
    ["ensemble", *(pytest.param(x, marks=pytest.mark.slow) for x in ("basic", "joblib"))],
)
def test_a_damaged_file_of_its_own_costs_a_job_of_a_grid_and_no_other(
    whole: Study, copy: Path, launcher: str
):
    """A finished dictionary, and one that is begun; then the advice is followed."""
    if launcher == "joblib":
        pytest.importorskip("joblib")
    finished, begun = (copy / "sae" / f"sae.dict_size={x}" for x in ("32,seed=0", "48,seed=0"))
    shutil.copytree(finished, begun)
    (begun / "metrics.json").unlink()
    shutil.copy(begun / "sae_weights.safetensors", begun / "checkpoint.safetensors")
    for path in (finished / "metrics.json", begun / "checkpoint.safetensors"):
        truncate(path)
    grid = ["-m", *SUBDIR_OF_SEEDS, "sae.dict_size=32,48", "seed=0,1", f"hydra/launcher={launcher}"]
    done = run_script("train_sae", copy, *grid)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output
    assert advised(output) == {finished / "metrics.json", begun / "checkpoint.safetensors"}
    assert (copy / "sae" / "sae.dict_size=48,seed=1" / "metrics.json").exists()
    follow(output)
    assert run_script("train_sae", copy, *grid).returncode == 0
    for path in (copy / "sae").glob("sae.dict_size=48,*"):
        shutil.rmtree(path)
    (copy / "sae" / "multirun.yaml").unlink()
    whole.equals("train_sae")


class Cuts:
    """Cuts files of a study, and sees that what is then advised ends in the study that it was."""

    def __init__(
        self, study: Study, zygote: Zygote, capsys: pytest.CaptureFixture[str], stages: list[str]
    ) -> None:
        self.study, self.zygote, self.capsys, self.stages = study, zygote, capsys, stages

    def cut(self, path: Path, to: float) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(to * len(data)) if to else -2])
        told = []
        for _ in range(4):
            self.capsys.readouterr()
            rc = verify.main([str(self.study.base)])
            told.append(self.capsys.readouterr().out)
            if rc == 0 and self._is_whole():
                return
            follow(told[-1])
            for stage in self.stages:
                done = self.zygote.run(stage, self.study.base)
                assert done["rc"] in (0, 1), done["text"]
                told.append(done["text"])
                follow(done["text"])
        pytest.fail(f"{path} cut to {to}: " + "\n".join(told))

    def _is_whole(self) -> bool:
        return all(
            contents(self.study.base / SCRIPTS[s]) == self.study.contents[s] for s in self.stages
        )


def kinds(folder: Path, pattern: str) -> list[Path]:
    """One file of each name but for numbers."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        if path.is_file() and path.suffix != ".log" and path.name != lock.FILE:
            found.setdefault(re.sub(r"\d+", "0", str(path.relative_to(folder))), path)
    return list(found.values())


LESS = (1e-9, 0.5, 0)  # nothing is left, half, all but the end and what precedes it
MAKE = [stage for stage in SCRIPTS if stage != "analyze"]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("pattern", "stages"),
    [("lm/**/*", MAKE), ("activations/*", MAKE), (f"{ONE}/**/*", MAKE), ("analysis/**/*", [])],
)
def test_every_truncation_followed_by_the_advice_ends_in_the_study_that_it_was(
    zygote: Zygote, whole: Study, copy: Path, capsys: pytest.CaptureFixture[str],
    pattern: str, stages: list[str],
):  # fmt: skip
    if not stages:
        whole.remake_analysis(zygote)
    cuts = Cuts(whole, zygote, capsys, stages or ["analyze"])
    files = kinds(copy, pattern)
    assert len(files) >= 3
    for path in files:
        for to in LESS if stages else LESS[1:2]:
            cuts.cut(path, to)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("stage", "file"),
    [("train_lm", "lm/checkpoint/state.safetensors"), ("train_sae", f"{ONE}/checkpoint.*"),
     ("harvest", "activations/partial/*"), ("train_lm", "../cache/**/*")],
)  # fmt: skip
def test_what_is_begun_and_cut_short_ends_in_the_study_that_it_was(
    zygote: Zygote, whole: Study, copy: Path, capsys: pytest.CaptureFixture[str],
    stage: str, file: str,
):  # fmt: skip
    cuts = Cuts(whole, zygote, capsys, MAKE)
    for to in LESS:
        shutil.rmtree(copy / SCRIPTS[stage])
        found: list[Path] = []
        for change in range(8, 60):
            if found := kinds(copy, file) if "cache" not in file else kinds(copy.parent, file[3:]):
                break
            done = zygote.run(stage, copy, die_at=change)
            assert done["rc"] == -signal.SIGKILL, done["text"]
        assert found
        for path in found if "cache" in file else found[:1]:
            if "cache" in file:
                shutil.rmtree(copy / SCRIPTS[stage], ignore_errors=True)
            cuts.cut(path, to)


# --- no room, no permission -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage", [pytest.param(p, marks=pytest.mark.slow) if p == "analyze" else p for p in SCRIPTS]
)
def test_no_room_on_the_disk_is_one_line_and_the_stage_goes_on_later(
    zygote: Zygote, whole: Study, copy: Path, stage: str
):
    whole.remake_analysis(zygote, stage)
    shutil.rmtree(copy / SCRIPTS[stage])
    limits = {"train_lm": 30_000, "harvest": 8_000, "train_sae": 10_000, "analyze": 20_000}
    done = zygote.run(stage, copy, file_limit=limits[stage])
    assert done["rc"] == 1, done["text"]
    assert "the disk is full or a quota is used up" in done["text"]
    assert len(done["text"].splitlines()) == 1
    whole.completes(zygote, stage)


def obey_permissions() -> None:
    """Before a script starts: root gives up reading and writing what it has no permission for."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if os.geteuid() == 0 and libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            os._exit(99)


@contextmanager
def permitting(path: Path, mode: int) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """`run_script` by someone to whom permissions apply, of which the path has these."""
    before = path.stat().st_mode
    path.chmod(mode)

    def run(name: str, base: Path, *more: str) -> subprocess.CompletedProcess[str]:
        env = {**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"}
        done = run_script(name, base, *more, env=env, preexec_fn=obey_permissions)
        if done.returncode == 99:
            pytest.skip("permissions cannot be made to apply to this user")
        return done

    try:
        yield run
    finally:
        path.chmod(before)


@pytest.mark.parametrize(
    ("stage", "path", "more"),
    [
        ("train_lm", "", []),
        *(
            pytest.param(stage, path, more, marks=pytest.mark.slow)
            for stage, path, more in (
                ("harvest", "", []),
                ("train_sae", "", []),
                ("train_sae", "", ["-m", "seed=0,1"]),
                ("analyze", "", []),
                ("harvest", "lm/lm.json", []),
                ("harvest", "lm/model.safetensors", []),
                ("harvest", "lm/tokenizer/ranks.tiktoken", []),
                ("train_sae", "activations/manifest.json", []),
                ("train_sae", "activations/shard-00001.npy", []),
            )
        ),
    ],
)
def test_what_may_not_be_read_or_written_is_named(
    copy: Path, stage: str, path: str, more: list[str]
):
    """A study's folder to which nothing may be written, or a file that may not be read."""
    folder = copy / SCRIPTS[stage]
    shutil.rmtree(folder)
    with permitting(copy / path, 0 if path else 0o555) as run:
        line = one_error(run(stage, copy, *more))
    assert (path or str(folder)) in line
    assert "permission" in line.lower()
    assert path or not folder.exists()


@pytest.mark.slow
def test_an_analysis_leaves_out_what_it_may_not_read_and_says_so(copy: Path):
    with permitting(copy / ONE / "sae_weights.safetensors", 0) as run:
        done = run("analyze", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "left out" in line]
    assert "sae.dict_size=48" in line
    assert "no permission" in line


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", SCRIPTS)
def test_memory_that_is_not_there_is_one_line_with_the_keys_to_lower(stage: str):
    import torch

    def by_numpy() -> None:
        np.empty(1 << 60, np.uint8)

    def by_torch() -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    def on_gpu() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    for run, amount in ((by_numpy, "1.00 EiB"), (by_torch, "GiB"), (on_gpu, "20.00 MiB")):
        with pytest.raises(Exception) as caught:  # noqa: PT011  each library has its own
            run()
        assert explain.is_foreseen(caught.value)
        line = explain.in_one_line(caught.value, stage)
        assert line.startswith("out of memory (")
        assert f"{amount} could not be allocated): lower " in line
    config = fault_study.composed(stage, tuple(fault_study.overrides(stage, Path("study"))))
    for key in re.findall(r"\w+(?:\.\w+)+", explain.LOWER[stage]):
        if not key.startswith("hydra."):
            assert functools.reduce(getattr, key.split("."), config) is not None


def test_another_error_is_not_taken_for_a_lack_of_memory():
    assert not explain.is_foreseen(ZeroDivisionError("division by zero"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("train_lm", ["training.batch_size=1000000000000000"]),
        ("train_sae", ["sae.dict_size=1000000000000000"]),
        ("train_sae", ["-m", "sae.dict_size=32,1000000000000000"]),
    ],
)
def test_a_script_that_asks_for_too_much_memory_says_which_key_to_lower(
    copy: Path, stage: str, more: list[str]
):
    shutil.rmtree(copy / SCRIPTS[stage])
    done = run_script(stage, copy, *more)
    output = done.stdout + done.stderr
    assert done.returncode == 1, output
    assert "Traceback" not in output
    assert re.search(r"out of memory \(.*\): lower training.batch_size", output)


# --- verify and status ----------------------------------------------------------------------------


def test_verify_tells_what_was_made_from_what(whole: Study, capsys: pytest.CaptureFixture[str]):
    assert verify.main([str(whole.base)]) == 0
    lines = capsys.readouterr().out.splitlines()
    model = re.fullmatch(r"lm: model (\w{16}) from corpus \w{16}", lines[0])
    assert model
    rows = re.fullmatch(rf"activations: (\w{{16}}) from model {model[1]}", lines[1])
    assert rows
    assert all(line.endswith(f"from activations {rows[1]}") for line in lines[2:5])
    assert lines[5:] == ["analysis: of 3 dictionaries", "", "0 faults"]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def to_passwd(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


CHANGED = "has changed since it was written"
ROWS, SNAPSHOT = "activations/manifest.json", f"{ONE}/snapshots/*"
DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("activations/shard-00001.npy", flip, "shard-00001.npy has changed"),
    ("activations/shard-00002.npy", truncate, "shard-00002.npy is truncated"),
    ("activations/origin-00000.npy", Path.unlink, "origin-00000.npy does not exist"),
    (ROWS, edited(rms=0.5), "manifest.json has changed"),
    (ROWS, resealed("fingerprints", model="0" * 16), f"made from the model {'0' * 16}, but the st"),
    ("lm/model.safetensors", flip, "model.safetensors is not the file"),
    ("lm/tokenizer/ranks.tiktoken", lambda path: flip(path, 900), "ranks.tiktoken"),
    ("lm/history.csv", flip, f"history.csv {CHANGED}"),
    ("lm/history.csv", to_passwd, "history.csv leads out of the study"),
    ("lm/lm.json", edited("losses", val_loss=1.5), f"lm.json {CHANGED}"),
    ("lm/.lm.json.tmp", Path.touch, "is half a file"),
    (f"{ONE}/metrics.json", edited("fingerprints", activations="f" * 16), "trained on the act"),
    (f"{ONE}/metrics.json", edited(fvu=0.001), f"metrics.json {CHANGED}"),
    (f"{ONE}/metrics.json", truncate, "metrics.json cannot be read as JSON"),
    (f"{ONE}/metrics.json", Path.unlink, "sae.dict_size=48 is not finished"),
    (f"{ONE}/sae_weights.safetensors", flip, CHANGED),
    (f"{ONE}/features.safetensors", truncate, "features.safetensors cannot"),
    (f"{ONE}/history.csv", flip, f"history.csv {CHANGED}"),
    (SNAPSHOT, flip, f".safetensors {CHANGED}"),
    (SNAPSHOT, Path.unlink, ".safetensors is missing"),
    (ONE, shutil.rmtree, "was compared, but is not a dictionary here now"),
    ("analysis/analysis.json", edited(seconds=1.5), f"analysis.json {CHANGED}"),
    ("analysis/analysis.json", Path.unlink, "analysis is not finished"),
    *(
        (f"analysis/{name}", lambda path: flip(path, 200), f"{name} {CHANGED}")
        for name in ("frontier.png", "mmcs.csv", "dictionaries.csv", "report.html", "claims.json")
    ),
    ("analysis/mmcs.csv", Path.unlink, "mmcs.csv is missing"),
    ("analysis/run.pkl", Path.touch, "run.pkl does not belong"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "harm", "message"), DAMAGES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_verify_names_the_fault(
    file: str,
    harm: Callable[[Path], object],
    message: str,
    copy: Path,
    capsys: pytest.CaptureFixture[str],
):
    harm(min(copy.glob(file), default=copy / file))
    assert verify.main([str(copy)]) == 1
    faults = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT")]
    assert any(message in fault for fault in faults), faults
    status.table(copy)


def test_status_tells_what_is_done_and_where_the_pictures_are(whole: Study):
    lines = status.table(whole.base).splitlines()
    assert [line.split()[:2] for line in lines[3:7]] == [[name, "done"] for name in SCRIPTS]
    assert f"pictures: {whole.base}/analysis/*.png" in "\n".join(lines)


def test_status_and_verify_work_on_a_study_that_is_half_made(
    copy: Path, capsys: pytest.CaptureFixture[str]
):
    shutil.rmtree(copy / "analysis")
    shutil.rmtree(copy / ONE)
    (copy / ONE).mkdir()
    record = "[2026-01-01 10:00:00,000][sparse_dict.launch.script][ERROR] - no such luck\n"
    (copy / ONE / "train_sae.log").write_text(record)
    (copy / ONE / ".hydra").mkdir()
    text = status.table(copy)
    assert re.search(r"train_sae +failed .*2 of 3 dictionaries", text)
    assert re.search(r"  sae.dict_size=48 +failed +no such luck", text)
    assert re.search(r"analyze +not started", text)
    assert verify.main([str(copy)]) == 1
    assert "analysis: not made" in capsys.readouterr().out
    for folder in ("sae", "activations", "lm"):
        shutil.rmtree(copy / folder)
        status.main([str(copy)])
    assert verify.main([str(copy.parent / "cache")]) == 1


@pytest.mark.parametrize("main", [status.main, verify.main])
def test_a_folder_that_is_not_there_is_named(main: Any, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["outputs/nowhere"])
    assert ended.value.code == 2
    assert "outputs/nowhere is not a folder" in capsys.readouterr().err
