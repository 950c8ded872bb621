"""The real wandb client in processes of its own, against a small server or none at all."""

import functools
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, finished
from wandb_server import WandbServer

from sparse_dict import tracking
from sparse_dict.machine import interrupt

KEY = {"WANDB_API_KEY": "0" * 40}

PRELUDE = """
import logging, math, sys, time
from pathlib import Path
from sparse_dict import tracking
from sparse_dict.config import StudyConfig, TrackingConfig
from sparse_dict.errors import UserError

logging.basicConfig(level=logging.INFO, format="%(message)s")


def open_run(name, mode="auto"):
    settings = TrackingConfig(mode=mode, project="sparse-dict", entity=None, tags=["tag"])
    config = StudyConfig(name="group", study_dir="study", device="cpu", seed=7, tracking=settings)
    return tracking.open_run(config, "train_sae", name, Path("jobs", name), "seen")

"""


def child(folder: Path, code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a bare environment whose home is the current folder."""
    bare = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    return finished([sys.executable, "-c", PRELUDE + code], folder, {**bare, **env})


def command_line(folder: Path, command: str, **env: str) -> str:
    """The output of a command as a user would type it."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = finished(["bash", "-c", command], folder, {"PATH": path, "HOME": str(folder), **env})
    assert process.returncode == 0, process.stderr
    return process.stdout


def by_name(server: WandbServer) -> dict[str, str]:
    return {run["bucket"]["displayName"]: run_id for run_id, run in server.runs.items()}


def metrics(server: WandbServer, run_id: str) -> list[dict[str, Any]]:
    """The rows as they were logged, without wandb's own columns."""
    rows = server.history(run_id)
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in rows]


def test_all_that_is_logged_arrives_online(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(PNG)
    (tmp_path / "report.html").write_text("<p>text</p>")
    code = """
import numpy
with open_run("good") as run:
    run.log({"seen": 10, "loss": 0.5})
    run.log({"seen": 20, "loss": math.nan, "ratio": math.inf})
    run.log({"figure": Path("picture.png")})
    run.table("parts/table", ["name", "value"], [["a", numpy.float32(0.5)], ["b", None]])
    run.curves({"size": 64, "mmcs/l1 1": 0.5}, "size")
    run.log({"report": Path("report.html")})
    run.made("dictionary", Path("picture.png"), Path("report.html"))
    run.summary({"fvu": 0.125, "worst": -math.inf})
run.finish(3)  # it has finished: nothing happens
"""
    with WandbServer() as server:
        process = child(tmp_path, code, WANDB_BASE_URL=server.url, **KEY)
    assert process.returncode == 0
    assert process.stdout + process.stderr == ""
    (run_id,) = server.runs
    run = server.runs[run_id]
    sent = {key: run["bucket"][key] for key in ("groupName", "jobType", "displayName", "tags")}
    assert sent == {
        "groupName": "group",
        "jobType": "train_sae",
        "displayName": "good",
        "tags": ["tag"],
    }
    config = server.config(run_id)
    assert (config["name"], config["seed"]) == ("group", 7)
    assert config["tracking"]["tags"] == ["tag"]
    axes = config["_wandb"]["m"]  # numbered fields: 1 name, 2 pattern, 5 index of the step metric
    steps = {axis.get("1", axis.get("2")): axis.get("5") for axis in axes}
    names = [None, *steps]
    assert {name: names[steps[name] or 0] for name in ("seen", "*", "size", "mmcs/l1 1")} == {
        "seen": None, "*": "seen", "size": None, "mmcs/l1 1": "size",
    }  # fmt: skip
    first, second, picture, table, curve, page = metrics(server, run_id)
    assert first == {"seen": 10, "loss": 0.5}
    assert math.isnan(second["loss"])
    assert second["ratio"] == math.inf
    assert server.uploads[f"/{run_id}/{picture['figure']['path']}"] == PNG
    assert json.loads(server.uploads[f"/{run_id}/{table['parts/table']['path']}"]) == {
        "columns": ["name", "value"],
        "data": [["a", 0.5], ["b", None]],
    }
    assert curve == {"size": 64, "mmcs/l1 1": 0.5}
    assert b"<p>text</p>" in server.uploads[f"/{run_id}/{page['report']['path']}"]
    assert "CreateArtifact" in server.operations  # without it, no table on wandb.ai
    assert server.summary(run_id)["fvu"] == 0.125
    assert server.summary(run_id)["worst"] == -math.inf
    assert run["exit_code"] == 0
    assert not tracking.remembered(tmp_path / "jobs" / "good")
    assert {p.name for p in tmp_path.iterdir()} == {"jobs", "picture.png", "report.html", "study"}


LINEAGE = """
from dataclasses import asdict

mode = sys.argv[1]
for part in ("lm", "activations"):
    Path("demo", part).mkdir(parents=True)
    Path("demo", part, "record.json").write_text(part)
with open_run("model", mode) as run:
    run.made("language-model", Path("demo/lm/record.json"))
with open_run("rows", mode) as run:
    run.used("language-model", Path("demo/lm/record.json"))
    run.used("language-model", "https://huggingface.co/their/model", "0123456789abcdef")
    run.made("activations", Path("demo/activations/record.json"))
with open_run("many", mode) as run:
    for part in ("a", "b"):  # names that are too long, and differ early or late
        for folder in (Path("demo", part + 120 * "x"), Path("demo", 120 * "x" + part)):
            folder.mkdir()
            folder.joinpath("record.json").write_text("the same")
            run.used("dictionary", folder / "record.json")
try:
    with open_run("killed", mode) as run:
        run.made("activations", Path("none.json"))
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize("mode", ["online", pytest.param("offline", marks=pytest.mark.slow)])
def test_what_was_made_and_used_arrives_by_path_and_hash_without_an_upload(
    tmp_path: Path, mode: str
) -> None:
    with WandbServer() as server:
        env = {"WANDB_BASE_URL": server.url, **KEY}
        process = child(tmp_path, LINEAGE.replace("sys.argv[1]", repr(mode)), **env)
        assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
        if mode == "offline":
            parts = (tmp_path / "study" / "wandb").glob("offline-run-*")
            for run in sorted(parts, key=lambda path: path.stat().st_mtime_ns):
                command_line(tmp_path, f"wandb sync {run}", **env)
    names = by_name(server)
    name = f"{tmp_path.name}-demo"
    many = [a["artifactCollectionName"] for a in server.artifacts if a["runName"] == names["many"]]
    assert len(set(many)) == 4
    assert max(map(len, many)) <= 128
    made = {a["artifactCollectionName"]: a for a in server.artifacts}
    for key in many:
        made.pop(key)
    assert {key: made[key]["runName"] for key in made} == {
        f"{name}-lm": names["model"],
        "huggingface.co-their-model": names["rows"],  # nobody else knows of it
        f"{name}-activations": names["rows"],
    }
    assert {a["state"] for a in server.artifacts} == {"COMMITTED"}
    used = {(names["rows"], key) for key in (f"{name}-lm", "huggingface.co-their-model")}
    assert set(server.uses) == used | {(names["many"], key) for key in many}
    record = tmp_path / "demo" / "lm" / "record.json"
    sha256 = hashlib.sha256(record.read_bytes()).hexdigest()
    assert json.loads(made[f"{name}-lm"]["metadata"]) == {"sha256": sha256, "source": str(record)}
    sent = [data for path, data in server.uploads.items() if path.startswith("/manifests/")]
    assert len(sent) == 3 + 4
    for manifest in map(json.loads, sent):
        (entry,) = manifest["contents"].values()
        assert "ref" in entry


@pytest.mark.slow
def test_a_finished_job_can_be_given_more_online_and_keeps_its_name_and_config(
    tmp_path: Path,
) -> None:
    code = """
with open_run("job", "online") as run:
    run.log({"seen": 1})
    run.summary({"fvu": 0.1})
"""
    more = """
from dataclasses import asdict
settings = TrackingConfig(mode={mode!r}, project="other", entity=None, tags=["other"])
config = StudyConfig(name="other", study_dir="study", device="cpu", seed=9, tracking=settings)
finished = {{"name": "group", "seed": 7, "tracking": {{"project": "sparse-dict", "tags": ["tag"]}}}}
for name in ("job", "never seen"):
    opened = tracking.open_run(
        config, "train_sae", name, Path("jobs", name), "seen", finished=finished
    )
    with opened as run:
        run.summary({{"fvu": 0.1, "mmcs": 0.5}})
"""
    with WandbServer() as server:
        env = {"WANDB_BASE_URL": server.url, **KEY}
        child(tmp_path, code, **env)
        before = sorted((tmp_path / "study" / "wandb").glob("*run-*"))
        assert child(tmp_path, more.format(mode="offline"), **env).returncode == 0
        assert sorted((tmp_path / "study" / "wandb").glob("*run-*")) == before
        process = child(tmp_path, more.format(mode="online"), **env)
        assert process.returncode == 0, process.stderr
        ((run_id, run),) = server.runs.items()
        assert run["bucket"]["displayName"] == "job"
        assert run["bucket"]["tags"] == ["tag"]
        config = server.config(run_id)
        assert (config["seed"], config["folder"]) == (7, "job")
        assert server.summary(run_id)["fvu"] == 0.1
        assert server.summary(run_id)["mmcs"] == 0.5
    assert not tracking.remembered(tmp_path / "jobs" / "job")


@pytest.mark.slow
@pytest.mark.parametrize("more", ["", ", Path('weights')"])
def test_the_content_of_what_was_made_is_sent_only_if_it_is_named(
    tmp_path: Path, more: str
) -> None:
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "weights").write_bytes(b"weights")
    code = f"with open_run('a') as run: run.made('dictionary', Path('record.json'){more})"
    with WandbServer() as server:
        child(tmp_path, code, WANDB_BASE_URL=server.url, **KEY)
    assert "CreateArtifact" in server.operations
    assert ("CreateArtifactFiles" in server.operations) == bool(more)


PART = """
import os, signal
try:
    with open_run("job", mode={mode!r}) as run:
        run.log({{"seen": {seen}, "loss": 0.5}})
        {end}
except KeyboardInterrupt:
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_the_parts_of_a_job_that_was_stopped_offline_are_one_run_when_they_are_sent(
    tmp_path: Path, mode: str
) -> None:
    with WandbServer() as server:
        env = {"WANDB_BASE_URL": server.url, **KEY}
        stop, kill = "raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGKILL)"
        for i, (part, end) in enumerate([("offline", stop), ("offline", kill), (mode, stop)], 1):
            child(tmp_path, PART.format(mode=part, seen=10 * i, end=end), **env)
        assert tracking.remembered(tmp_path / "jobs" / "job")
        last = "run.log({'seen': 40}); run.summary({'end': 4})"
        child(tmp_path, f"with open_run('job', 'offline') as run: {last}")
        assert not tracking.remembered(tmp_path / "jobs" / "job")
        command_line(tmp_path, "wandb sync study/wandb", **env)
        (run_id,) = server.runs
        rows = [row["seen"] for row in metrics(server, run_id)]
    assert {*rows} - {20} == {10, 30, 40}  # kill -9 takes the last rows with it
    if mode == "offline":
        assert rows == sorted(rows)
        assert server.summary(run_id)["end"] == 4
        assert server.runs[run_id]["exit_code"] == 0


def test_what_lies_where_a_runs_id_should_be_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "job").mkdir(parents=True)
    id_file = tmp_path / "jobs" / "job" / tracking.ID_FILE
    for text in (b"../../x", b"\xff", b"*"):
        id_file.write_bytes(text)
        assert tracking.remembered(id_file.parent) is None
    id_file.write_text("0123456789abcdef\n")
    assert tracking.remembered(id_file.parent) == "0123456789abcdef"
    id_file.write_text("0123456789abcdef finished\n")
    assert tracking.remembered(id_file.parent) is None
    assert tracking.remembered(id_file.parent, finished=True) == "0123456789abcdef"


def test_a_signal_while_runs_are_opened_ends_those_that_are_open(tmp_path: Path) -> None:
    opened: list[int] = []
    codes: list[int] = []

    class Fake:
        id = "0"

        def finish(self, exit_code: int) -> None:
            codes.append(exit_code)

    def opener(i: int) -> tracking.Run:
        if i == 1:
            time.sleep(0.2)  # until all are begun
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        opened.append(i)
        return tracking.Run(Fake(), online=False, id_file=tmp_path / str(i))

    with (
        pytest.raises(interrupt.Interrupted),
        interrupt.ending(),
        tracking.together([functools.partial(opener, i) for i in range(3)]),
    ):
        raise AssertionError("it goes on as if nothing had happened")
    assert sorted(opened) == [0, 1, 2]
    assert codes == [tracking.KILLED] * 3


def test_no_helper_of_wandb_is_started_that_ctrl_c_in_a_terminal_would_reach(tmp_path: Path):
    """Its service is in a session of its own."""
    code = """
import signal

def begins(event, values):
    if event == "subprocess.Popen" and values[0] == sys.executable:
        print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

Path("record.json").write_text("x")
sys.addaudithook(begins)
with open_run("run", "offline") as run:
    run.used("language-model", Path("record.json"))
    run.table("table", ["name"], [["a"]])
from wandb.sdk.artifacts import artifact_file_cache
print(artifact_file_cache.get_artifact_file_cache()._sys_umask)
"""
    before = os.umask(0o27)
    try:
        assert child(tmp_path, code).stdout == f"True\n{0o27}\n"
    finally:
        os.umask(before)


@pytest.mark.parametrize("mode", [{"mode": "disabled"}, {"WANDB_MODE": "disabled"}])
def test_disabled_writes_nothing_and_does_not_load_wandb(
    tmp_path: Path, mode: dict[str, str]
) -> None:
    code = f"""
with open_run("run", mode={mode.get("mode", "auto")!r}) as run:
    run.log({{"seen": 1}})
    run.summary({{"end": 1}})
    run.log({{"figure": Path("none.png")}})
assert "wandb" not in sys.modules
"""
    process = child(tmp_path, code, **{k: v for k, v in mode.items() if k != "mode"})
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ({}, "tracking.mode=online, but no API key for {url}: run `wandb login`"),
        (KEY, "wandb cannot open a run online: "),
    ],
)  # fmt: skip
def test_online_without_key_or_server_is_a_user_error(
    tmp_path: Path, key: dict[str, str], reason: str
) -> None:
    code = """
try:
    open_run("run", mode="online")
except UserError as error:
    print(error, end="")
"""
    with WandbServer() as server:
        server.status = 401
        process = child(tmp_path, code, WANDB_BASE_URL=server.url, **key)
    assert process.stderr == ""
    assert process.stdout.startswith(reason.format(url=server.url))


def test_trouble_while_logging_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        id = "0"

        def log(self, values: dict[str, float]) -> None:
            raise BrokenPipeError("the service is gone")

        def finish(self, exit_code: int) -> None:
            raise BrokenPipeError("the service is gone")

    for _ in range(2):
        with tracking.Run(Broken(), online=False, id_file=tmp_path / "id") as run:
            run.log({"loss": 1.0})
            run.log({"loss": 2.0})
    assert [record.getMessage() for record in caplog.records] == [
        "wandb: could not log to a run: BrokenPipeError: the service is gone",
        "wandb: could not finish a run: BrokenPipeError: the service is gone",
    ]


PNG = bytes.fromhex(  # one grey pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082"
)
