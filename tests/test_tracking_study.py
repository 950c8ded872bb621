"""Whole studies with the real wandb client against a server that is good, bad or gone."""

import hashlib
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fault_study
import pandas as pd
import pytest
from processes import finished, said, started, wait_for
from test_tracking_runs import KEY, PNG, by_name, child, command_line, metrics
from wandb_server import WandbServer

from sparse_dict import tracking

SIZES, L1S, SEEDS = (16, 24, 32, 48), (0.01, 0.03), (0, 1)
GRID = [f"sae.dict_size={','.join(map(str, SIZES))}", "sae.l1=0.01,0.03", "seed=0,1"]


def start(name: str, base: Path, url: str, *more: str) -> subprocess.Popen[str]:
    """Start a script that logs to a server, with the folder of `base` as its home."""
    command = fault_study.command(name, base, "tracking.mode=auto", "tracking.tags=[tiny]", *more)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(base.parent), "WANDB_BASE_URL": url, **KEY}
    return started(command, base.parent, env)


def finish(process: subprocess.Popen[str]) -> str:
    output = said(process)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[WandbServer, Path]]:
    """A server, and a study whose four stages were sent to it."""
    base = tmp_path_factory.mktemp("tracked") / "study"
    fault_study.write_corpus(base.parent / "text.jsonl")
    with WandbServer() as server:
        for name in fault_study.SCRIPTS:
            grid = [*GRID, "-m"] if name == "train_sae" else []
            finish(start(name, base, server.url, *grid))
        yield server, base


def runs_of(server: WandbServer, job_type: str) -> dict[str, str]:
    return {
        name: run_id
        for name, run_id in by_name(server).items()
        if server.runs[run_id]["bucket"]["jobType"] == job_type
    }


@pytest.mark.slow
def test_every_run_of_a_study_arrives_with_group_tags_and_exit_code(
    tracked: tuple[WandbServer, Path],
) -> None:
    server, _ = tracked
    counts = {name: len(runs_of(server, name)) for name in fault_study.SCRIPTS}
    assert counts == {"train_lm": 1, "harvest": 1, "train_sae": 16, "analyze": 1}
    for run in server.runs.values():
        assert run["bucket"]["groupName"] == "tiny"
        assert run["bucket"]["tags"] == ["tiny"]
        assert run["exit_code"] == 0


@pytest.mark.slow
def test_the_runs_of_a_multirun_hold_what_their_folders_hold(
    tracked: tuple[WandbServer, Path],
) -> None:
    server, base = tracked
    seen = set()
    for name, run_id in runs_of(server, "train_sae").items():
        config, summary = server.config(run_id), server.summary(run_id)
        folder = base / "sae" / config["folder"]
        written = json.loads((folder / "metrics.json").read_text())
        sae = config["sae"]
        assert name == f"{sae['dict_size']} · L1 {sae['l1']:g} · seed {config['seed']}"
        assert config["fingerprints"] == written["fingerprints"]
        assert re.fullmatch(r"[0-9a-f]{40}\+?", config["commit"])
        seen.add((config["sae"]["dict_size"], config["sae"]["l1"], config["seed"]))
        assert config["sae"] == written["config"]["sae"]
        assert {key: summary[key] for key in ("fvu", "l0", "dead", "dict_size", "l1")} == {
            key: written[key] for key in ("fvu", "l0", "dead", "dict_size", "l1")
        }
        rows = (folder / "history.csv").read_text().splitlines()
        names = [key if key == "activations" else f"sae/{key}" for key in rows[0].split(",")]
        expected = [dict(zip(names, map(float, row.split(",")), strict=True)) for row in rows[1:]]
        assert metrics(server, run_id) == expected
        axes = config["_wandb"]["m"]  # as in test_all_that_is_logged_arrives_online
        assert (axes[0]["1"], axes[1]["2"], axes[1]["5"]) == ("activations", "*", 1)
    assert seen == {(size, l1, seed) for size in SIZES for l1 in L1S for seed in SEEDS}


@pytest.mark.slow
def test_agreement_reaches_the_runs_of_the_dictionaries(tracked: tuple[WandbServer, Path]) -> None:
    server, base = tracked
    cells = pd.read_csv(base / "analysis" / "mmcs.csv")
    shown = cells.query("matching == 'max' and against == 'next' and features == 'all'")
    expected = shown.set_index("dictionary")[["mmcs", "n_above"]].to_dict("index")
    for run_id in runs_of(server, "train_sae").values():
        summary, folder = server.summary(run_id), server.config(run_id)["folder"]
        found = {key: summary[key] for key in ("mmcs", "n_above") if key in summary}
        assert found == pytest.approx(expected.get(folder, {}))
        assert summary["fvu"] > 0
    assert len(expected) == 12  # the largest of four sizes has no larger one


@pytest.mark.slow
def test_every_run_names_what_it_made_and_used(tracked: tuple[WandbServer, Path]) -> None:
    server, base = tracked
    kinds = {a["artifactCollectionName"]: a["artifactTypeName"] for a in server.artifacts}
    makers = {a["artifactCollectionName"]: a["runName"] for a in server.artifacts}
    lineage = {  # by job type: what its runs made, and what they used
        "train_lm": ("language-model", None),
        "harvest": ("activations", "language-model"),
        "train_sae": ("dictionary", "activations"),
        "analyze": ("analysis", "dictionary"),
    }
    for job_type, (made, used) in lineage.items():
        run_ids = set(runs_of(server, job_type).values())
        assert {makers[name] for name, kind in kinds.items() if kind == made} == run_ids
        uses = [(run, name) for run, name in server.uses if run in run_ids]
        assert {kinds[name] for _, name in uses} == ({used} if used else set())
        assert len(uses) == (
            0 if used is None else 16 if job_type in ("train_sae", "analyze") else 1
        )
    (record,) = (
        json.loads(a["metadata"]) for a in server.artifacts if a["artifactTypeName"] == "analysis"
    )
    sha256 = hashlib.sha256((base / "analysis" / "analysis.json").read_bytes()).hexdigest()
    assert record == {"source": str(base / "analysis" / "analysis.json"), "sha256": sha256}


@pytest.mark.slow
def test_losses_and_pictures_arrive(tracked: tuple[WandbServer, Path]) -> None:
    server, base = tracked
    (lm,) = runs_of(server, "train_lm").values()
    record = json.loads((base / "lm" / "lm.json").read_text())
    assert server.summary(lm)["val_loss"] == record["losses"]["val_loss"]
    steps = [row["tokens"] for row in metrics(server, lm) if "val_loss" in row]
    assert steps == sorted(set(steps))
    assert steps[-1] == record["tokens"]

    (rows,) = runs_of(server, "harvest").values()
    assert server.summary(rows)["rows"] == 992

    (analysis,) = runs_of(server, "analyze").values()
    assert server.summary(analysis)["dictionaries"] == 16
    pictures = {
        key: value["path"]
        for row in metrics(server, analysis)
        for key, value in row.items()
        if isinstance(value, dict) and value["_type"] == "image-file"
    }
    assert "heatmap_mmcs" in pictures
    for key, path in pictures.items():
        sent = server.uploads[f"/{analysis}/{path}"]
        assert sent == (base / "analysis" / f"{key}.png").read_bytes()


@pytest.mark.slow
def test_a_failed_dictionary_is_a_failed_run_and_the_others_are_not(
    tracked: tuple[WandbServer, Path],
) -> None:
    server, base = tracked
    process = start(
        "train_sae", base, server.url, "optimizer.lr=1e-3,1e30", "sae.dict_size=20", "-m"
    )
    output = said(process)
    assert process.returncode != 0, output
    codes = {
        server.config(run_id)["optimizer"]["lr"]: server.runs[run_id]["exit_code"]
        for run_id in runs_of(server, "train_sae").values()
        if server.config(run_id)["sae"]["dict_size"] == 20
    }
    assert codes == {1e-3: 0, 1e30: 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, tracking.KILLED), (signal.SIGKILL, None)]
)
def test_a_killed_multirun_goes_on_in_the_same_runs(
    tracked: tuple[WandbServer, Path], number: signal.Signals, code: int | None
) -> None:
    server, base = tracked
    size = int(number)
    more = (
        f"sae.dict_size={size}", "seed=0,1", "training.n_activations=1_500_000",
        "training.log_every=500", "training.checkpoint_every=500", "-m",
    )  # fmt: skip
    process = start("train_sae", base, server.url, *more)

    def runs() -> dict[str, dict[str, Any]]:
        return {
            run_id: server.runs[run_id]
            for run_id in runs_of(server, "train_sae").values()
            if server.config(run_id)["sae"]["dict_size"] == size
        }

    pattern = f"*dict_size={size},*/checkpoint.safetensors"
    wait_for(lambda: len(list((base / "sae").glob(pattern))) == 2, process)
    process.send_signal(number)
    said(process, 20)
    assert process.returncode != 0
    killed = set(runs())
    assert [run.get("exit_code") for run in runs().values()] == [code] * 2

    finish(start("train_sae", base, server.url, *more))
    assert set(runs()) == killed
    assert [run["exit_code"] for run in runs().values()] == [0, 0]
    for run_id in killed:
        axis = [row["activations"] for row in metrics(server, run_id)]
        assert axis[-1] >= 1_500_000
        if number == signal.SIGTERM:
            assert axis == sorted(set(axis))


SIXTEEN = """
import functools, os, urllib.request

waited = 0.0


def timed(action, *values):
    global waited
    start = time.monotonic()
    result = action(*values)
    waited += time.monotonic() - start
    return result


import wandb, requests, pandas  # reading them in takes no server's time
openers = [functools.partial(open_run, f"run{i}") for i in range(16)]
together = tracking.together(openers)
runs = timed(together.__enter__)
for i, run in enumerate(runs):
    timed(run.log, {"seen": 1, "loss": i})
if "DIE" in os.environ:
    urllib.request.urlopen(os.environ["WANDB_BASE_URL"] + "/die")
for i, run in enumerate(runs):
    timed(run.log, {"seen": 2, "loss": i})
    timed(run.log, {"figure": Path("picture.png")})
    timed(run.table, "table", ["name", "value"], [["i", i]])
    timed(run.summary, {"end": i})
timed(together.__exit__, None, None, None)
print(waited)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "trouble",
    ["slow", "dies", "never answers", "accepts no run", "is not there", "no network", "no key"],
)
def test_a_bad_server_costs_a_minute_at_most_and_the_command_it_names_sends_everything(
    tmp_path: Path, trouble: str
) -> None:
    (tmp_path / "picture.png").write_bytes(PNG)
    with WandbServer() as server:
        env = {"WANDB_BASE_URL": server.url, **KEY}
        if trouble == "dies":
            env["DIE"] = "1"
        if trouble == "is not there":
            env["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        if trouble == "no network":
            env["WANDB_BASE_URL"] = "https://wandb.invalid"
        if trouble == "no key":
            del env["WANDB_API_KEY"]
        if trouble == "accepts no run":
            server.delays["UpsertBucket"] = 30.0
        server.delay = {"slow": 2.0, "never answers": 120.0}.get(trouble, 0.0)
        process = child(tmp_path, SIXTEEN, **env)
        assert process.returncode == 0, process.stderr
        assert float(process.stdout) < 60
        assert {path.name for path in tmp_path.iterdir()} == {"picture.png", "study", "jobs"}

        server.delay, server.delays, server.status = 0.0, {}, 200  # it is back
        command = re.findall("wandb sync .*", process.stderr)[-1]
        command_line(tmp_path, command, WANDB_BASE_URL=server.url, **KEY)
        assert sorted(by_name(server)) == sorted(f"run{i}" for i in range(16))
        assert len(server.runs) == 16
        for name, run_id in by_name(server).items():
            i = int(name.removeprefix("run"))
            plain = [
                {k: row[k] for k in ("seen", "loss") if k in row} for row in metrics(server, run_id)
            ]
            assert plain[:2] == [{"seen": 1, "loss": i}, {"seen": 2, "loss": i}]
            assert server.summary(run_id)["end"] == i
            assert server.runs[run_id]["exit_code"] == 0
            sent = {row_key: row[row_key] for row in metrics(server, run_id) for row_key in row}
            assert server.uploads[f"/{run_id}/{sent['figure']['path']}"] == PNG
            table = json.loads(server.uploads[f"/{run_id}/{sent['table']['path']}"])
            assert table == {"columns": ["name", "value"], "data": [["i", i]]}


@pytest.mark.slow
def test_a_study_needs_no_account_no_home_and_no_network(tmp_path: Path) -> None:
    base = tmp_path / "study"
    fault_study.write_corpus(tmp_path / "text.jsonl")
    for name in fault_study.SCRIPTS:
        grid = ["sae.dict_size=16,24", "-m"] if name == "train_sae" else []
        process = finished(
            [*fault_study.command(name, base, "tracking.mode=auto"), *grid],
            tmp_path,
            {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "TMPDIR": str(tmp_path)},
        )
        assert process.returncode == 0, process.stderr
        assert "wandb: offline (no API key for https://api.forge.coreweave.com)" in process.stdout
    # two dictionaries' and three other stages': the analysis adds nothing to the former
    *_, newest = sorted((base / "wandb").glob("offline-run-*"))
    assert len(list((base / "wandb").glob("offline-run-*"))) == 5
    listed = command_line(tmp_path, "wandb sync --dry-run study/wandb 2>&1")
    assert "Would sync 5 run(s)" in listed
    run = min((base / "wandb").glob("offline-run-*"))
    inspected = command_line(tmp_path, f"wandb leet inspect --summary --json {run}")
    assert "val_loss" in json.dumps(json.loads(inspected))
    # what `wandb leet` opens on has curves
    inspected = command_line(tmp_path, f"wandb leet inspect --summary --json {newest}")
    assert "FVU/l1" in json.dumps(json.loads(inspected))
