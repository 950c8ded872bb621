"""An intervention is one module behind one interface: one that nobody thought of."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import stopped_at_once
from sae_helpers import config_in, results, sae_config, sparse_rows

from sparse_dict.config import SAEConfig
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.sae import folder, interventions, schema, stage
from sparse_dict.sae.interventions import Intervention, Moment
from sparse_dict.storage import tensor_files


@dataclass
class PullConfig(SAEConfig):
    pull: float = 0.0


class Pull(Intervention[PullConfig]):
    """Begins with the first feature along the first axis, pulls biases to -1, and counts steps."""

    Config = PullConfig
    others = 1

    @staticmethod
    def asked(sae):
        return sae.pull > 0

    def begin(self, p, generator):
        p["W_dec"][0] = torch.eye(p["W_dec"].shape[1])[0]

    @property
    def term(self):
        return towards_minus_one

    def beside(self, state, begun):
        self.steps = torch.zeros(1)
        return [begun(state.seed + 1)]

    def after_step(self, states, at: Moment):
        assert len(states) == 2
        assert sum(len(rows) for rows in at.before(at.seen)) == at.seen
        self.steps += 1

    def tensors(self):
        return {"pull.steps": self.steps}

    def load(self, tensors):
        self.steps.copy_(tensors["pull.steps"])


def towards_minus_one(p, fit, numbers):
    return (p["b"] + 1).square().sum(-1)


@pytest.fixture
def pull(monkeypatch):
    """As if `sae/interventions/pull.py` were there."""
    monkeypatch.setitem(interventions.known(), "pull", Pull)
    schema.of.cache_clear()
    yield
    schema.of.cache_clear()


@pytest.fixture
def activations_dir(tmp_path: Path) -> Path:
    path = tmp_path / "activations"
    path.mkdir()
    np.save(path / "a.npy", sparse_rows(5000, 24).numpy())
    return path


def test_what_it_does_is_trained_logged_and_resumed(pull, activations_dir, tmp_path, monkeypatch):
    config, plain = (config_in(activations_dir, lr=1e-1, pull=pull) for pull in (1.0, 0.0))
    outcomes = stage.train_many([config, plain], [tmp_path / "a", tmp_path / "plain"])
    assert [outcome["trained_together"] for outcome in outcomes] == [2, 2]
    pulled, free = (folder.read(tmp_path / name).dictionary for name in ("a", "plain"))
    assert pulled.b_enc.mean() < free.b_enc.mean() - 0.3
    with stopped_at_once(monkeypatch):
        for _ in range(2):
            with pytest.raises(Interrupted):
                stage.train_many([config], [tmp_path / "parts"])
    kept = tensor_files.read_checkpoint(tmp_path / "parts" / folder.CHECKPOINT)
    assert kept["pull.steps"].tolist() == [2]
    stage.train_many([config], [tmp_path / "parts"])
    assert results(tmp_path / "parts") == results(tmp_path / "a")


def test_its_keys_are_those_of_every_kind_and_older_records_are_without_it(
    pull, activations_dir, tmp_path
):
    stage.train_many([config_in(activations_dir)], [tmp_path / "a"])
    stage.check(config_in(activations_dir), tmp_path / "a")
    for kind in ("relu", "gated", "crosscoder"):
        assert sae_config(activation=kind, pull=2.0).sae.pull == 2.0


def test_the_dictionaries_that_it_trains_count_as_work(pull):
    config = sae_config()
    asked = replace(config, sae=replace(config.sae, pull=1.0))
    assert stage.weight(asked) == 2 * stage.weight(config)
