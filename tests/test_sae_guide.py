"""Dictionaries guided by the language model's weights, and encoder rows that stay aligned."""

# ruff: noqa: F811 (fixtures of other modules)

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import stopped_at_once
from rounding import assert_rounded, rounding
from sae_helpers import (
    CPU,
    begun,
    config_in,
    planted_metric,
    results,
    sae_config,
    sparse_rows,
    take,
)
from test_analysis_loss_recovered import LAYER, N_CTX, TERMS, D, base, stored  # noqa: F401
from test_sae_training import activations_dir  # noqa: F401
from torch.func import jacrev

from sparse_dict.activations.harvest import harvest
from sparse_dict.activations.store import Activations
from sparse_dict.activations.writer import ShardWriter
from sparse_dict.config import ActivationsConfig, HarvestConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.sae import folder as folders
from sparse_dict.sae import lm_weights, stage
from sparse_dict.sae.interventions import Moment
from sparse_dict.sae.interventions.guide import Guide, gain, surcharge
from sparse_dict.sae.state import State
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep
from sparse_dict.storage import files
from sparse_dict.tracking import Run

GUIDES = ["init_read", "init_write", "penalty", "select"]
D_IN = 16


def read(base, guide, **sae):
    """What the weights say to a dictionary of a study's activations."""
    config = sae_config(guide=guide, **sae).sae
    return Guide(config, base / "lm", Activations.open(base / "activations")).found


# --- what the weights say -------------------------------------------------------------------------


def test_the_metric_is_the_variance_of_the_logits_that_a_direction_adds(base):
    lm = lm_folder.load(base / "lm")
    metric = read(base, "penalty").double()
    directions = torch.randn(5, D, generator=torch.Generator().manual_seed(0)).double()
    got = ((directions @ metric) * directions).sum(1)
    model = lm.model.double()
    written = directions @ model.blocks[LAYER].mlp_out.weight.T
    normed = (written - written.mean(1, keepdim=True)) * model.norm.weight
    want = (normed @ model.embed.weight.T).var(1)
    torch.testing.assert_close(got / got[0], (want / want[0]).detach(), rtol=1e-4, atol=0)
    assert float(metric.trace()) == pytest.approx(D, rel=1e-5)  # its mean over all directions is 1


def test_what_is_written_is_the_slope_of_the_hidden_layer_at_the_mean_pre_activation(base):
    lm = lm_folder.load(base / "lm")
    activations = Activations.open(base / "activations")
    tokens = torch.from_numpy(lm_weights.first_contexts(activations, N_CTX))
    z, hidden = lm.model.read(tokens, [Site("mlp_pre", LAYER), Site("mlp_post", LAYER)])
    block, mean = lm.model.blocks[LAYER], z.mean((0, 1))

    def of(normed):  # about the mean: what the normed stream, before the norm's gain, moves
        shift = block.mlp_in.weight @ (block.norm_2.weight * normed)
        return torch.nn.functional.gelu(mean + shift, approximate="tanh")

    jacobian = jacrev(of)(torch.zeros(lm.config.d_model))  # (d_mlp, d_model)
    found = read(base, "init_write")
    assert_rounded(found, jacobian.T.detach(), TERMS + tokens.numel())  # a mean over the tokens
    # the contexts are those that were harvested: their activations are its rows
    rows = activations.read(0, activations.rows)
    assert_rounded(np.sort(rows.ravel()), hidden.detach().flatten().sort().values, TERMS)


@pytest.mark.parametrize("guide", ["init_read", "init_write"])
@pytest.mark.parametrize("init", ["independent", "aligned"])
def test_initial_rows_lie_in_the_span_of_the_weights(base, guide, init):
    config = sae_config(guide=guide, init=init, dict_size=40)
    change = Guide(config.sae, base / "lm", Activations.open(base / "activations")).begin
    state = State.initial(config, D, D, CPU, [change])
    rows = state.W_dec
    basis = torch.linalg.qr(read(base, guide).T).Q  # (d_in, d_model), of d_in 12 and d_model 8
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(40))
    assert torch.equal(state.W_enc, state.W_dec) == (init == "aligned")
    plain = State.initial(config, D, D, CPU)
    assert (plain.W_dec @ basis @ basis.T - plain.W_dec).norm() > 1


def test_shuffled_weights_have_the_same_values_for_other_neurons(base):
    for guide in GUIDES:
        a, b = read(base, guide), read(base, guide, guide_shuffled=True)
        assert not torch.equal(a, b)
        torch.testing.assert_close(a.ravel().sort().values, b.ravel().sort().values)
    again = read(base, "penalty", guide_shuffled=True)
    assert torch.equal(again, read(base, "select", guide_shuffled=True))


def test_equal_seeds_begin_alike_whatever_rows_they_see_and_other_seeds_do_not(base):
    activations = Activations.open(base / "activations")

    def first_values(seed=0, training=None, **sae):
        config = sae_config(seed=seed, training=training, **sae)
        changes = [Guide(config.sae, base / "lm", activations).begin]
        return State.initial(config, D, D, CPU, changes).params

    for sae in ({}, {"guide": "init_read"}, {"encoder_norm": True}):
        first, other = (
            first_values(training=training, **sae)
            for training in ({"rows": "half_a"}, {"rows": "bootstrap", "rows_seed": 4})
        )
        assert all(torch.equal(first[name], other[name]) for name in first)
        assert not torch.equal(first["W_dec"], first_values(seed=1, **sae)["W_dec"])


# --- the penalty ----------------------------------------------------------------------------------


def test_the_surcharge_by_hand_and_its_gradient():
    codes = torch.tensor([[2.0, 0.0], [0.0, 4.0], [1.0, 0.0]]).double()  # mean: 1 and 4/3
    W_dec = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double()
    metric = torch.diag(torch.tensor([3.0, 0.0]).double())  # squared gains 3 and 3 * 0.36
    got = surcharge(codes, W_dec, metric)
    assert float(got) == pytest.approx(1 / 4 + 4 / 3 / 2.08)
    assert gain(W_dec, metric).tolist() == pytest.approx([3**0.5, 1.08**0.5])
    leaf = W_dec.clone().requires_grad_()
    surcharge(codes, leaf, metric).backward()
    assert leaf.grad[1].abs().max() > 0.1
    assert (leaf.grad * W_dec).sum(1).abs().max() < 1e-12  # length costs nothing


def planted(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (n, D_IN) of twelve features, and these; the first six act on the logits."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(D_IN, 12, generator=generator)).Q.T
    codes = torch.rand(n, 12, generator=generator) + 0.5
    codes *= torch.rand(n, 12, generator=generator) < 0.12
    x = codes @ truth
    return x / x.square().mean().sqrt(), truth


class Planted(Guide):
    """A guide that knows a metric without a language model."""

    found = None

    def __init__(self, sae, metric):
        super().__init__(sae, None, None)
        self.found = metric


def trained(guide: str, seed: int, steps: int = 600, **sae) -> torch.Tensor:
    """Decoder rows after training on planted features: six rows for twelve of them."""
    config = sae_config(
        dict_size=6, guide=guide, seed=seed, lr=1e-2, l1=0.02, guide_at=0.4, **sae,
        training={"n_activations": steps * 256, "batch_size": 256},
    )  # fmt: skip
    x, truth = planted(steps * 256)
    metric = planted_metric(D_IN, truth[:6])
    state, chosen = begun(config, D_IN, metric=metric), Planted(config.sae, metric)
    batches = x.split(256)
    with (SparseStep if state.is_fast else DenseStep)([state]) as step:
        for t, batch in enumerate(batches, start=1):
            take(step, [config], t, batch)
            before = lambda rows, t=t: iter(batches[t - 50 : t])  # noqa: E731
            chosen.after_step([state], Moment(t, steps, t * 256, batch, batch, before))
    return state.W_dec


def strong_share(guide: str, **sae) -> float:
    """Of the features that three dictionaries have found, the share that acts on the logits."""
    truth = planted(1)[1]
    best = torch.cat([(trained(guide, seed, **sae) @ truth.T).max(1).indices for seed in range(3)])
    return float((best < 6).float().mean())


def test_guided_dictionaries_find_the_features_that_act_and_plain_ones_any():
    plain = strong_share("none")
    assert 0.2 < plain < 0.75
    assert strong_share("penalty", guide_strength=8.0) > plain + 0.2
    assert strong_share("select") > plain


# --- the selection --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relu", "topk", "gated"])
def test_a_selection_keeps_what_acts_most_and_draws_the_rest_anew(kind):
    config = sae_config(
        activation=kind, guide="select", guide_keep=0.25, dict_size=32, encoder_norm=True
    )
    state, metric = begun(config, D_IN), planted_metric(D_IN)
    for moments in state.m.values():
        moments.fill_(1.0)
    x = sparse_rows(500, D_IN)
    codes = state.architecture.encode(state.whole, x).codes
    effects = codes.mean(0) * ((state.W_dec @ metric) * state.W_dec).sum(1).sqrt()
    kept = effects >= effects.sort().values[-8]
    before = {name: tensor.clone() for name, tensor in state.params.items()}
    select = Planted(config.sae, metric)
    for step in range(1, 9):
        at = Moment(step, 8, step * 500, x, x, lambda rows: iter(x.split(200)))
        select.after_step([state], at)
        changed = bool((state.W_dec != before["W_dec"]).any())
        assert changed == (step >= 2)  # a quarter of eight
    for name in state.per_feature:
        assert torch.equal(state.params[name][kept], before[name][kept]), name
        assert bool((state.m[name][kept] == 1).all())
        assert bool((state.m[name][~kept] == 0).all())
    assert bool((state.W_dec[~kept] != before["W_dec"][~kept]).all())
    torch.testing.assert_close((state.W_enc * state.W_dec).sum(1), torch.ones(32))


def guided_in(base, **sae):
    """A config of dictionaries of a study's activations."""
    training = {"n_activations": 1200, "batch_size": 100, "eval_rows": 400}
    return replace(
        config_in(base / "activations", dict_size=16, training=training, **sae),
        lm_dir=str(base / "lm"),
    )


def test_guided_dictionaries_are_the_same_interrupted_and_in_company(base, tmp_path, monkeypatch):
    configs = [guided_in(base, guide=guide) for guide in GUIDES]
    configs += [guided_in(base), guided_in(base, encoder_norm=True)]
    together = [tmp_path / f"together{i}" for i in range(len(configs))]
    assert not [m for m in stage.train_many(configs, together) if isinstance(m, Exception)]
    plain = results(together[GUIDES.index("select") + 1])
    for i, guide in enumerate(GUIDES):
        stage.train_many([configs[i]], [tmp_path / guide])
        assert results(tmp_path / guide) == results(together[i])
        assert results(tmp_path / guide) != plain

    with stopped_at_once(monkeypatch):
        for _ in range(4):  # beyond the selection, after three steps
            with pytest.raises(Interrupted):
                stage.train_many([configs[3]], [tmp_path / "parts"])
    stage.train_many([configs[3]], [tmp_path / "parts"])
    assert results(tmp_path / "parts") == results(together[3])
    saved = folders.read(together[5]).dictionary  # the last step keeps encoders aligned
    np.testing.assert_allclose((saved.W_enc.T * saved.W_dec).sum(1), 1, atol=1e-5)


# --- aligned encoders -----------------------------------------------------------------------------


@pytest.mark.parametrize("step_class", [SparseStep, DenseStep])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "batch_topk"])
def test_encoder_rows_times_decoder_rows_stay_one(step_class, kind):
    config = sae_config(activation=kind, encoder_norm=True, lr=1e-2)
    state = begun(config, 20)
    torch.testing.assert_close((state.W_enc * state.W_dec).sum(1), torch.ones(48))
    with step_class([state]) as step:
        for t, x in enumerate(sparse_rows(5 * 300, 20).split(300), start=1):
            take(step, [config], t, x)
            products = (state.W_enc * state.W_dec).sum(1)
            bar = rounding(2 * 20 + 4, float((state.W_enc * state.W_dec).abs().sum(1).max()))
            torch.testing.assert_close(products, torch.ones(48), rtol=0, atol=bar)
    free = begun(sae_config(activation=kind), 20)
    assert (free.W_enc * free.W_dec).sum(1).abs().max() < 0.9


# --- what is refused ------------------------------------------------------------------------------


def test_older_records_are_those_of_plain_training(base, tmp_path):
    config = guided_in(base)
    stage.train_many([config], [tmp_path / "old"])
    metrics = files.read_json(tmp_path / "old" / folders.METRICS)
    new = ("encoder_norm", *(key for key in metrics["record"]["config"]["sae"] if "guide" in key))
    assert len(new) == 6
    for key in new:
        del metrics["record"]["config"]["sae"][key]
    files.write_json(tmp_path / "old" / folders.METRICS, metrics)
    stage.check(config, tmp_path / "old")
    for changes, usual in (({"guide": "penalty"}, "'none'"), ({"encoder_norm": True}, "False")):
        with pytest.raises(UserError, match=rf"sae\.{next(iter(changes))} is {usual} there"):
            stage.check(guided_in(base, **changes), tmp_path / "old")


@pytest.mark.parametrize("guide", GUIDES)
def test_what_has_no_weights_to_read_is_one_line(base, tmp_path, activations_dir, guide):
    sae = sae_config(guide=guide).sae
    foreign = Activations.open(activations_dir)
    with pytest.raises(UserError, match=r"needs a model of train_lm\.py"):
        Guide(sae, base / "lm", foreign).check()
    ours = Activations.open(base / "activations")
    for manifest, why in (
        (
            {"config": {"lm": {"name_or_path": "gpt2"}}},
            r"needs a model of train_lm\.py",
        ),
        ({"site": "mlp_pre"}, r"not 1/mlp_pre of"),
        ({"site": None, "sites": []}, r"not several sites of"),
    ):
        other = copy.copy(ours)
        other.manifest = {**ours.manifest, **manifest}
        with pytest.raises(UserError, match=why):
            Guide(sae, base / "lm", other).check()
    with pytest.raises(UserError, match=r"run train_lm\.py first"):
        Guide(sae, tmp_path, ours).check()


def test_another_model_is_refused_before_anything_is_written(base, tmp_path):
    record = files.read_json(base / "lm" / "lm.json")
    record["fingerprints"]["model"] = "0" * 16
    files.write_json(tmp_path / "lm.json", record)
    config = replace(guided_in(base, guide="select"), lm_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"is not the model that .* come from: set lm_dir"):
        stage.check(config, tmp_path / "sae")
    assert not (tmp_path / "sae").exists()
    centred = replace(config, activations=ActivationsConfig(scaling="rms", centering="mean"))
    stage.check(replace(centred, lm_dir=str(base / "lm")), tmp_path / "sae")


@pytest.mark.parametrize(
    ("sae", "why"),
    [
        ({"guide": "weights"}, "must be one of none, init_read"),
        ({"guide_keep": 1.0}, r"sae\.guide_keep must lie in \(0, 1\)"),
        ({"guide_strength": -1.0}, "must not be negative"),
    ],
)
def test_what_cannot_be_is_refused(sae, why):
    with pytest.raises(UserError, match=why):
        sae_config(**sae)


def test_a_penalty_needs_a_kind_that_l1_makes_sparse(base):
    config = guided_in(base, guide="penalty", activation="topk")
    with pytest.raises(UserError, match="needs a kind with an L1"):
        stage.check(config, base / "sae")


def test_one_of_several_sites_is_guided_as_a_harvest_of_it_alone(base, tmp_path):
    lm = lm_folder.load(base / "lm")
    text = stored(base)
    sites = ["1/mlp_post", "2/mlp_post"]
    settings = HarvestConfig(0, "mlp_post", 1600, "validation", 8, 1000, "float32", sites)
    writer = ShardWriter(tmp_path, 1600, 2 * D, 1000, "float32", seed=0)
    harvest(lm.model, text.split("validation"), settings, N_CTX, writer, Run(None, False, tmp_path))
    places = [{"site": s, "columns": [i * D, i * D + D], "rms": 1.0} for i, s in enumerate(sites)]
    fields = {"sites": places, "corpus": {}, "config": {"harvest": vars(settings)}}
    writer.finish(fields, lm.record["fingerprints"])
    both = Activations.open(tmp_path)
    for guide in GUIDES:
        sae = sae_config(guide=guide, site="1/mlp_post").sae
        found = Guide(sae, base / "lm", both.at(sae.site)).found
        assert torch.equal(found, read(base, guide)), guide
        with pytest.raises(UserError, match="not several sites"):
            Guide(sae_config(guide=guide).sae, base / "lm", both).check()
