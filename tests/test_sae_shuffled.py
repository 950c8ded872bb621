"""Arrays whose last rows, those for evaluation, are not like the rest."""

import logging

import numpy as np
import pytest
from sae_helpers import config_in, sparse_rows
from site_harvest import harvest_of

from sparse_dict.activations.store import Activations
from sparse_dict.sae import shuffled, stage

ROWS, EVAL_ROWS = 6000, 1000


def folder_of(path, rows):
    path.mkdir()
    np.save(path / "x.npy", rows)
    return path


def rows_of(kind):
    """Rows whose norms vary by a factor of a hundred; `kind` says what the last ones are."""
    draw = np.random.default_rng(0)
    rows = sparse_rows(ROWS, 16).numpy() * np.exp(1.5 * draw.standard_normal((ROWS, 1)))
    last = rows[-EVAL_ROWS:]
    if kind == "small":
        last *= 0.1
    if kind == "shifted":
        last += 0.5 * rows.std(0)
    return rows.astype(np.float32)


@pytest.mark.parametrize("kind", ["small", "shifted"])
def test_last_rows_that_differ_are_told_before_the_training(tmp_path, caplog, kind):
    folder = folder_of(tmp_path / "x", rows_of(kind))
    config = config_in(folder, training={"eval_rows": EVAL_ROWS})
    with caplog.at_level(logging.INFO):
        stage.train_many([config], [tmp_path / "a"])
    told = [i for i, line in enumerate(caplog.messages) if f"{folder} is not shuffled" in line]
    table = [i for i, line in enumerate(caplog.messages) if "FVU" in line and i not in told]
    assert len(told) == 1
    assert told[0] < table[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_same_rows_in_random_order_are_not(tmp_path, seed):
    rows = np.random.default_rng(seed).permutation(rows_of("small"))
    found = Activations.open(folder_of(tmp_path / "x", rows))
    assert shuffled.warning(found, EVAL_ROWS) is None
    assert shuffled.warning(found, ROWS) is None  # nothing to compare them with


def test_a_long_array_is_looked_at_in_evenly_spaced_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(shuffled, "PIECES", 8)
    monkeypatch.setattr(shuffled, "PIECE", 16)
    found = Activations.open(folder_of(tmp_path / "x", rows_of("alike")))
    assert shuffled.warning(found, EVAL_ROWS) is None
    found = Activations.open(folder_of(tmp_path / "y", rows_of("small")))
    assert "is not shuffled" in str(shuffled.warning(found, EVAL_ROWS))


def test_a_harvest_of_ours_is_shuffled(tmp_path):
    found = Activations.open(harvest_of(tmp_path / "x", {"1/mlp_out": rows_of("small")}))
    assert shuffled.warning(found, EVAL_ROWS) is None
