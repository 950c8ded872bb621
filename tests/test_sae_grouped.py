"""The GPU's way, on the CPU: stacked dictionaries, rows kept on the device, several devices.

What only a GPU can show (streams, pinned memory, speed) is not tested.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from conftest import stopped_at_once
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_helpers import (
    CPU,
    assert_same_parameters,
    begun,
    by_the_definition,
    config_in,
    results,
    sae_config,
    scaled_by,
    sparse_rows,
    take,
)
from torch import Tensor

from sparse_dict.activations.store import Activations
from sparse_dict.config import TrainSAEConfig
from sparse_dict.launch.explain import in_one_line
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.machine.threads import balanced
from sparse_dict.sae import batches as batches_module
from sparse_dict.sae import passes, stage, step_cpu, step_torch
from sparse_dict.sae.batches import batches
from sparse_dict.sae.schedule import hyper
from sparse_dict.sae.state import State
from sparse_dict.sae.step_torch import DenseStep

D_IN = 32
EVERYTHING = 10**6  # features of one stack: all dictionaries that are alike
VARIANTS = [
    {},
    {"tied": True},
    {"project_gradient": True},
    {"tied": True, "project_gradient": True, "l1_scaling": "dict_size"},
    {"activation": "topk", "k": 5, "l1": 0.0},
    {"activation": "batch_topk", "k": 5, "l1": 0.0},
    {"activation": "jumprelu", "l1": 0.0},
    {"activation": "jumprelu", "l1": 0.0, "tied": True},
    {"dead": "auxk", "l1": 0.3, "aux_coefficient": 0.5},
    {"activation": "topk", "k": 2, "dead": "auxk", "l1": 0.0, "aux_coefficient": 0.5},
    {"activation": "gated"},
    {"activation": "gated", "tied": True, "project_gradient": True},
    {"activation": "matryoshka", "k": 5, "l1": 0.0},
    {"activation": "matryoshka", "k": 2, "dead": "auxk", "l1": 0.0, "aux_coefficient": 0.5},
    {"encoder_norm": True},
    {"encoder_norm": True, "activation": "gated"},
    {"guide": "penalty", "guide_strength": 2.0, "l1": 0.1},
    {"activation": "crosscoder", "widths": [12, 20]},
    {"activation": "crosscoder", "widths": [12, 20], "dead": "auxk"},
    {"activation": "batch_topk_crosscoder", "widths": [12, 20], "k": 2, "l1": 0.0, "dead": "auxk"},
]


def alike(variant: dict) -> list[TrainSAEConfig]:
    """Three of one kind that differ in all that may differ within a stack."""
    base = {"training": {"dead_window": 600}} | variant
    l1 = base.pop("l1", 1e-2)
    l0 = {"l0": 1e-3} if base.get("activation") == "jumprelu" else {}
    configs = [
        sae_config(seed=0, l1=l1, lr=1e-3, **base, **l0),
        sae_config(seed=1, l1=l1 / 3, lr=5e-4, **base),
        sae_config(seed=2, l1=l1 / 10, lr=1e-3, **base, **l0),
    ]
    configs[1].optimizer.beta1 = 0.8
    configs[2].optimizer.warmup_steps = 4
    return configs


def train(configs: list[TrainSAEConfig], rows: list[Tensor], max_features: int) -> list[State]:
    states = [begun(config, D_IN) for config in configs]
    step = DenseStep(states, max_features=max_features)
    for t, x in enumerate(rows, start=1):
        take(step, configs, t, x)
    return states


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_stacked_dictionaries_equal_autograd_of_the_definition_with_torch_adam(variant):
    rows = list(sparse_rows(8 * 300, D_IN).split(300))
    configs = alike(variant)
    for config, state in zip(configs, train(configs, rows, EVERYTHING), strict=True):
        assert_same_parameters(state, by_the_definition(config, rows, D_IN).params)


def test_some_features_are_dead_in_the_auxiliary_loss_above():
    """Else the two sides would agree on nothing."""
    config = alike(VARIANTS[9])[0]
    rows = list(sparse_rows(8 * 300, D_IN).split(300))
    with_loss, without = (
        train([replace(config, sae=replace(config.sae, aux_coefficient=c))], rows, EVERYTHING)[0]
        for c in (0.5, 0.0)
    )
    assert not torch.equal(with_loss.W_dec, without.W_dec)


@pytest.mark.parametrize(
    "variant", [*VARIANTS, {"precision": "bf16"}, {"dead": "resample", "l1": 0.3}], ids=str
)
def test_a_dictionary_is_bit_for_bit_the_same_in_a_stack_and_alone(variant):
    rows = list(sparse_rows(6 * 600, D_IN).split(600))
    configs = alike(variant)
    together = train(configs, rows, EVERYTHING)
    for config, state in zip(configs, together, strict=True):
        (alone,) = train([config], rows, 1)
        for name, tensor in alone.tensors().items():
            assert torch.equal(tensor, state.tensors()[name]), name
        assert alone.stats() == state.stats()


def test_bfloat16_products_stay_close_to_float32():
    rows = list(sparse_rows(10 * 512, D_IN).split(512))
    full, low = (
        train([sae_config(precision=precision)], rows, 1)[0] for precision in ("fp32", "bf16")
    )
    assert full.stats().squared_error == pytest.approx(low.stats().squared_error, rel=1e-2)
    assert not torch.equal(full.W_dec, low.W_dec)


@settings(max_examples=50)
@given(
    members=st.lists(st.tuples(st.sampled_from([8, 16, 17]), st.booleans()), min_size=1),
    max_features=st.integers(1, 100),
)
def test_every_dictionary_is_in_one_stack_of_its_kind_and_size(members, max_features):
    states = [
        State.initial(sae_config(dict_size=size, tied=tied), 4, 4, CPU) for size, tied in members
    ]
    groups = step_torch._grouped(states, max_features)
    assert sorted(i for group in groups for i in group) == list(range(len(states)))
    for group in groups:
        assert len({members[i] for i in group}) == 1
        assert len(group) == 1 or len(group) * members[group[0]][0] <= max_features


def test_a_dropped_dictionary_does_not_touch_its_stack():
    rows = list(sparse_rows(4 * 300, D_IN).split(300))
    good, bad = sae_config(), sae_config(seed=1)
    states = [State.initial(config, D_IN, D_IN, CPU) for config in (good, bad)]
    states[1].W_enc[3] = float("nan")
    step = DenseStep(states, max_features=EVERYTHING)
    for t, x in enumerate(rows, start=1):
        hypers = [hyper(good, t, D_IN), None if t > 2 else hyper(bad, t, D_IN)]
        step(x, x, hypers, t * len(x))
    assert not states[1].is_finite()
    (alone,) = train([good], rows, 1)
    assert torch.equal(states[0].W_dec, alone.W_dec)


# Compiling


def test_a_failed_compilation_is_told_once_and_trains_without(monkeypatch, caplog):
    def broken(*_: object) -> None:
        raise RuntimeError("no Triton here\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function, **_: broken)
    rows = list(sparse_rows(3 * 300, D_IN).split(300))
    state = State.initial(sae_config(), D_IN, D_IN, CPU)
    step = DenseStep([state], compiled=True)
    with caplog.at_level(logging.WARNING):
        for t, x in enumerate(rows, start=1):
            take(step, [sae_config()], t, x)
    assert [r.getMessage() for r in caplog.records] == [
        "torch.compile failed, training without it: no Triton here"
    ]
    assert torch.equal(state.W_dec, train([sae_config()], rows, 1)[0].W_dec)


@pytest.mark.slow  # half a minute each, the first two: it compiles C++
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", [VARIANTS[i] for i in (0, 3, 5, 6, 9)], ids=str)
def test_the_compiled_step_is_one_graph_and_computes_the_same(variant, caplog):
    rows = list(sparse_rows(4 * 300, D_IN).split(300))
    configs = alike(variant)
    states = [begun(config, D_IN) for config in configs]
    step = DenseStep(states, compiled=True, max_features=EVERYTHING)
    for t, x in enumerate(rows, start=1):
        take(step, configs, t, x)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    for got, want in zip(states, train(configs, rows, EVERYTHING), strict=True):
        torch.testing.assert_close(got.W_dec, want.W_dec, rtol=0, atol=3e-4)
        torch.testing.assert_close(got.b, want.b, rtol=0, atol=3e-4)


on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU_STEPS = 4 * step_torch.BEFORE_CAPTURE  # with a graph, the most of them


def on_the_gpu(configs: list[TrainSAEConfig], rows: list[Tensor], may_wait: bool) -> list[State]:
    """Trained by captured steps, which torch refuses to let wait unless they may."""
    device = torch.device("cuda:0")
    states = [begun(config, D_IN, device=device) for config in configs]
    step = DenseStep(states)
    given = [x.to(device) for x in rows]
    try:
        for t, x in enumerate(given, start=1):
            take(step, configs, t, x)
            if t > step_torch.BEFORE_CAPTURE and not may_wait:
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step._captured is not None
    return states


@on_gpu
@pytest.mark.parametrize(
    "variant", [*VARIANTS, {"precision": "bf16"}, {"dead": "resample", "l1": 0.3}], ids=str
)
def test_captured_steps_on_a_gpu_never_wait_and_compute_the_same(variant):
    rows = list(sparse_rows(GPU_STEPS * 300, D_IN).split(300))
    configs = alike(variant) + [
        replace(config, sae=replace(config.sae, dict_size=24)) for config in alike(variant)
    ]
    got = on_the_gpu(configs, rows, may_wait=variant.get("dead") == "resample")
    atol = 3e-3 if variant.get("precision") == "bf16" else 3e-4
    for state, want in zip(got, train(configs, rows, EVERYTHING), strict=True):
        torch.testing.assert_close(state.W_dec.cpu(), want.W_dec, rtol=0, atol=atol)
        torch.testing.assert_close(state.last_fired.cpu(), want.last_fired)


# Batches


class CountedActivations:
    """Rows that are their own numbers, which count how many of them are read."""

    def __init__(self, rows: int) -> None:
        self.rows, self.d_in, self.read = rows, 3, 0

    def read_into(self, start: int, out: np.ndarray) -> None:
        assert 0 <= start <= start + len(out) <= self.rows
        self.read += len(out)
        out[:] = np.arange(start, start + len(out))[:, None]


@settings(max_examples=60)
@given(
    rows=st.integers(1, 40),
    share=st.floats(0, 1),
    first_step=st.integers(0, 30),
    steps=st.integers(0, 60),
    room=st.sampled_from([0, 10**6]),
    block=st.integers(1, 5),
)
def test_batches_hold_the_same_rows_however_they_get_to_the_device(
    rows, share, first_step, steps, room, block
):
    batch_size = max(1, int(share * rows))
    activations = CountedActivations(rows)
    feed = batches(
        activations, scaled_by(2.0, 3), CPU, batch_size=batch_size, first_step=first_step,
        last_step=first_step + steps, room=room,
    )  # fmt: skip
    with mock.patch.dict(batches_module.BLOCK_BYTES, cpu=block * 4 * 3 * batch_size):
        got = [batch.clone() for batch in feed]
    assert len(got) == steps
    for step, batch in enumerate(got, start=first_step):
        want = torch.arange(step * batch_size, (step + 1) * batch_size) % rows / 2
        assert torch.equal(batch, want[:, None].expand(-1, 3))
    whole_pass = -(-rows // batch_size)
    if room and steps > whole_pass:  # one pass, and what was read ahead
        assert activations.read <= (whole_pass + 2 * block) * batch_size
    else:
        assert activations.read == steps * batch_size


# Whole trainings


@pytest.fixture
def activations_dir(tmp_path: Path) -> Path:
    path = tmp_path / "activations"
    path.mkdir()
    np.save(path / "a.npy", 7 * sparse_rows(3000, 24).numpy())
    return path


@pytest.fixture
def dense(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """No C compiler, and as many devices as the list is given."""
    there = [CPU]
    monkeypatch.setattr(step_cpu, "load", lambda width: None)
    monkeypatch.setattr(passes, "training_devices", lambda name: there)
    return there


def grid(activations_dir: Path) -> list[TrainSAEConfig]:
    variants = [
        {"dict_size": 32},
        {"dict_size": 32, "seed": 1, "l1": 3e-2},
        {"dict_size": 80},
        {"dict_size": 32, "activation": "batch_topk", "dead": "auxk"},
        {"dict_size": 16, "strategy": "freeze_perturb", "freeze_above": 0.6, "lr": 1e-2},
    ]
    training = {"n_activations": 10_000}  # several passes
    return [config_in(activations_dir, training=training, **variant) for variant in variants]


def test_several_devices_compute_what_one_does(activations_dir, tmp_path, dense, monkeypatch):
    configs = grid(activations_dir)
    stage.train_many(configs, [tmp_path / f"one{i}" for i in range(len(configs))])
    dense.append(CPU)
    shares = []

    def split(loads: list[int], parts: int) -> list[list[int]]:
        shares.extend(balanced(loads, parts))
        return shares

    monkeypatch.setattr(passes, "balanced", split)
    stage.train_many(configs, [tmp_path / f"two{i}" for i in range(len(configs))])
    assert len(shares) == 2
    assert all(shares)
    for i in range(len(configs)):
        assert results(tmp_path / f"one{i}") == results(tmp_path / f"two{i}")


def test_an_interrupted_training_on_several_devices_goes_on_bit_for_bit(
    activations_dir, tmp_path, dense, monkeypatch
):
    configs = grid(activations_dir)
    stage.train_many(configs, [tmp_path / f"whole{i}" for i in range(len(configs))])
    dense.append(CPU)
    parts = [tmp_path / f"parts{i}" for i in range(len(configs))]
    with stopped_at_once(monkeypatch):
        for _ in range(3):
            with pytest.raises(Interrupted):
                stage.train_many(configs, parts)
    stage.train_many(configs, parts)
    for i, part in enumerate(parts):
        assert results(tmp_path / f"whole{i}") == results(part)


@given(loads=st.lists(st.integers(1, 100), min_size=1), parts=st.integers(1, 8))
def test_members_are_split_over_devices_by_work(loads, parts):
    shares = balanced(loads, parts)
    assert sorted(i for share in shares for i in share) == list(range(len(loads)))
    assert len(shares) == min(parts, len(loads))
    sums = [sum(loads[i] for i in share) for share in shares]
    assert all(sums)
    assert max(sums) - min(sums) <= max(loads)


def test_too_little_memory_on_the_device_is_one_line_that_names_the_keys(
    activations_dir, tmp_path, dense, monkeypatch
):
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(step_torch, "train", full)
    folders = [tmp_path / str(i) for i in range(5)]
    with pytest.raises(torch.OutOfMemoryError) as told:
        stage.train_many(grid(activations_dir), folders)
    message = in_one_line(told.value, "train_sae")
    assert message.startswith("out of memory (20.00 GiB")
    for key in ("training.batch_size", "sae.dict_size", "hydra.sweeper.max_batch_size"):
        assert key in message


def test_a_member_that_turns_non_finite_leaves_its_stack_alone(activations_dir, tmp_path, dense):
    good, other = grid(activations_dir)[:2]
    bad = replace(other, optimizer=replace(other.optimizer, lr=1e38))
    outcomes = stage.train_many([good, bad], [tmp_path / "good", tmp_path / "bad"])
    assert isinstance(outcomes[0], dict)
    assert "not finite" in str(outcomes[1])
    stage.train_many([good], [tmp_path / "alone"])
    assert results(tmp_path / "good") == results(tmp_path / "alone")


@pytest.mark.slow  # three seconds
def test_the_script_trains_a_grid_on_a_machine_without_a_c_compiler(activations_dir, tmp_path):
    root = Path(__file__).resolve().parent.parent
    env = {key: value for key, value in os.environ.items() if key != "CC"}
    done = subprocess.run(
        [
            sys.executable, str(root / "train_sae.py"), "-m", "sae.dict_size=16,32", "seed=0,1",
            "name=t", "study_dir=study", f"activations_dir={activations_dir}", "device=cpu",
            "training.n_activations=16384", "training.eval_rows=256", "training.batch_size=512",
            "optimizer.lr=1e-2", "tracking.mode=disabled",
        ],
        cwd=tmp_path, env=env | {"PATH": ""}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no C compiler" in done.stdout + done.stderr
    metrics = [json.loads(path.read_text()) for path in tmp_path.glob("study/sae/*/metrics.json")]
    assert sorted(m["dict_size"] for m in metrics) == [16, 16, 32, 32]
    assert all(m["trained_together"] == 4 and m["fvu"] < 1 for m in metrics)


def test_rows_kept_on_the_device_change_nothing_in_a_whole_training(
    activations_dir, tmp_path, dense, monkeypatch
):
    config = grid(activations_dir)[0]
    stage.train_many([config], [tmp_path / "streamed"])
    monkeypatch.setattr(batches_module, "_room", lambda device: 10**9)
    reads: list[int] = []
    read_into = Activations.read_into
    monkeypatch.setattr(
        Activations, "read_into", lambda self, *a: (reads.append(1), read_into(self, *a))
    )
    stage.train_many([config], [tmp_path / "kept"])
    assert results(tmp_path / "streamed") == results(tmp_path / "kept")
    assert len(reads) < config.training.n_activations / config.training.batch_size
