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
        "n_activations": 200_000, "seconds": 20.0,
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
    rungs = [rung(0.5, 0.10, 90), rung(1, 0.15, 40), rung(2, 0.25, 12), rung(4, 0.6, 3)]
    assert usefulness.recommended(rungs) is rungs[2]
    lines = probe.advice(rungs, ["experiment=probe", "name=a", "training.batch_size=9"], "gated")
    assert lines[-1] == (
        "python train_sae.py -m name=a sae=gated sae.dict_size=100,200,400 sae.l1=1,2,4 seed=0,1"
    )
    # 4 M features times rows a second; 700 features, 3 levels, 2 seeds, 1 M rows
    assert "takes 18 min a million" in lines[1]
    assert len(lines) == 3


def test_dead_rungs_are_not_recommended_and_lower_ones_are_proposed():
    rungs = [rung(1, 0.5, 30, 80), rung(2, 2.1, 0, 100)]
    assert usefulness.recommended(rungs) is None
    command = "python train_sae.py experiment=probe name=a sae.l1=0.03125,0.0625"
    assert probe.advice(rungs, ["name=a"], "untied")[-1] == command


def test_what_a_probe_prints_and_draws(tmp_path: Path, capsys):
    x = sparse_rows(3000, 16).numpy() + np.float32(0.5)
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", x)
    for level, fvu in ((1, 0.1), (2, 0.2), (4, 0.9)):
        (tmp_path / str(level)).mkdir()
        metrics = rung(level, fvu, 9 / level)
        metrics |= {"tied": False, "d_in": 16, "l1": level, "seed": 0, "eval_rows": 500}
        metrics["config"]["activations_dir"] = str(tmp_path / "a")
        metrics["config"]["activations"]["scaling"] = "rms"
        write_json(tmp_path / str(level) / "metrics.json", metrics)
    config = OmegaConf.create(
        {
            "hydra": {
                "sweep": {"dir": str(tmp_path)},
                "overrides": {"task": ["experiment=probe", "activations_dir=a"]},
                "runtime": {"choices": {"sae": "untied"}},
            }
        }
    )
    probe.Recommend().on_multirun_end(config)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "untied, 100 features, 16 wide"
    assert told[1].split() == ["l1", "FVU", "neurons", "L0", "dead"]
    assert [line.split()[0] for line in told[2:5]] == ["1", "2", "4"]
    last = x[-500:].astype(np.float64)
    squares = np.sort((last - x.mean(0, dtype=np.float64)) ** 2, axis=1)
    left = [squares[:, : 16 - k].sum() / ((last - last.mean(0)) ** 2).sum() for k in range(10)]
    wanted = left[9], (left[4] + left[5]) / 2, 0.75 * left[2] + 0.25 * left[3]  # at L0 9, 4.5, 2.25
    assert [float(line.split()[2]) for line in told[2:5]] == pytest.approx(wanted, abs=5e-4)
    assert told[5].startswith("neurons: FVU of as many neurons as L0")
    assert told[5].endswith("train longer, or with more features.") == (wanted[1] <= 0.2)
    picture = told[6].removeprefix("picture: ")
    assert Path(picture).stat().st_size > 1000
    assert told[-1].startswith("python train_sae.py -m activations_dir=a sae.dict_size=100,200,400")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["probe", "probe_k"])
def test_a_probe_is_one_command(tmp_path: Path, experiment):
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "x.npy", sparse_rows(3000, 16).numpy())
    done = run(
        "train_sae", f"experiment={experiment}", "activations_dir=a", "study_dir=out",
        "training.n_activations=10_000", "training.eval_rows=500", "sae.dict_size=128",
        "tracking.mode=disabled", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kind = "topk" if experiment == "probe_k" else "untied"
    assert f"{kind}, 128 features, 16 wide" in done.stdout
    assert list((tmp_path / "out/probe").glob("probe-*-128.png"))
