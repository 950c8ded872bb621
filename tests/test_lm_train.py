import itertools
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparse_dict.config import AdamWConfig, LMTrainingConfig, ModelConfig, MuonConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import checkpoint, train
from sparse_dict.lm.model import GPT
from sparse_dict.lm.optimizer import learning_rate, make_optimizer
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.text.tokens import TokenStream

N_VOCAB = 23
MODEL = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_mlp=16, n_ctx=8)
OPTIMIZER = AdamWConfig(
    lr=1e-2, min_lr_ratio=0.1, beta1=0.9, beta2=0.95, weight_decay=0.1, warmup_fraction=0.1,
    grad_clip=1.0,
)  # fmt: skip


MUON = MuonConfig(**vars(OPTIMIZER), hidden_lr=3e-2, momentum=0.9)


class FakeRun:
    def __init__(self, at=None, act=None):
        self.rows = []
        self.at, self.act = at, act

    def log(self, values):
        self.rows.append(values)
        if values["tokens"] == self.at and "lr" in values:
            self.act()


def stream():
    tokens = np.random.default_rng(0).integers(N_VOCAB, size=2_000) // 2
    return TokenStream([tokens.astype(np.uint16)], np.array([0]))


def make_job(folder, n_steps=20, optimizer=OPTIMIZER, **training):
    values = {
        "n_tokens": n_steps * 4 * 2 * 8, "batch_size": 4, "accumulate": 2, "precision": "fp32",
        "eval_every": 7, "eval_tokens": 64, "checkpoint_every": 1_000, "log_every": 1,
    }  # fmt: skip
    return train.Job(
        train=stream(),
        validation=train.validation_windows(stream(), 8, 64),
        n_ctx=8,
        optimizer=optimizer,
        training=LMTrainingConfig(**(values | training)),
        seed=3,
        checkpoint=folder / "checkpoint" / "state.safetensors",
        identity={"config": {}, "corpus": "0"},
    )


def new_model():
    torch.manual_seed(0)
    return GPT(MODEL, N_VOCAB)


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_alike(model, other):
    """Bit for bit."""
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_by_a_signal_goes_on_to_the_same_weights(tmp_path, number):
    straight = new_model()
    whole = train.train(straight, make_job(tmp_path / "a"), FakeRun())

    job = make_job(tmp_path / "b")
    stop = FakeRun(at=10 * job.step_tokens, act=lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted) as stopped:
        train.train(new_model(), job, stop)
    assert stopped.value.code == 128 + number
    torch.manual_seed(99)  # a fresh process starts with other random numbers
    resumed = GPT(MODEL, N_VOCAB)
    run = FakeRun()
    state = train.train(resumed, job, run)
    assert run.rows[0]["tokens"] == 11 * job.step_tokens
    assert_alike(resumed, straight)
    assert state.history == whole.history


@pytest.mark.parametrize("optimizer", [OPTIMIZER, MUON], ids=["adamw", "muon"])
def test_a_run_started_from_a_regular_checkpoint_ends_alike(tmp_path, optimizer):
    class Killed(Exception):
        pass

    def die():
        raise Killed

    job = make_job(tmp_path, optimizer=optimizer, checkpoint_every=6)
    straight = new_model()
    train.train(straight, make_job(tmp_path / "a", optimizer=optimizer), FakeRun())
    with pytest.raises(Killed):
        train.train(new_model(), job, FakeRun(at=15 * job.step_tokens, act=die))
    resumed, run = new_model(), FakeRun()
    train.train(resumed, job, run)
    assert run.rows[0]["tokens"] == 13 * job.step_tokens
    assert_alike(resumed, straight)


@pytest.mark.parametrize("optimizer", [OPTIMIZER, MUON], ids=["adamw", "muon"])
def test_the_loss_falls_below_that_of_a_uniform_guess(tmp_path, optimizer):
    job = make_job(tmp_path, n_steps=60, optimizer=optimizer)
    state = train.train(new_model(), job, FakeRun())
    assert state.history[-1]["val_loss"] < math.log(N_VOCAB) - 0.4


def test_accumulated_batches_give_the_gradient_of_one_large_batch(tmp_path):
    small, large = new_model(), new_model()
    train.train(small, make_job(tmp_path / "a", n_steps=3), FakeRun())
    train.train(large, make_job(tmp_path / "b", n_steps=3, batch_size=8, accumulate=1), FakeRun())
    before = weights(new_model())
    for name, value in weights(small).items():
        # By norms: where a gradient is hardly more than its rounding, AdamW moves by that.
        wanted = weights(large)[name]
        assert (value - wanted).norm() <= 1e-3 * (wanted - before[name]).norm()


def test_batches_depend_on_seed_and_step_alone_and_hold_consecutive_tokens(tmp_path):
    job = make_job(tmp_path)
    first = train.batch(job, 5)
    train.batch(job, 6)
    assert first.shape == (2, 4, 9)
    assert (train.batch(job, 5) == first).all()
    assert (train.batch(job, 6) != first).any()
    assert (train.batch(replace(job, seed=4), 5) != first).any()
    text = job.train.window(0, len(job.train))
    places = np.lib.stride_tricks.sliding_window_view(text, 9)
    assert all((places == window).all(1).any() for window in first.reshape(-1, 9))


def test_every_place_of_the_text_is_drawn(tmp_path):
    short = TokenStream([np.arange(12, dtype=np.uint16)], np.array([0]))
    job = replace(make_job(tmp_path), train=short)
    starts = {int(w[0]) for step in range(20) for w in train.batch(job, step).reshape(-1, 9)}
    assert starts == {0, 1, 2, 3}


def test_validation_windows_are_spread_from_the_first_to_the_last_token():
    windows = train.validation_windows(stream(), 8, 64)
    assert windows.shape == (8, 9)
    assert (windows[0] == stream().window(0, 9)).all()
    assert (windows[-1] == stream().window(len(stream()) - 9, 9)).all()


def test_the_learning_rate_warms_up_and_ends_at_its_floor():
    rates = [learning_rate(OPTIMIZER, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-3 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    no_warmup = replace(OPTIMIZER, warmup_fraction=0.0)
    assert learning_rate(no_warmup, 0, 100) == pytest.approx(1e-2)
    assert learning_rate(OPTIMIZER, 0, 1) == pytest.approx(1e-2)
    longer = replace(OPTIMIZER, cosine_runs=2.0, warmup_fraction=0.05)  # ends halfway down
    whole = [learning_rate(replace(OPTIMIZER, warmup_fraction=0.025), s, 400) for s in range(200)]
    assert [learning_rate(longer, step, 200) for step in range(200)] == pytest.approx(whole)


def test_vectors_are_not_decayed():
    model = new_model()
    optimizer = make_optimizer(model, replace(OPTIMIZER, weight_decay=1.0, lr=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = weights(model)
    optimizer.step()
    for name, value in weights(model).items():
        factor = 0.9 if value.ndim == 2 else 1.0
        torch.testing.assert_close(value, before[name] * factor)


def test_a_loss_that_is_not_finite_ends_with_the_step_and_keeps_the_last_good_state(tmp_path):
    job = make_job(tmp_path, checkpoint_every=4)
    model = new_model()

    def spoil():
        with torch.no_grad():
            model.embed.weight[0, 0] = float("nan")

    with pytest.raises(UserError, match=r"not finite at step 6.*holds step 4"):
        train.train(model, job, FakeRun(at=6 * job.step_tokens, act=spoil))
    good = new_model()
    state = checkpoint.load(job.checkpoint, good, make_optimizer(good, OPTIMIZER))
    assert state.step == 4
    assert all(p.isfinite().all() for p in good.parameters())


@pytest.mark.parametrize("eval_every", [1, 100])
def test_a_state_of_which_the_loss_is_not_finite_is_not_saved(tmp_path, eval_every):
    job = make_job(tmp_path, checkpoint_every=1, eval_every=eval_every)
    job.optimizer = replace(OPTIMIZER, lr=1e30)
    with pytest.raises(UserError, match=r"not finite at step 1.*no checkpoint was written"):
        train.train(new_model(), job, FakeRun())
    assert not job.checkpoint.exists()


def test_bfloat16_trains_as_well(tmp_path):
    job = make_job(tmp_path, n_steps=40, precision="bf16")
    exact = make_job(tmp_path / "b", n_steps=40)
    loss = train.train(new_model(), job, FakeRun()).history[-1]["val_loss"]
    assert loss == pytest.approx(
        train.train(new_model(), exact, FakeRun()).history[-1]["val_loss"], abs=0.02
    )


@pytest.mark.parametrize("damage", ["truncated", "no header", "another shape"])
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, damage):
    job, model = make_job(tmp_path, n_steps=2), new_model()
    train.train(model, job, FakeRun())
    if damage == "truncated":
        job.checkpoint.write_bytes(job.checkpoint.read_bytes()[:-100])
    elif damage == "no header":
        save_file({"x": torch.zeros(1)}, job.checkpoint)
    else:
        model = GPT(replace(MODEL, d_mlp=24), N_VOCAB)
    with pytest.raises(UserError, match=r"damaged .*delete"):
        train.train(model, job, FakeRun())
