"""Configs and data for the tests of dictionaries."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dict.config import (
    ActivationsConfig,
    AdamConfig,
    SAETrainingConfig,
    SparsityConfig,
    TrackingConfig,
    TrainSAEConfig,
)
from sparse_dict.sae import architectures, folder, schema
from sparse_dict.sae.interventions import Moment, guide
from sparse_dict.sae.interventions.resample import Resample
from sparse_dict.sae.scaling import Scaling
from sparse_dict.sae.schedule import hyper
from sparse_dict.sae.state import State, Stats
from sparse_dict.sae.step_cpu import SparseStep
from sparse_dict.sae.step_torch import DenseStep

CPU = torch.device("cpu")


def sae_config(*, seed: int = 0, training: dict[str, Any] | None = None, **sae: Any):
    """A small dictionary's config; keyword arguments replace values of `sae`.

    Of the values below, a kind takes those that it has.
    """
    optimizer = AdamConfig(lr=sae.pop("lr", 1e-3), beta1=0.9, beta2=0.999, eps=1e-8, warmup_steps=0)
    values = dict(
        dict_size=48, activation="relu", tied=False, init="independent", l1=1e-2,
        l1_scaling="none", k=4, l0=0.0, threshold=0.05, bandwidth=0.05, dead="none",
        resample_every=2, aux_k=4, aux_coefficient=0.03125,
        strategy="plain", freeze_above=0.9, perturb_every=2,
        perturb_noise=0.5, perturb_share=0.75, precision="fp32", project_gradient=False,
        prefixes=[0.25, 0.5, 1.0], widths=[5, 11],
    )  # fmt: skip
    values |= sae
    kind = schema.of(values["activation"])
    own = {field.name for field in fields(kind)}
    assert sae.keys() <= own, f"{values['activation']} has no {sae.keys() - own}"
    return TrainSAEConfig(
        name="test",
        study_dir="outputs/test",
        device="cpu",
        seed=seed,
        tracking=TrackingConfig(mode="disabled", project="p", entity=None, tags=[]),
        activations_dir="activations",
        activations=ActivationsConfig(scaling="rms"),
        sparsity=SparsityConfig(l1=1e-2, k=4, l0=0.0),
        sae=kind(**{name: value for name, value in values.items() if name in own}),
        optimizer=optimizer,
        training=replace(
            SAETrainingConfig(
                n_activations=4096, batch_size=512, eval_rows=256, l1_warmup_steps=0,
                dead_window=1024, snapshots=2, log_every=2, checkpoint_every=3,
            ),
            **(training or {}),
        ),
    )  # fmt: skip


def scaled_by(scale: float, d_in: int) -> Scaling:
    """What `activations.scaling` alone makes of rows `d_in` wide."""
    return Scaling(np.zeros(d_in, np.float32), np.full(d_in, scale))


def sparse_rows(n: int, d_in: int, seed: int = 0) -> Tensor:
    """(n, d_in) float32: sparse non-negative mixtures of random directions, unit RMS."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(2 * d_in, d_in, generator=generator)
    truth /= truth.norm(dim=1, keepdim=True)
    codes = torch.rand(n, 2 * d_in, generator=generator)
    codes *= torch.rand(n, 2 * d_in, generator=generator) < 3 / (2 * d_in)
    x = codes @ truth + 0.01 * torch.randn(n, d_in, generator=generator)
    return x / x.square().mean().sqrt()


@dataclass
class Reference:
    """What `by_the_definition` computes, in float64."""

    params: dict[str, Tensor]
    sums: list[Stats]  # of each batch, before its update


def planted_metric(d_in: int, strong: Tensor | None = None) -> Tensor:
    """A guide's metric that sees the span of `strong` (n, d_in) alone, or of random directions."""
    if strong is None:
        strong = torch.randn(d_in // 2, d_in, generator=torch.Generator().manual_seed(7))
    metric = strong.T @ strong
    return metric * (d_in / metric.trace())


def begun(
    config: TrainSAEConfig,
    d_in: int,
    d_out: int | None = None,
    device: torch.device = CPU,
    metric: Tensor | None = None,
) -> State:
    """The state at the beginning, with a term of the loss if the config asks for one.

    Where something is done about features that are not used, half are used seldom or never.
    """
    terms = ()
    if config.sae.guide == "penalty":
        metric = planted_metric(d_in) if metric is None else metric
        terms = (guide.charge(config.sae.guide_strength, metric),)
    state = State.initial(config, d_in, d_in if d_out is None else d_out, device, terms=terms)
    if config.sae.dead != "none":
        state.b[::2] -= torch.linspace(1, 6, len(state.b[::2])).to(device)
    return state


Step = SparseStep | DenseStep


def take(
    step: Step,
    configs: list[TrainSAEConfig],
    t: int,
    x: Tensor,
    y: Tensor | None = None,
) -> None:
    """Optimiser step `t` of dictionaries on a batch, and what `sae.dead=resample` does after it."""
    y, seen = x if y is None else y, t * len(x)
    hypers = [hyper(config, t, y.shape[1]) for config in configs]
    step(x, y, hypers, seen)
    for config, state in zip(configs, step.states, strict=True):
        if config.sae.dead == "resample":
            at = Moment(t, 0, seen, x, y, lambda rows: iter(()))
            Resample(config.sae, Path(), None).after_step([state], at)


def by_the_definition(
    config: TrainSAEConfig, batches: list[Tensor], d_in: int, targets: list[Tensor] | None = None
) -> Reference:
    """`Architecture.objective` in float64, trained by autograd and torch.optim.Adam.

    `targets` are what each batch is to become, of a transcoder. With `sae.dead=resample` features
    that are inactive are replaced as the paper says.
    """
    sae, o = config.sae, config.optimizer
    state = begun(config, d_in, targets[0].shape[1] if targets else None)
    leaves = {name: state.params[name].double().clone().requires_grad_() for name in state.params}
    adam = torch.optim.Adam(list(leaves.values()), betas=(o.beta1, o.beta2), eps=o.eps)
    last_fired, seen, sums = torch.zeros(sae.dict_size, dtype=torch.int64), 0, []
    pairs = zip(batches, targets or batches, strict=True)
    metric = planted_metric(d_in).double()
    for t, (x, y) in enumerate(((x.double(), y.double()) for x, y in pairs), start=1):
        seen += len(x)
        h = hyper(config, t, state.d_out)
        numbers = {name: torch.tensor(n, dtype=torch.float64) for name, n in h.numbers.items()}
        unused = seen - last_fired >= min(config.training.dead_window, seen)
        inactive = unused if sae.dead == "auxk" else None
        p = {"W_enc": leaves["W_dec"]} | leaves
        aligned = sae.encoder_norm and not sae.tied
        if aligned:  # a free row V stands for one whose product with the decoder row is one
            missing = 1 - (p["W_enc"] * p["W_dec"]).sum(1, keepdim=True)
            p["W_enc"] = p["W_enc"] + missing * p["W_dec"]
        fit = state.architecture.objective(p, x, y, numbers, inactive)
        made = fit.x_hat.detach()
        if sae.guide == "penalty":  # a code costs 1 / (1 + gain^2) more, times the strength
            gains = torch.einsum("ki,ij,kj->k", p["W_dec"], metric, p["W_dec"])
            gains = gains / (p["W_dec"] ** 2).sum(1)
            extra = (fit.encoded.codes / (1 + gains)).sum(1).mean()
            fit.loss = fit.loss + numbers["l1"] * sae.guide_strength * extra
        for group in adam.param_groups:
            group["lr"] = h.lr
        adam.zero_grad()
        fit.loss.backward()
        W_dec, codes = leaves["W_dec"], fit.encoded.codes.detach()
        if sae.project_gradient:
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec.detach()
        adam.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
            if aligned:
                W_enc = leaves["W_enc"]
                W_enc += (1 - (W_enc * W_dec).sum(1, keepdim=True)) * W_dec
        last_fired[(codes > 0).any(0)] = seen
        if sae.dead == "resample" and t % sae.resample_every == 0:
            dead = seen - last_fired >= min(config.training.dead_window, seen)
            resample_by_the_definition(config, state.architecture, leaves, x, y, dead, t)
            for leaf in leaves.values():
                if leaf.shape[0] == sae.dict_size:
                    for name in ("exp_avg", "exp_avg_sq"):
                        adam.state[leaf][name][dead] = 0
        error = float((made - y).square().sum())
        sums.append(Stats(error, float(codes.sum()), int((codes > 0).sum()), len(x)))
    return Reference({name: leaf.detach() for name, leaf in leaves.items()}, sums)


@torch.no_grad()
def resample_by_the_definition(
    config: TrainSAEConfig,
    architecture: architectures.Architecture,
    p: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    dead: Tensor,
    step: int,
) -> None:
    """Bricken et al. 2023, appendix on resampling, in place; the draw is the one of our seed."""
    if not dead.any():
        return
    whole = {"W_enc": p["W_dec"]} | p
    fit = architecture.loss(whole, x, y, dict.fromkeys(architecture.numbers, torch.zeros(())))
    weights = (fit.x_hat - y).square().sum(1).square()  # squared losses of rows
    generator = torch.Generator()
    generator.manual_seed(hash((config.seed, config.sae.dict_size, step)) % 2**63)
    rows = torch.multinomial(weights, int(dead.sum()), replacement=True, generator=generator)
    unit = x[rows] / x[rows].norm(dim=1, keepdim=True)
    if "W_enc" in p:
        p["W_enc"][dead] = unit * 0.2 * p["W_enc"][~dead].norm(dim=1).mean()
    p["W_dec"][dead] = y[rows] / y[rows].norm(dim=1, keepdim=True)
    p["b"][dead] = 0


def assert_same_parameters(state: State, want: dict[str, Tensor]) -> None:
    """Those of a float32 state and of the definition.

    Adam divides by the gradient's size, so rounding shows where gradients are tiny: 2e-4 is a fifth
    of one step of the learning rate, of which about ten are made.
    """
    for name, tensor in want.items():
        torch.testing.assert_close(state.params[name].double(), tensor, rtol=0, atol=2e-4, msg=name)


def config_in(activations_dir: Path, **values):
    config = sae_config(**values)
    return replace(
        config,
        activations_dir=str(activations_dir),
        study_dir=str(activations_dir.parent / "study"),
    )


def results(path: Path) -> dict[str, bytes]:
    """What must be equal bit for bit between two trainings of one dictionary."""
    names = (folder.WEIGHTS, folder.FEATURES, "cfg.json")
    history = [line.rsplit(",", 1)[0] for line in (path / "history.csv").read_text().splitlines()]
    return {name: (path / name).read_bytes() for name in names} | {
        "history without speed": "\n".join(history).encode()
    }
