"""Several processes as torchrun starts them: two real ones over gloo, on a model of a few KB."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import test_activations_harvest as harvest
import test_lm_train as lm
from fault_study import write_corpus

from sparse_dict.activations.store import Activations
from sparse_dict.lm import checkpoint, folder, train
from sparse_dict.machine import distributed
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.tools import verify

ROOT = Path(__file__).parent.parent
N = 2


def launched(*command):
    """A script in `N` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={N}", f"--master-port={port}"]
    return subprocess.Popen(
        [sys.executable, *torchrun, *map(str, command)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def losses(history):
    return [float(row[key]) for row in history for key in ("train_loss", "val_loss")]


def test_without_torchrun_a_process_is_alone():
    assert (distributed.rank(), distributed.size(), distributed.main()) == (0, 1, True)
    assert distributed.gather(3.5) == [3.5]


@pytest.mark.slow
def test_two_processes_train_resume_and_harvest_as_one_does(tmp_path):
    whole = train.train(lm.new_model(), lm.make_job(tmp_path / "one"), lm.FakeRun())
    resumed = lm.make_job(tmp_path / "resumed")
    stop = lm.FakeRun(10 * resumed.step_tokens, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        train.train(lm.new_model(), resumed, stop)
    process = launched(ROOT / "tests" / "distributed_worker.py", tmp_path)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output

    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(N)]
    assert found[0] == found[1]
    assert found[0]["gathered"] == [0.5, 1.5]
    for history in found[0]["histories"]:  # from the beginning, and from one process' step 10
        assert [row["step"] for row in history] == [row["step"] for row in whole.history]
        assert losses(history) == pytest.approx(losses(whole.history), rel=1e-5)
        assert losses(history) != losses(whole.history)  # another order of summation

    harvest.harvested(tmp_path / "one" / "rows", harvest.new_model(), harvest.new_stream())
    names = {path.name for path in (tmp_path / "rows").iterdir()}
    assert names == {path.name for path in (tmp_path / "one" / "rows").iterdir()}
    for name in names:
        one, two = (folder / name for folder in (tmp_path / "one" / "rows", tmp_path / "rows"))
        assert one.read_bytes() == two.read_bytes(), name


TEXT = ["data=files", "data.val_fraction=0.3", "tracking.mode=disabled", "device=cpu"]
LM = [
    "tokenizer.vocab_size=300", "tokenizer.train_chars=100_000",
    "model.n_layers=2", "model.n_heads=2", "model.d_model=8", "model.d_mlp=16", "model.n_ctx=16",
    "training.batch_size=4", "training.accumulate=2", "training.eval_every=5",
    "training.eval_tokens=500", "training.n_tokens=2560",
]  # fmt: skip
HARVEST = [
    "harvest.layer=1", "harvest.split=all", "harvest.batch_size=4", "harvest.n_tokens=3000",
    "harvest.shard_rows=700",
]  # fmt: skip


def script(name, base, *overrides):
    where = [f"data.files={base}/text.jsonl", f"cache_dir={base}/cache", f"study_dir={base}/two"]
    stage = {"train_lm.py": [*TEXT, *LM], "harvest.py": [*TEXT, *HARVEST]}[name]
    return launched(name, *where, *stage, *overrides)


@pytest.fixture
def base(tmp_path):
    write_corpus(tmp_path / "text.jsonl")
    return tmp_path


@pytest.mark.slow
def test_the_scripts_write_one_study_that_verifies(base, capsys):
    for name in ("train_lm.py", "harvest.py"):
        process = script(name, base)
        output = process.communicate(timeout=120)[0]
        assert process.returncode == 0, output
        assert output.count("tokens: train") == 1  # rank 0 alone logs
    assert len(list(csv.DictReader((base / "two" / "lm" / "history.csv").open()))) == 4
    folder.load(base / "two" / "lm")
    assert len(Activations.open(base / "two" / "activations").shards) == 5
    assert verify.main([str(base / "two")]) == 0, capsys.readouterr().out
    assert script("harvest.py", base).communicate(timeout=120)[0].count("already there") == 1


def trains(base):
    """A long training of which the first losses are there, and its processes."""
    process = script("train_lm.py", base, "training.n_tokens=20_000_000")
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "step 5: loss" in line:
            break
    else:
        pytest.fail("".join(seen))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return process, [int(child) for child in children.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' /proc")
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(base):
    process, children = trains(base)
    os.kill(children[1], signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1  # torchrun's own; it names that of the process that ended first
    assert "exitcode  : 130" in output
    assert output.count("the same command goes on from there") == 1
    identity = checkpoint.identity(base / "two" / "lm" / folder.CHECKPOINT)
    assert identity["config"]["training"]["n_tokens"] == 20_000_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux' /proc")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_takes_the_others_with_it(base, rank):
    process, children = trains(base)
    os.kill(children[rank], signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert not any(Path(f"/proc/{child}").exists() for child in children)


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_equally_is_refused_once_and_leaves_nothing(base):
    process = script("train_lm.py", base, "training.batch_size=5")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert output.count("training.batch_size must be a multiple of the 2 processes") == 1
    assert not (base / "two").exists()


@pytest.mark.slow
def test_what_one_process_does_alone_says_so(base):
    process = launched("analyze.py", f"study_dir={base}/two", "tracking.mode=disabled")
    output = process.communicate(timeout=120)[0]
    assert output.count("analyze.py runs as one process: start it without torchrun") == 1
