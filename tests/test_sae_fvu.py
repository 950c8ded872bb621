"""The fraction of variance unexplained takes error and variance from the same rows."""

import csv
import logging

import numpy as np
import pytest
from conftest import stopped_at_once
from sae_helpers import config_in, sparse_rows

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.sae import folder, stage
from sparse_dict.sae.imported.measured import measured
from sparse_dict.sae.rows import check_evaluation_rows

D_IN, ROWS, EVAL = 16, 4000, 256


def folder_of(path, rows):
    path.mkdir()
    np.save(path / "x.npy", rows.astype(np.float32))
    return path


@pytest.fixture
def drifting(tmp_path):
    """Rows that spread wider and wider: each part of them has a variance of its own."""
    rows = sparse_rows(ROWS, D_IN).numpy()
    return folder_of(tmp_path / "drifting", rows * np.linspace(0.5, 4, ROWS)[:, None] + 1)


def history(path):
    return list(csv.DictReader((path / folder.HISTORY).open()))


def test_the_final_fvu_is_of_the_evaluation_rows_alone(drifting, tmp_path):
    (metrics,) = stage.train_many([config_in(drifting)], [tmp_path / "sae"])
    x = Activations.open(drifting).read(ROWS - EVAL, ROWS).astype(np.float64)
    dictionary = folder.read(tmp_path / "sae").dictionary
    error = dictionary.reconstruct(x.astype(np.float32)) - x
    wanted = (error**2).mean() / x.var(0).mean()
    assert metrics["fvu"] == pytest.approx(wanted, rel=1e-4)
    assert metrics["variance"] * metrics["activations_scale"] ** 2 == pytest.approx(x.var(0).mean())


def test_a_dictionary_from_elsewhere_is_measured_likewise(drifting, monkeypatch):
    monkeypatch.setattr("sparse_dict.sae.imported.measured.EVAL_ROWS", EVAL)
    rows = np.eye(D_IN, dtype=np.float32)
    identity = folder.Dictionary(rows, np.zeros(D_IN, "f4"), rows, np.zeros(D_IN, "f4"))
    found, _ = measured(identity, Activations.open(drifting), "relu", {})
    x = Activations.open(drifting).read(ROWS - EVAL, ROWS).astype(np.float64)
    wanted = (np.minimum(x, 0) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert found["fvu"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("kind", ["relu", "gated"])  # by the compiled step and by the generic one
def test_each_line_of_the_history_is_of_the_rows_since_the_last(drifting, tmp_path, kind):
    config = config_in(drifting, activation=kind)
    stage.train_many([config], [tmp_path / "sae"])
    batch, every = config.training.batch_size, config.training.log_every
    opened = Activations.open(drifting)
    seen, trained = opened.read(0, ROWS - EVAL).astype(np.float64) / opened.rms, ROWS - EVAL
    lines = history(tmp_path / "sae")
    assert len(lines) == 4
    for number, line in enumerate(lines):
        rows = np.arange(number * every * batch, (number + 1) * every * batch) % trained
        variance = seen[rows].var(0).mean()
        assert float(line["mse"]) / float(line["fvu"]) == pytest.approx(variance, rel=1e-5)


def test_an_interrupted_training_writes_the_same_history(drifting, tmp_path, monkeypatch):
    config = config_in(drifting, training={"log_every": 3})
    stage.train_many([config], [tmp_path / "whole"])
    with stopped_at_once(monkeypatch):
        for _ in range(2):  # the second goes on within three steps that are logged together
            with pytest.raises(Interrupted):
                stage.train_many([config], [tmp_path / "part"])
    stage.train_many([config], [tmp_path / "part"])
    whole, part = (history(tmp_path / name) for name in ("whole", "part"))
    assert [line["fvu"] for line in part] == [line["fvu"] for line in whole]


def test_last_rows_unlike_the_others_are_told_and_like_ones_are_not(drifting, tmp_path, caplog):
    usual = folder_of(tmp_path / "usual", sparse_rows(ROWS, D_IN).numpy())
    moved = sparse_rows(ROWS, D_IN).numpy()
    moved[-EVAL:] += 0.5
    shifted = folder_of(tmp_path / "shifted", moved)
    with caplog.at_level(logging.WARNING):
        check_evaluation_rows(Activations.open(usual), EVAL)
        assert not caplog.messages
        for path in (drifting, shifted):
            stage.check(config_in(path), tmp_path / "sae")
            stage.check(config_in(path), tmp_path / "sae")  # told once
    assert len(caplog.messages) == 2
    assert all(text.startswith("not shuffled: FVU is of the last 256") for text in caplog.messages)


def test_last_rows_that_are_all_the_same_are_refused(tmp_path):
    rows = sparse_rows(ROWS, D_IN).numpy()
    rows[-EVAL:] = 0
    with pytest.raises(UserError, match=r"its last 256 rows are all the same: shuffle"):
        stage.check(config_in(folder_of(tmp_path / "a", rows)), tmp_path / "sae")


@pytest.mark.parametrize("times", [1e37, 1e-37, np.arange(ROWS)[:, None] ** 4 * 1e6])
def test_rows_whose_squares_float32_does_not_hold_are_refused_at_the_check(tmp_path, times):
    rows = sparse_rows(ROWS, D_IN).numpy() * times
    with pytest.raises(UserError, match="scale its rows to an RMS near 1"):
        stage.check(config_in(folder_of(tmp_path / "a", rows)), tmp_path / "sae")
