"""One optimiser step, against autograd and torch.optim.Adam, and against itself in company."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_rounded
from sae_helpers import (
    CPU,
    assert_same_parameters,
    begun,
    by_the_definition,
    sae_config,
    sparse_rows,
    take,
)
from torch import Tensor

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae.interventions.resample import resample
from sparse_dict.sae.state import State
from sparse_dict.sae.step_cpu import SparseStep, auxiliary_gradients
from sparse_dict.sae.step_torch import DenseStep

VARIANTS = [
    {},
    {"tied": True},
    {"l1_scaling": "dict_size", "l1": 0.5},
    {"project_gradient": True},
    {"tied": True, "project_gradient": True},
    {"dict_size": 600},  # more than one block of features
    {"activation": "topk", "k": 5, "l1": 0.0},
    {"activation": "batch_topk", "k": 5, "l1": 0.0},
    {"activation": "jumprelu", "l1": 0.0, "l0": 1e-3},
    {"encoder_norm": True},
    {"encoder_norm": True, "tied": True},
    {"encoder_norm": True, "activation": "topk", "k": 5, "l1": 0.0},
    {"dead": "auxk", "aux_coefficient": 0.5},
    {"dead": "auxk", "aux_coefficient": 0.5, "tied": True},
    {"dead": "auxk", "activation": "topk", "l1": 0.0, "aux_coefficient": 0.5},
    {"dead": "auxk", "activation": "jumprelu", "l1": 0.0, "l0": 1e-3, "aux_coefficient": 0.5},
    {"dead": "resample", "resample_every": 3},
    {"dead": "resample", "resample_every": 3, "tied": True},
    {"dead": "resample", "activation": "batch_topk", "l1": 0.0, "resample_every": 4},
]


def train(step_class, configs: list[TrainSAEConfig], batches: list[Tensor], d_in: int):
    """States and sums after training on `batches`."""
    states = [begun(config, d_in) for config in configs]
    sums = []
    with step_class(states) as step:
        for t, x in enumerate(batches, start=1):
            take(step, configs, t, x)
            sums.append([state.stats() for state in states])
            for state in states:
                state.sums.zero_()
    return states, sums


@pytest.mark.parametrize("step_class", [SparseStep, DenseStep])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("d_in", [32, 20])
def test_ten_steps_equal_autograd_of_the_definition_with_torch_adam(step_class, variant, d_in):
    config = sae_config(**variant, training={"dead_window": 600})
    x = sparse_rows(10 * 300, d_in)  # 300 rows: a chunk that is not full
    batches = list(x.split(300))
    (state,), sums = train(step_class, [config], batches, d_in)
    want = by_the_definition(config, batches, d_in)
    assert_same_parameters(state, want.params)
    for (got,), right in zip(sums, want.sums, strict=True):
        assert got.squared_error == pytest.approx(right.squared_error, rel=1e-4)
        assert got.l1 == pytest.approx(right.l1, rel=1e-4)
        assert got.active == pytest.approx(right.active, rel=1e-3)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "dead" in v], ids=str)
def test_some_features_are_dead_in_the_variants_above(variant):
    """Else what is done about them would be nothing, and both sides would agree on that."""
    training = {"dead_window": 600}
    batches = list(sparse_rows(10 * 300, 32).split(300))
    nothing = {"aux_coefficient": 0.0} if variant["dead"] == "auxk" else {"resample_every": 100}
    (treated,), (left,) = (
        train(SparseStep, [sae_config(**sae, training=training)], batches, 32)[0]
        for sae in (variant, variant | nothing)
    )
    assert (treated.W_dec - left.W_dec).abs().max() > 1e-3


@settings(max_examples=20)
@given(
    rows=st.integers(1, 530),
    d_in=st.integers(2, 40),
    dict_size=st.integers(1, 70),
    tied=st.booleans(),
    l1=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_gradients_equal_float64_autograd_for_any_shape(rows, d_in, dict_size, tied, l1, seed):
    config = sae_config(dict_size=dict_size, tied=tied, l1=l1, seed=seed)
    x = sparse_rows(rows, d_in, seed)
    state = State.initial(config, d_in, d_in, CPU)
    p = {name: w.double().clone().requires_grad_() for name, w in state.params.items()}
    numbers = {"l1": torch.tensor(l1, dtype=torch.float64)}
    whole = {"W_enc": p["W_dec"]} | p
    state.architecture.objective(whole, x.double(), x.double(), numbers).loss.backward()
    wants = {name: w.grad for name, w in p.items()}
    with SparseStep([state]) as step:
        take(step, [config], 1, x)
    got = {name: m / (1 - config.optimizer.beta1) for name, m in state.m.items()}
    # One scale for all: a gradient that cancels to nothing is rounding alone.
    scale = max(float(want.abs().max()) for want in wants.values()) + 1e-12
    for name, want in wants.items():
        torch.testing.assert_close(got[name].double() / scale, want / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "variant",
    [
        {"activation": "topk", "k": 5, "l1": 0.0},
        {"activation": "topk", "k": 5, "l1": 0.0, "dict_size": 600},
        {"activation": "batch_topk", "k": 5, "l1": 0.0},
        {"activation": "jumprelu", "l1": 0.0, "l0": 1e-3},
        {"activation": "jumprelu", "l1": 0.0, "l0": 1e-3, "tied": True},
    ],
    ids=str,
)
def test_the_sparse_step_equals_the_dense_step_for_every_variant(variant):
    config = sae_config(**variant, lr=3e-3, training={"dead_window": 1024})
    batches = list(sparse_rows(8 * 512, 32).split(512))
    (sparse,), got = train(SparseStep, [config], batches, 32)
    (dense,), want = train(DenseStep, [config], batches, 32)
    for (a,), (b,) in zip(got, want, strict=True):
        assert a.squared_error == pytest.approx(b.squared_error, rel=2e-3)
        assert a.active == pytest.approx(b.active, rel=5e-3)
    for name, tensor in sparse.tensors().items():
        torch.testing.assert_close(tensor, dense.tensors()[name], rtol=0, atol=3e-3, msg=name)


def test_topk_keeps_exactly_k_codes_a_row():
    config = sae_config(activation="topk", k=3, l1=0.0)
    _, sums = train(SparseStep, [config], [sparse_rows(700, 32)], 32)
    assert sums[0][0].active == 3 * 700


def test_batch_topk_keeps_k_codes_a_row_on_average_and_its_threshold_says_which():
    config = sae_config(activation="batch_topk", k=3, l1=0.0)
    x = sparse_rows(512, 32)
    (state,), sums = train(SparseStep, [config], [x], 32)
    assert sums[0][0].active == 3 * 512
    first = State.initial(config, 32, 32, CPU)
    codes = (x @ first.W_enc.T + first.b).relu()
    least = [part.flatten().topk(3 * 256).values[-1] for part in codes.split(256)]
    assert min(least) <= state.batch_floor.item() <= max(least)


def test_auxiliary_gradients_equal_autograd_of_the_definition():
    config = sae_config(dead="auxk", aux_k=3, dict_size=20)
    state = State.initial(config, 16, 16, CPU)
    dead = torch.arange(20) < 8
    state.b[dead] = -0.05
    x = sparse_rows(60, 16)
    got = auxiliary_gradients(state, x, x, dead)
    p = {name: tensor.clone().requires_grad_() for name, tensor in state.whole.items()}
    numbers = {"l1": torch.tensor(0.0), "aux_coefficient": torch.tensor(0.03125)}
    objective = state.architecture.objective
    (objective(p, x, x, numbers, dead).loss - objective(p, x, x, numbers).loss).backward()
    for mine, name in zip(got, ("W_enc", "W_dec", "b"), strict=True):
        assert_rounded(mine, p[name].grad[dead], 60 * 16 + 20)  # rows, columns and features


def test_resampling_brings_dead_features_to_life_and_leaves_the_others():
    config = sae_config(dict_size=20)
    state = State.initial(config, 16, 16, CPU)
    dead = torch.arange(20) < 8
    state.b[dead] = -100.0
    before = state.W_dec.clone()
    x = sparse_rows(300, 16)
    resample(state, dead, x, x, step=1)
    assert torch.equal(state.W_dec[~dead], before[~dead])
    codes = torch.relu(x @ state.W_enc.T + state.b)
    assert bool((codes[:, dead] > 0).any(dim=0).all())
    torch.testing.assert_close(state.W_dec.norm(dim=1), torch.ones(20))


COMPANY = [
    sae_config(dict_size=48, seed=0),
    sae_config(dict_size=700, seed=1, l1=3e-2),
    sae_config(dict_size=17, seed=0, tied=True, lr=3e-3),
    sae_config(dict_size=64, seed=3, precision="bf16"),
    sae_config(dict_size=64, activation="topk", k=5),
    sae_config(dict_size=64, activation="batch_topk", k=5, dead="auxk"),
    sae_config(dict_size=64, activation="jumprelu", l0=1e-3),
    sae_config(dict_size=64, dead="resample", l1=0.3),
    sae_config(dict_size=64, activation="topk", k=5, tied=True),
    sae_config(dict_size=64, activation="batch_topk", k=5, tied=True),
    sae_config(dict_size=64, encoder_norm=True),
]


@pytest.mark.parametrize("step_class", [SparseStep, DenseStep])
@pytest.mark.parametrize("chosen", range(len(COMPANY)))
def test_a_dictionary_is_bit_for_bit_the_same_alone_and_in_company(step_class, chosen):
    batches = list(sparse_rows(6 * 600, 32).split(600))
    together, _ = train(step_class, COMPANY, batches, 32)
    (alone,), _ = train(step_class, [COMPANY[chosen]], batches, 32)
    for name, tensor in alone.tensors().items():
        assert torch.equal(tensor, together[chosen].tensors()[name]), name


def test_bf16_products_change_little_and_codes_stay_exact():
    config, low = sae_config(), sae_config(precision="bf16")
    batches = list(sparse_rows(10 * 512, 32).split(512))
    (a,), full = train(SparseStep, [config], batches, 32)
    (b,), half = train(SparseStep, [low], batches, 32)
    assert full[-1][0].squared_error == pytest.approx(half[-1][0].squared_error, rel=1e-2)
    assert not torch.equal(a.W_dec, b.W_dec)


def test_features_that_did_not_fire_are_not_marked():
    config = sae_config(dict_size=8)
    state = State.initial(config, 16, 16, CPU)
    state.b[:4] = -100.0
    with SparseStep([state]) as step:
        take(step, [config], 1, sparse_rows(512, 16))
    assert state.last_fired.tolist() == [0] * 4 + [512] * 4


def in_child(command) -> None:
    """Run `command` in a forked process, which must end well."""
    child = os.fork()
    if child == 0:
        try:
            command()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or os.cpu_count() == 1, reason="needs cores to take away"
)
def test_the_number_of_threads_does_not_show_in_any_bit():
    batches = list(sparse_rows(3 * 1100, 32).split(1100))  # three slabs, the last one not full
    several, _ = train(SparseStep, COMPANY, batches, 32)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        one, _ = train(SparseStep, COMPANY, batches, 32)
    finally:
        os.sched_setaffinity(0, cores)
    for a, b in zip(several, one, strict=True):
        for name, tensor in (a.tensors() | {"sums": a.sums}).items():
            assert torch.equal(tensor, (b.tensors() | {"sums": b.sums})[name]), name


def test_a_forked_process_makes_the_same_steps():
    x = sparse_rows(600, 32)
    states = [begun(config, 32) for config in COMPANY[:3]]
    results = [torch.zeros_like(state.W_dec).share_memory_() for state in states]
    with SparseStep(states) as step:
        take(step, COMPANY[:3], 1, x)

        def second() -> None:
            take(step, COMPANY[:3], 2, x)
            for state, result in zip(states, results, strict=True):
                result.copy_(state.W_dec)

        in_child(second)
        take(step, COMPANY[:3], 2, x)
    for state, result in zip(states, results, strict=True):
        assert torch.equal(state.W_dec, result)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "batch_topk"])
def test_what_is_not_a_number_shows_in_the_sums(activation):
    config = sae_config(activation=activation)
    state = State.initial(config, 32, 32, CPU)
    x = sparse_rows(300, 32)
    x[7, 3] = float("nan")
    with SparseStep([state]) as step:
        take(step, [config], 1, x)
    assert not state.is_finite()


def test_a_large_batch_is_one_step_of_all_its_rows():
    """Gradients of slabs are added up: against the dense step, which has no slabs."""
    config = sae_config(dict_size=70)
    batches = list(sparse_rows(4 * 1500, 20).split(1500))
    (sparse,), _ = train(SparseStep, [config], batches, 20)
    (dense,), _ = train(DenseStep, [config], batches, 20)
    for name, tensor in sparse.tensors().items():
        torch.testing.assert_close(tensor, dense.tensors()[name], rtol=0, atol=1e-3, msg=name)
