"""What is said of dictionaries of no use, and what a probe recommends."""

from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from sae_helpers import sparse_rows
from test_cli_errors import run

from sparse_dict.analysis import probe
from sparse_dict.sae import usefulness
from sparse_dict.storage.files import write_json


def rung(level, fvu, l0, dead=0, activation="relu", centering="none"):
    key = "k" if activation == "topk" else "l1"
    return {
        "fvu": fvu, "l0": l0, "dead": dead, "dict_size": 100, "activation": activation,
        "config": {"sae": {key: level}, "activations": {"centering": centering}},
        "tied": False, "n_activations": 200_000, "seconds": 20.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("bad", "words", "advice"),
    [
        (rung(8, 2.1, 0, 100), "1 with an FVU of 1 or more", "lower sae.l1"),
        (rung(8, 0.9, 0.4), "1 with an L0 below 1", "lower sae.l1"),
        (rung(2, 0.5, 9, 60), "1 with more than half", "try activations.centering=mean, sae.init"),
        (rung(2, 0.5, 9, 60, "relu", "mean"), "1 with more than half", "try sae.init=aligned"),
        (rung(2, 1.2, 9), "1 with an FVU of 1 or more", "raise training.n_activations"),
        (rung(8, 0.5, 8, 60, "topk"), "1 with more than half", "try activations.centering=mean"),
    ],
)
def test_a_dictionary_of_no_use_is_told_with_what_to_change(bad, words, advice):
    line = usefulness.warning([rung(1, 0.2, 20), bad])
    assert line.startswith("of 2 dictionaries, ")
    assert words in line
    assert f": {advice}" in line
    assert usefulness.warning([rung(1, 0.2, 20)]) is None


def test_the_sparsest_rung_that_explains_nearly_all_is_recommended():
    rungs = [rung(4, 0.6, 3), rung(2, 0.25, 12), rung(1, 0.15, 25), rung(0.5, 0.01, 90)]
    assert usefulness.recommended(rungs) is rungs[1]  # 68 % of what a quarter of features explain
    assert usefulness.recommended(rungs[3:]) is rungs[3]
    own = [
        "experiment=[mine,probe]",
        "name=a",
        "training.batch_size=9",
        "sparsity={l1:1}",
        "seed=3",
    ]
    lines = probe.advice({"untied": rungs}, 500_123, own)
    assert lines[-1] == (
        "python train_sae.py -m experiment=mine name=a training.batch_size=9 sae=untied "
        "sae.dict_size=50,100,200 sae.l1=1,2,4 seed=0,1 training.n_activations=1500000"
    )
    # 4 M features times rows a second; 350 features, 3 levels, 2 seeds, 1.5 M rows
    assert lines[-2] == "At this speed the next command, 18 dictionaries, takes 13 min:"
    assert len(lines) == 3
    assert "end of the values" in probe.advice({"untied": rungs[1:]}, 9, own)[1]
    assert "experiment" not in probe.advice({"untied": rungs}, 9, ["experiment=probe"])[-1]


def test_where_no_rung_is_of_use_what_to_change_is_said_and_no_probe_advised():
    lines = probe.advice({"untied": [rung(1, 0.5, 30, 80), rung(2, 2.1, 0, 100)]}, 9, [])
    assert len(lines) == 1
    assert "training.n_activations" in lines[0]
    assert "probe" not in lines[0]


def test_kinds_are_compared_at_the_same_l0s():
    rungs = [rung(4, 0.8, 8), rung(2, 0.4, 32), rung(1, 2.0, 0)]
    assert probe.at_targets(rungs) == pytest.approx([0.6, 0.4, np.nan], nan_ok=True)
    assert np.isnan(probe.at_targets([rung(1, 2.0, 0)])).all()


def test_what_a_probe_prints_and_draws(tmp_path: Path, capsys):
    x = sparse_rows(3000, 24).numpy() + np.float32(0.5)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", x)
    for name, level, fvu in (("relu", 1, 0.1), ("relu", 2, 0.9), ("topk", 16, 0.2)):
        folder = tmp_path / f"{name}{level}"
        folder.mkdir()
        metrics = rung(level, fvu, 20 / level if name == "relu" else level, activation=name)
        metrics |= {"tied": False, "d_in": 24, "l1": level, "seed": 0, "eval_rows": 500}
        metrics["config"]["activations_dir"] = str(tmp_path / "a")
        metrics["config"]["activations"]["scaling"] = "rms"
        write_json(folder / "metrics.json", metrics)
    task = ["experiment=probe", "activations_dir=a"]
    hydra = {"sweep": {"dir": str(tmp_path)}, "overrides": {"task": task}}
    probe.Recommend().on_multirun_end(OmegaConf.create({"hydra": hydra}))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "100 features of activations 24 wide"
    assert [line.split()[:3] for line in told[2:5]] == [
        ["untied", "l1", "2"], ["untied", "l1", "1"], ["topk", "k", "16"],
    ]  # fmt: skip
    assert told[6].split() == ["FVU", "at", "L0", "16", "32", "64"]
    assert told[8].split() == ["topk", "0.200", "-", "-"]
    last = x[-500:].astype(np.float64)
    squares = np.sort((last - x.mean(0, dtype=np.float64)) ** 2, axis=1)
    left = squares[:, :8].sum() / ((last - last.mean(0)) ** 2).sum()
    assert [float(fvu) for fvu in told[9].split()[2:]] == pytest.approx([left, 0, 0], abs=5e-4)
    name, at_16, *_ = told[10].split()
    assert name == "ICA"
    assert 0 < float(at_16) < 1
    assert Path(told[12].removeprefix("picture: ")).stat().st_size > 1000
    assert told[-1].startswith("python train_sae.py -m activations_dir=a sae=topk")


@pytest.mark.slow
def test_a_probe_is_one_command(tmp_path: Path):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", sparse_rows(3000, 64).numpy())
    done = run(
        "train_sae", "experiment=probe", "activations_dir=a", "study_dir=out",
        "training.n_activations=10_000", "training.eval_rows=500", "tracking.mode=offline",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "128 features of activations 64 wide" in done.stdout
    assert "experiment=probe" not in done.stdout.partition("dictionaries\n")[2]
    assert list((tmp_path / "out/probe").glob("probe-128.png"))
    (one, *_) = (tmp_path / "out/wandb").glob("offline-run-*/*.wandb")
    assert b"probe" in one.read_bytes()
