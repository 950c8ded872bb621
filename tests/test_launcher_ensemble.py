"""The ensemble launcher in real processes, with a stand-in for the training of a batch."""

import json
import re
import subprocess
from pathlib import Path

import launcher_app
import pytest
from launcher_app import launch, logged, worker


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launcher_app.write(tmp_path_factory.mktemp("app"))


def record(folder: Path) -> dict[str, object]:
    return json.loads((folder / "record.json").read_text())


Mixed = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def mixed(app: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    """One launch of five jobs, two of which fail: its folder and its process."""
    folder = tmp_path_factory.mktemp("mixed")
    return folder / "runs", launch(app, folder, "size=3,13,1,14,2")


def test_each_job_keeps_its_own_config_and_log(mixed: Mixed) -> None:
    runs, _ = mixed
    for size in (1, 2, 3):
        folder = runs / f"size={size}"
        assert f"size: {size}\n" in (folder / ".hydra" / "config.yaml").read_text()
        assert (folder / ".hydra" / "overrides.yaml").read_text() == f"- size={size}\n"
        trained = [f"training {each}" for each in (3, 13, 1, 14, 2)]
        assert logged(folder) == ["batch of 5", *trained, "ended"]


def test_each_job_gets_its_own_result_and_callbacks(mixed: Mixed) -> None:
    runs, _ = mixed
    for number, size in enumerate([3, 13, 1, 14, 2]):
        if size < 10:
            expected = {"status": "COMPLETED", "result": [size, 2 * size]}
            assert record(runs / f"size={size}") == expected
            assert worker(runs / f"size={size}")[-1] == str(number)
    assert record(runs / "size=13")["status"] == "FAILED"
    assert record(runs / "size=14")["result"] == "UserError('Unsendable: this and that')"


def test_a_failed_job_costs_one_line_and_exit_code_1(mixed: Mixed) -> None:
    _, process = mixed
    assert process.returncode == 1
    assert process.stderr == ""
    failures = [line for line in process.stdout.splitlines() if "failed" in line]
    assert [line.partition("] #")[2] for line in failures] == [
        "1 size=13 failed: 13 is unlucky",
        "3 size=14 failed: Unsendable: this and that",
    ]
    assert "Traceback" not in process.stdout
    assert process.stdout.splitlines()[-1] == "multirun ended"


def test_only_an_unexpected_error_leaves_a_traceback_in_its_own_log(mixed: Mixed) -> None:
    runs, _ = mixed
    logs = {path.parent.name: path.read_text() for path in runs.glob("*/app.log")}
    assert [name for name, log in logs.items() if "Traceback" in log] == ["size=14"]
    assert "failed: 13 is unlucky" in logs["size=13"]


def test_batches_come_as_several_launches_and_a_failure_stops_none(
    app: Path, tmp_path: Path
) -> None:
    process = launch(app, tmp_path, "size=1,13,2,3", "hydra.sweeper.max_batch_size=2")
    assert process.returncode == 1
    assert process.stdout.count("batch of 2") == 2
    assert record(tmp_path / "runs" / "size=3")["result"] == [3, 6]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["size=1,-2"], "app.py: size=-2: size must not be negative\n"),
        (
            ["size=1,2,-3", "hydra.sweeper.max_batch_size=1"],
            "app.py: size=-3: size must not be negative\n",
        ),
        (
            ["size=1,1"],
            "app.py: job 0 and job 1 would both write to runs/size=1: "
            "type 'name=app-${hydra:job.num}'\n",
        ),
        (["size=range(5,5)"], "app.py: the grid is empty: a swept key has no value\n"),
    ],
)
def test_a_wrong_job_ends_the_launch_before_anything_is_written(
    app: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    process = launch(app, tmp_path, *overrides)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == message
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_fails_as_a_whole_costs_one_line(app: Path, tmp_path: Path) -> None:
    process = launch(app, tmp_path, "size=90,1")
    assert process.returncode == 1
    assert process.stdout.count("All 2 jobs failed: AssertionError: too much") == 1
    assert "Traceback" not in process.stdout + process.stderr
    for job in (90, 1):
        assert "Traceback" in (tmp_path / "runs" / f"size={job}" / "app.log").read_text()


def test_an_interrupt_ends_without_a_traceback(app: Path, tmp_path: Path) -> None:
    process = launch(app, tmp_path, "size=92,1")
    assert process.returncode == 130
    assert process.stderr == "app.py: stopped by Ctrl-C: run the same command to resume\n"


def test_a_job_that_hydra_cannot_set_up_is_named_and_nothing_is_trained(
    app: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "size=2").touch()  # where the folder would be
    process = launch(app, tmp_path, "size=1,2,3")
    assert process.returncode == 1
    assert process.stderr.startswith("app.py: size=2: FileExistsError: ")
    assert "Traceback" not in process.stderr
    assert "training" not in process.stdout


def test_the_basic_launcher_still_runs_each_job_alone(app: Path, tmp_path: Path) -> None:
    process = launch(app, tmp_path, "size=1,2", "hydra/launcher=basic")
    assert process.returncode == 0
    assert re.findall("alone .", process.stdout) == ["alone 1", "alone 2"]
