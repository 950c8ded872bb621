"""Muon: the orthogonalised update, and what it does not depend on."""

from dataclasses import replace

import hydra
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lm_train import MUON, OPTIMIZER, new_model

from sparse_dict.config import CONF_DIR, AdamWConfig, MuonConfig
from sparse_dict.errors import UserError
from sparse_dict.launch.jobs import typed
from sparse_dict.lm.optimizer import make_optimizer, orthogonalised, set_learning_rate


def stepped(gradient_scale=1.0, config=MUON, steps=3):
    """A model after some steps on gradients that are given, not computed."""
    model = new_model()
    optimizer = make_optimizer(model, config)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator) * gradient_scale
        optimizer.step()
    return model


@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    log_scale=st.integers(-12, 6),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60)
def test_the_update_has_singular_values_near_one_and_the_gradients_directions(
    rows, columns, log_scale, seed
):
    generator = torch.Generator().manual_seed(seed)
    u, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator))
    v, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator))
    k = min(rows, columns)
    spread = torch.linspace(0.1, 1, k)  # a tenth of the largest and up
    matrix = (u[:, :k] * spread) @ v[:, :k].T * 10.0**log_scale
    update = u[:, :k].T @ orthogonalised(matrix) @ v[:, :k]
    diagonal = update.diagonal()
    assert diagonal.min() > 0.65
    assert diagonal.max() < 1.25
    assert (update - diagonal.diag()).abs().max() < 1e-3


def test_matrices_in_a_stack_do_not_mix():
    stack = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    together = orthogonalised(stack)
    for one, matrix in zip(together, stack, strict=True):
        torch.testing.assert_close(one, orthogonalised(matrix))


def test_the_size_of_the_gradient_does_not_matter():
    small, large = stepped(1e-3), stepped(1e3)
    for name, matrix in small.blocks.named_parameters():
        other = large.blocks.get_parameter(name)
        torch.testing.assert_close(matrix, other, rtol=1e-3, atol=1e-4)


def test_a_hidden_matrix_moves_by_its_own_rate_and_decays():
    config = replace(MUON, momentum=0.0, weight_decay=0.5)
    before, after = new_model(), stepped(config=config, steps=1)
    old, new = before.blocks[0].mlp_in.weight, after.blocks[0].mlp_in.weight  # (16, 8)
    moved = new - (1 - config.hidden_lr * config.weight_decay) * old
    sizes = torch.linalg.svdvals(moved.detach()) / (config.hidden_lr * 2**0.5)
    assert sizes.min() > 0.6
    assert sizes.max() < 1.25


def test_embeddings_and_norms_move_as_by_adamw():
    muon = stepped()
    adamw = stepped(config=OPTIMIZER)
    for name in ("embed.weight", "positions.weight", "norm.weight", "blocks.1.norm_2.weight"):
        torch.testing.assert_close(muon.get_parameter(name), adamw.get_parameter(name))
    assert not torch.equal(muon.blocks[0].qkv.weight, adamw.blocks[0].qkv.weight)


def test_a_parameter_without_gradient_stays():
    model = new_model()
    optimizer = make_optimizer(model, MUON)
    model.norm.weight.grad = torch.ones(8)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["norm.weight"]


def test_each_group_follows_the_schedule_at_its_own_level():
    optimizer = make_optimizer(new_model(), MUON)
    set_learning_rate(optimizer, MUON.lr / 4)
    rates = {"momentum" in group: group["lr"] for group in optimizer.param_groups}
    assert rates == {False: pytest.approx(MUON.lr / 4), True: pytest.approx(MUON.hidden_lr / 4)}


@pytest.mark.parametrize(
    ("choice", "kind"), [("optimizer=adamw", AdamWConfig), ("optimizer=muon", MuonConfig)]
)
def test_the_command_line_chooses_between_both(choice, kind):
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = typed(hydra.compose("train_lm", [choice]))
    assert type(config.optimizer) is kind


def test_the_optimizer_of_dictionaries_is_refused():
    with (
        hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"),
        pytest.raises(hydra.errors.HydraException, match="optimizer/adam"),
    ):
        hydra.compose("train_lm", ["optimizer=adam"])


@pytest.mark.parametrize("wrong", [{"hidden_lr": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_values_out_of_range_are_named(wrong):
    with pytest.raises(UserError, match=f"optimizer.{next(iter(wrong))}"):
        replace(MUON, **wrong)
