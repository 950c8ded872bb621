"""Learning rate and penalties over a training."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sae_helpers import sae_config

from sparse_dict.activations.store import Activations
from sparse_dict.config import AdamConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.scaling import settled
from sparse_dict.sae.schedule import check, hyper, rate

SHAPES = st.sampled_from(["constant", "linear", "cosine"])


def adam(**values) -> AdamConfig:
    usual = dict(lr=2e-3, beta1=0.9, beta2=0.999, eps=1e-8, warmup_steps=0)
    return AdamConfig(**(usual | values))


def test_warm_up_raises_the_penalty_and_the_learning_rate_in_proportion():
    config = sae_config(l1=0.4, lr=1e-2, training={"l1_warmup_steps": 8})
    config.optimizer.warmup_steps = 4
    assert hyper(config, 2, 32).numbers["l1"] == pytest.approx(0.1)
    assert hyper(config, 2, 32).lr == pytest.approx(5e-3)
    assert hyper(config, 100, 32).numbers["l1"] == pytest.approx(0.4)
    assert hyper(config, 100, 32).lr == pytest.approx(1e-2)


@pytest.mark.parametrize("key", ["optimizer.warmup_steps", "training.l1_warmup_steps"])
def test_a_warm_up_that_outlasts_the_training_is_refused(key):
    config = sae_config(training={"n_activations": 4096, "batch_size": 512})
    section, name = key.split(".")
    setattr(getattr(config, section), name, 8)
    check(config)
    setattr(getattr(config, section), name, 9)
    with pytest.raises(UserError, match=f"{key}=9 outlasts the training, which has 8 steps"):
        check(config)


@given(SHAPES, st.integers(1, 300), st.integers(0, 50), st.floats(0.01, 1))
def test_the_rate_is_positive_and_only_falls_once_it_has_risen(shape, last, warm, fraction):
    o = adam(schedule=shape, warmup_steps=warm, decay_fraction=fraction)
    rates = [rate(o, step, last) for step in range(1, last + 1)]
    assert all(0 < r <= o.lr for r in rates)
    begins = int((1 - fraction) * last)
    assert rates[warm:begins] == [o.lr] * len(rates[warm:begins])
    assert rates[max(warm, begins) :] == sorted(rates[max(warm, begins) :], reverse=True)


def test_the_shapes_of_the_decay():
    at = {
        shape: [rate(adam(lr=1.0, schedule=shape), step, 100) for step in (80, 91, 100)]
        for shape in ("constant", "linear", "cosine")
    }
    assert at["constant"] == [1.0, 1.0, 1.0]
    assert at["linear"] == pytest.approx([1.0, 0.5, 0.05])
    assert at["cosine"] == pytest.approx([1.0, 0.5, 0.00615583])


@pytest.mark.parametrize("wrong", [{"schedule": "step"}, {"decay_fraction": 0.0}])
def test_a_wrong_schedule_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        adam(**wrong)


@pytest.mark.parametrize(("width", "rate_"), [(64, 4e-3), (128, 4e-3), (512, 2e-3)])
def test_wider_activations_get_a_lower_rate_which_is_recorded(tmp_path, width, rate_):
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).random((9, width), np.float32))
    activations = Activations.open(tmp_path)
    config = sae_config(lr=4e-3)
    assert settled(config, activations).optimizer.lr == 4e-3
    config.optimizer.lr_scaling = "d_in"
    found = settled(config, activations)
    assert (found.optimizer.lr, found.optimizer.lr_scaling) == (pytest.approx(rate_), "none")
    assert settled(found, activations) == found
