"""What each kind is: its loss against the paper's formula in numpy, its export, its config."""

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest
import torch
from omegaconf import MISSING
from sae_helpers import CPU, sae_config, scaled_by, sparse_rows

from sparse_dict.errors import UserError
from sparse_dict.sae import architectures, step_torch
from sparse_dict.sae.architectures.relu import ReLU, ReLUConfig
from sparse_dict.sae.evaluate import on_raw
from sparse_dict.sae.scaling import Scaling
from sparse_dict.sae.state import State

D_IN = 16
KINDS = sorted(architectures.known())


def relu(z: np.ndarray) -> np.ndarray:
    return np.maximum(z, 0)


def mse(x_hat: np.ndarray, x: np.ndarray) -> float:
    return float(((x_hat - x) ** 2).mean())


def shaken(kind: str, **sae) -> State:
    """A dictionary none of whose parameters is at a special value."""
    state = State.initial(sae_config(activation=kind, dict_size=24, **sae), D_IN, D_IN, CPU)
    generator = torch.Generator().manual_seed(1)
    for name in state.params.keys() - {"W_enc", "W_dec"}:
        noise = 0.1 * torch.randn(state.params[name].shape, generator=generator)
        state.params[name] += noise if name != "log_threshold" else noise.abs()
    return state


def by_hand(kind: str, p: dict[str, np.ndarray], x: np.ndarray, sae) -> float:
    """The objective with l1 = 1/8 and l0 = 1/4, a line or two a kind."""
    z = x @ p["W_enc"].T + p["b"]
    if kind == "relu":
        c = relu(z)
        return mse(c @ p["W_dec"], x) + 0.125 * c.sum(1).mean()
    if kind == "topk":
        kth = np.sort(relu(z), axis=1)[:, [-sae.k]]
        return mse(relu(z) * (z >= kth) @ p["W_dec"], x)
    if kind == "jumprelu":
        on = z > np.exp(p["log_threshold"])
        return mse(relu(z) * on @ p["W_dec"], x) + 0.25 * on.sum(1).mean()
    if "crosscoder" in kind:
        norms = sum(np.linalg.norm(part, axis=1) for part in np.split(p["W_dec"], [5], axis=1))
        c = relu(z)
        if kind == "batch_topk_crosscoder":
            c = c * (c * norms >= np.sort((c * norms).ravel())[-sae.k * len(x)])
            return mse(c @ p["W_dec"] + p["b_dec"], x)
        return mse(c @ p["W_dec"] + p["b_dec"], x) + 0.125 * (c * norms).sum(1).mean()
    along = (x - p["b_dec"]) @ p["W_enc"].T if "b_dec" in p else z - p["b"]
    if kind == "gated":
        gate = along + p["b"]
        magnitude = relu(np.exp(p["r_mag"]) * along + p["b_mag"])
        x_hat = magnitude * (gate > 0) @ p["W_dec"] + p["b_dec"]
        of_gates = relu(gate) @ p["W_dec"] + p["b_dec"]
        return mse(x_hat, x) + 0.125 * relu(gate).sum(1).mean() + mse(of_gates, x)
    c = relu(along + p["b"])
    c = c * (c >= np.sort(c.ravel())[-sae.k * len(x)])
    if kind == "batch_topk":
        return mse(c @ p["W_dec"], x)
    assert kind == "matryoshka"
    return sum(mse(c[:, :m] @ p["W_dec"][:m] + p["b_dec"], x) for m in (6, 12, 24))


@pytest.mark.parametrize("kind", KINDS)
def test_the_objective_is_the_papers_formula(kind):
    state = shaken(kind)
    x = sparse_rows(40, D_IN).double()
    p = {name: tensor.double() for name, tensor in state.whole.items()}
    numbers = {"l1": 0.125, "l0": 0.25, "bandwidth": 0.05, "aux_coefficient": 1.0}
    if state.architecture.axis.key != "l1":
        numbers["l1"] = 0.0
    given = {name: torch.tensor(value).double() for name, value in numbers.items()}
    got = state.architecture.objective(p, x, x, given).loss
    arrays = {name: tensor.numpy() for name, tensor in p.items()}
    want = by_hand(kind, arrays, x.numpy(), state.architecture.sae)
    assert float(got) == pytest.approx(want, rel=1e-12)


def test_jumprelu_thresholds_get_the_pseudo_derivatives_of_the_paper():
    """Equations 11 and 12 of arXiv 2407.14435, by a loop over entries."""
    state = shaken("jumprelu", l0=2e-3)
    x, eps, l0 = sparse_rows(40, D_IN).double(), 0.05, 2e-3
    p = {name: t.double().requires_grad_() for name, t in state.whole.items()}
    numbers = {"l1": 0.0, "l0": l0, "bandwidth": eps, "aux_coefficient": 0.0}
    given = {name: torch.tensor(value).double() for name, value in numbers.items()}
    fit = state.architecture.objective(p, x, x, given)
    fit.loss.backward()
    theta = p["log_threshold"].detach().exp()
    residual = (fit.x_hat - x).detach()
    want = torch.zeros(24, dtype=torch.float64)
    for row, k in torch.nonzero((fit.encoded.z.detach() - theta).abs() < eps / 2).tolist():
        along = 2 / (40 * D_IN) * float(residual[row] @ p["W_dec"][k].detach())
        want[k] -= theta[k] / eps * along + l0 / 40 / eps
    assert int((want != 0).sum()) > 5
    torch.testing.assert_close(p["log_threshold"].grad, want * theta)  # d/d log t = t d/dt


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("by_site", [False, True])
def test_what_is_saved_computes_on_raw_activations_what_was_trained_on(kind, tied, by_site):
    state, scaling = shaken(kind, tied=tied), scaled_by(5.0, D_IN)
    if by_site:
        mean = np.linspace(-3, 4, D_IN, dtype=np.float32)
        scaling = Scaling(mean, np.repeat([0.5, 5.0], D_IN // 2))
    scale = scaling.unit
    x = sparse_rows(50, D_IN)
    if state.batch_floor is not None:
        state.batch_floor.fill_(0.3)
    saved = on_raw(state, scaling, scaling)
    p = state.whole
    codes = state.architecture.encode(p, x).codes
    if state.architecture.keeps_floor:  # the batch's choice becomes one threshold
        z = state.architecture.pre_activations(p, x)
        floor = 0.3 / state.architecture.norms(p) if "crosscoder" in kind else 0.3
        codes = z * (z > floor)
    raw = x.numpy() * scaling.scale.astype("f4") + scaling.mean
    torch.testing.assert_close(
        torch.from_numpy(saved.encode(raw)), scale * codes, rtol=1e-4, atol=1e-4
    )
    got = saved.decode(saved.encode(raw))
    seen = state.architecture.decode(p, codes)
    want = seen * torch.from_numpy(scaling.scale.astype("f4")) + torch.from_numpy(scaling.mean)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=1e-4, atol=1e-4)


def test_a_key_that_nobody_thought_of_splits_a_stack(monkeypatch):
    @dataclass
    class Config(ReLUConfig):
        dummy: float = MISSING

    class Kind(ReLU):
        pass

    Kind.Config = Config
    monkeypatch.setitem(architectures.known(), "relu", Kind)
    first = sae_config(l1=1e-2)
    values = {field.name: getattr(first.sae, field.name) for field in fields(ReLUConfig)}
    configs = [
        replace(first, sae=Config(**{**values, **own}))
        for own in ({"dummy": 1.0}, {"dummy": 2.0}, {"dummy": 1.0, "l1": 3e-2})
    ]
    states = [State.initial(config, D_IN, D_IN, CPU) for config in configs]
    assert step_torch._grouped(states, 10**6) == [[0, 2], [1]]


def test_a_kind_is_chosen_by_its_group_and_not_by_a_key():
    with pytest.raises(UserError, match="choose one by sae=NAME"):
        architectures.of(replace(sae_config().sae, activation="topk"))


@pytest.mark.parametrize("prefixes", [[0.5, 0.25, 1.0], [0.5], [0.5, 0.5, 1.0], [0.0, 1.0], []])
def test_prefixes_grow_to_the_whole_dictionary(prefixes):
    with pytest.raises(UserError, match=r"sae\.prefixes"):
        sae_config(activation="matryoshka", prefixes=prefixes)
