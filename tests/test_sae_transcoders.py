"""Transcoders: what is read and what is reconstructed are of different sites."""

import numpy as np
import pytest
import torch
from conftest import stopped_at_once
from rounding import of_cosines
from sae_helpers import (
    CPU,
    assert_same_parameters,
    begun,
    by_the_definition,
    sae_config,
    sparse_rows,
    take,
)
from site_harvest import harvest_of

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.sae import architectures, stage
from sparse_dict.sae.folder import CHECKPOINT, WEIGHTS, read, read_checkpoint_meta
from sparse_dict.sae.interventions.resample import resample
from sparse_dict.sae.state import State
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep
from sparse_dict.storage import tensor_files
from sparse_dict.storage.files import read_json

SITES = {"site": "1/resid_mid", "target": "1/mlp_out"}
VARIANTS = [
    {"l1": 1e-2},
    {"l1": 1e-2, "skip": True},
    {"activation": "topk", "k": 5, "l1": 0.0},
    {"activation": "topk", "k": 5, "l1": 0.0, "skip": True, "dead": "auxk"},
    {"activation": "batch_topk", "k": 5, "l1": 0.0, "dead": "auxk"},
    {"activation": "jumprelu", "l1": 0.0, "l0": 1e-3},
    {"activation": "gated", "l1": 1e-2, "skip": True},
    {"activation": "matryoshka", "l1": 0.0},
]


def batches(n: int, d_in: int, d_out: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Ten of n rows, and what each is to become: another mixture of the same codes."""
    both = sparse_rows(10 * n, d_in + d_out)
    return list(both[:, :d_in].split(n)), list((both[:, d_in:] + 0.3).split(n))


@pytest.mark.parametrize("step_class", [SparseStep, DenseStep])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize(("d_in", "d_out"), [(20, 12), (12, 20)])
def test_ten_steps_equal_autograd_of_the_definition(step_class, variant, d_in, d_out):
    config = sae_config(**SITES, **variant)
    state = begun(config, d_in, d_out)
    if step_class is SparseStep and (not state.is_fast or "W_skip" in state.params):
        pytest.skip("it has no such step")
    xs, ys = batches(300, d_in, d_out)
    sums = []
    with step_class([state]) as step:
        for t, (x, y) in enumerate(zip(xs, ys, strict=True), start=1):
            take(step, [config], t, x, y)
            sums.append(state.stats())
            state.sums.zero_()
    want = by_the_definition(config, xs, d_in, ys)
    assert_same_parameters(state, want.params)
    for got, right in zip(sums, want.sums, strict=True):
        assert got.squared_error == pytest.approx(right.squared_error, rel=1e-4)
    assert float(state.params["b_dec"].abs().max()) > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_captured_steps_on_a_gpu_equal_autograd_of_the_definition(variant):
    config, device = sae_config(**SITES, **variant), torch.device("cuda:0")
    state = begun(config, 20, 12, device)
    step = DenseStep([state])
    xs, ys = batches(300, 20, 12)
    for t, (x, y) in enumerate(zip(xs, ys, strict=True), start=1):
        take(step, [config], t, x.to(device), y.to(device))
    assert step._captured is not None
    state.params = {name: tensor.cpu() for name, tensor in state.params.items()}
    assert_same_parameters(state, by_the_definition(config, xs, 20, ys).params)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_the_objective_is_the_papers_formula(kind, skip):
    """Dunefsky et al. 2024, equation 3; with the affine skip of Paulo et al. 2025."""
    state = State.initial(sae_config(activation=kind, skip=skip, **SITES), 10, 6, CPU)
    p = {name: torch.randn_like(w).double() for name, w in state.whole.items()}
    x, y = (rows[0].double() for rows in batches(50, 10, 6))
    numbers = {"l1": torch.tensor(0.125).double()} if kind == "relu" else {"l1": torch.zeros(())}
    got = state.architecture.objective(p, x, y, numbers).loss
    q, a, b = {n: w.numpy() for n, w in p.items()}, x.numpy(), y.numpy()
    codes = np.maximum(a @ q["W_enc"].T + q["b"], 0)
    if kind == "topk":
        codes = codes * (codes >= np.sort(codes, 1)[:, [-state.architecture.sae.k]])
    made = codes @ q["W_dec"] + q["b_dec"] + (a @ q["W_skip"].T if skip else 0)
    penalty = 0.125 * codes.sum(1).mean() if kind == "relu" else 0
    assert float(got) == pytest.approx(((made - b) ** 2).mean() + penalty, rel=1e-12)


def test_features_that_are_not_used_take_the_target_s_direction():
    state = State.initial(sae_config(dict_size=20, **SITES), 16, 8, CPU)
    dead = torch.arange(20) < 5
    x, y = sparse_rows(300, 16), sparse_rows(300, 8, seed=1)
    resample(state, dead, x, y, 1)
    for rows, weights in ((x, state.W_enc), (y, state.W_dec)):
        unit = torch.nn.functional.normalize(rows, dim=1)
        cosines = torch.nn.functional.normalize(weights[dead], dim=1) @ unit.T
        assert float(cosines.amax(1).min()) == pytest.approx(1, abs=of_cosines(16))


def planted(n: int = 12_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows x = c F and y = c A + 1 of the same sparse codes; and the unit rows of A, (24, 16)."""
    rng = np.random.default_rng(0)
    F, A = rng.standard_normal((24, 32)), rng.standard_normal((24, 16))
    F /= np.linalg.norm(F, axis=1, keepdims=True)
    A /= np.linalg.norm(A, axis=1, keepdims=True)
    codes = (rng.random((n, 24)) < 0.08) * rng.uniform(0.5, 1.5, (n, 24))
    return (5 * codes @ F).astype("f4"), (3 * codes @ A + 1).astype("f4"), A


@pytest.mark.parametrize("kind", ["relu", "topk"])
def test_a_planted_map_is_found(tmp_path, kind):
    x, y, A = planted()
    folder = harvest_of(tmp_path / "a", {"1/resid_mid": x, "1/mlp_out": y})
    own = {"k": 3} if kind == "topk" else {}
    config = sae_config(
        activation=kind, dict_size=48, l1=1e-2 if kind == "relu" else 0.0, lr=1e-2, **SITES, **own,
        training={"n_activations": 100_000, "batch_size": 128, "eval_rows": 2000, "log_every": 200},
    )  # fmt: skip
    config.activations_dir = str(folder)
    (metrics,) = stage.train_many([config], [tmp_path / "d"])
    d = read(tmp_path / "d").dictionary
    assert (metrics["d_in"], metrics["d_out"]) == (32, 16)
    assert d.W_enc.shape == (32, 48)
    assert d.W_dec.shape == (48, 16)
    found = (A @ (d.W_dec / np.linalg.norm(d.W_dec, axis=1, keepdims=True)).T).max(1)
    assert (found > 0.95).mean() > 0.9
    assert metrics["fvu"] < 0.1
    error = d.reconstruct(x) - y
    assert metrics["fvu"] == pytest.approx((error**2).mean() / y.var(0).mean(), rel=0.1)


def test_a_linear_map_is_left_to_the_skip(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8000, 8)).astype("f4") + 2
    y = (x @ rng.standard_normal((8, 24)) + 1).astype("f4")
    folder = harvest_of(tmp_path / "a", {"1/resid_mid": x, "1/mlp_out": y})
    config = sae_config(
        skip=True, l1=0.3, dict_size=16, lr=2e-2, **SITES,
        training={"n_activations": 20_000, "batch_size": 64, "eval_rows": 2000, "log_every": 200},
    )  # fmt: skip
    config.activations_dir = str(folder)
    config.activations.centering = "mean"
    (metrics,) = stage.train_many([config], [tmp_path / "d"])
    d = read(tmp_path / "d").dictionary
    assert metrics["fvu"] < 1e-3
    assert metrics["l0"] < 0.1
    np.testing.assert_allclose(d.reconstruct(x), y, atol=0.3)


@pytest.mark.parametrize(
    ("own", "architecture"),
    [
        ({}, "transcoder"),
        ({"skip": True}, "skip_transcoder"),
        ({"activation": "jumprelu"}, "jumprelu_transcoder"),
        ({"activation": "batch_topk", "skip": True}, "jumprelu_skip_transcoder"),
        ({"activation": "topk"}, "topk_transcoder"),
    ],
)
def test_a_folder_says_what_it_is_and_is_right_on_raw_rows(tmp_path, own, architecture):
    x, y, _ = planted(3000)
    folder = harvest_of(tmp_path / "a", {"1/resid_mid": x, "1/mlp_out": y})
    config = sae_config(**SITES, **own, lr=5e-3)
    config.activations_dir = str(folder)
    config.activations.centering = "mean"
    (metrics,) = stage.train_many([config], [tmp_path / "d"])
    cfg = read_json(tmp_path / "d" / "cfg.json")
    assert cfg["architecture"] == architecture
    assert (cfg["d_in"], cfg["d_out"]) == (32, 16)
    assert cfg["metadata"] == {
        "hook_name": "blocks.1.hook_resid_mid", "hook_name_out": "blocks.1.hook_mlp_out",
    }  # fmt: skip
    rows = slice(-config.training.eval_rows, None)
    opened = Activations.open(folder)
    raw = opened.read(opened.rows - config.training.eval_rows, opened.rows)
    d = read(tmp_path / "d").dictionary
    made = d.reconstruct(raw[rows, :32])
    error = ((made - raw[rows, 32:]) ** 2).mean()
    wanted = error / raw[rows, 32:].var(0).mean()
    assert metrics["fvu"] == pytest.approx(wanted, rel=1e-3)
    assert metrics["l0"] == pytest.approx((d.encode(raw[rows, :32]) > 0).sum(1).mean(), rel=1e-3)


OPTIONS = [
    {"skip": True, "activation": "gated"},
    {"dead": "resample", "l1": 0.3},
    {"strategy": "freeze_perturb", "freeze_above": 0.6},
    {"activation": "batch_topk", "dead": "auxk"},
]


@pytest.mark.parametrize("own", OPTIONS, ids=str)
def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path, monkeypatch, own):
    x, y, _ = planted(3000)
    config = sae_config(**SITES, **own)
    config.activations_dir = str(harvest_of(tmp_path / "a", {"1/resid_mid": x, "1/mlp_out": y}))
    stage.train_many([config], [tmp_path / "whole"])

    with stopped_at_once(monkeypatch):
        for _ in range(3):
            with pytest.raises(Interrupted):
                stage.train_many([config], [tmp_path / "parts"])
    stage.train_many([config], [tmp_path / "parts"])
    whole, parts = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


def test_a_checkpoint_with_the_columns_of_zeros_of_earlier_versions_goes_on(tmp_path, monkeypatch):
    x, y, _ = planted(3000)
    config = sae_config(**SITES)
    config.activations_dir = str(harvest_of(tmp_path / "a", {"1/resid_mid": x, "1/mlp_out": y}))
    stage.train_many([config], [tmp_path / "whole"])
    with stopped_at_once(monkeypatch), pytest.raises(Interrupted):
        stage.train_many([config], [tmp_path / "parts"])
    path = tmp_path / "parts" / CHECKPOINT
    arrays, meta = tensor_files.read_checkpoint(path), read_checkpoint_meta(tmp_path / "parts")
    for name, array in arrays.items():
        if name.endswith("dec"):  # the target's 16 columns were as many as the 32 that are read
            wide = np.zeros((*array.shape[:-1], 32), "f4")
            wide[..., :16] = array
            arrays[name] = wide
    tensor_files.write_checkpoint(path, arrays, meta)
    stage.train_many([config], [tmp_path / "parts"])
    whole, parts = ((tmp_path / name / WEIGHTS).read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.slow
@pytest.mark.parametrize("own", [
    {}, {"skip": True}, {"activation": "jumprelu"}, {"activation": "batch_topk", "skip": True},
], ids=str)  # fmt: skip
def test_saelens_opens_a_transcoder_and_computes_the_same(tmp_path, own):
    sae_lens = pytest.importorskip("sae_lens")
    x, y, _ = planted(3000)
    folder = harvest_of(tmp_path / "a", {"1/resid_mid": x, "1/mlp_out": y})
    config = sae_config(**SITES, **own, lr=5e-3)
    config.activations_dir = str(folder)
    config.activations.centering = "mean"
    stage.train_many([config], [tmp_path / "d"])
    theirs = sae_lens.SAE.load_from_disk(tmp_path / "d")
    made = theirs(torch.from_numpy(x[:100])).detach().numpy()
    ours = read(tmp_path / "d").dictionary
    np.testing.assert_allclose(made, ours.reconstruct(x[:100]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"tied": True, **SITES}, "needs sae.tied=false"),
        ({"init": "aligned", **SITES}, "needs sae.tied=false"),
        ({"skip": True}, "needs sae.target"),
        ({"target": "1/mlp_out"}, "needs another site"),
        ({"target": "1/mlp_out", "site": "1/mlp_out"}, "needs another site"),
        ({"site": "mlp_post"}, "sae.site must be LAYER/SITE"),
    ],
)
def test_what_no_transcoder_can_be_is_refused(own, message):
    with pytest.raises(UserError, match=message):
        sae_config(**own)


def test_every_kind_but_crosscoders_can_transcode():
    for kind in architectures.known().keys() - {"crosscoder", "batch_topk_crosscoder"}:
        state = State.initial(sae_config(activation=kind, **SITES), 6, 9, CPU)
        x, y = sparse_rows(20, 6), sparse_rows(20, 9)
        numbers = dict.fromkeys(("l1", "l0", "bandwidth"), torch.tensor(0.1))
        fit = state.architecture.objective(state.whole, x, y, numbers)
        assert fit.x_hat.shape == (20, 9)
