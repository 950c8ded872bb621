"""Configs and data for the tests of dictionaries."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sparse_dict.config import (
    ActivationsConfig,
    AdamConfig,
    SAEConfig,
    SAETrainingConfig,
    TrackingConfig,
    TrainSAEConfig,
)


def sae_config(*, seed: int = 0, training: dict[str, Any] | None = None, **sae: Any):
    """A small dictionary's config; keyword arguments replace values of `sae`."""
    optimizer = AdamConfig(lr=sae.pop("lr", 1e-3), beta1=0.9, beta2=0.999, eps=1e-8, warmup_steps=0)
    values = dict(
        dict_size=48, activation="relu", tied=False, init="independent", l1=1e-2,
        l1_scaling="none", k=4, l0=0.0, threshold=0.05, bandwidth=0.05, dead="none",
        resample_every=2, aux_k=4, aux_coefficient=0.03125,
        strategy="plain", freeze_above=0.9, perturb_every=2,
        perturb_noise=0.5, perturb_share=0.75, precision="fp32", project_gradient=False,
    )  # fmt: skip
    return TrainSAEConfig(
        name="test",
        study_dir="outputs/test",
        device="cpu",
        seed=seed,
        tracking=TrackingConfig(mode="disabled", project="p", entity=None, tags=[]),
        activations_dir="activations",
        activations=ActivationsConfig(scaling="rms"),
        sae=SAEConfig(**(values | sae)),
        optimizer=optimizer,
        training=replace(
            SAETrainingConfig(
                n_activations=4096, batch_size=512, eval_rows=256, l1_warmup_steps=0,
                dead_window=1024, snapshots=2, log_every=2, checkpoint_every=3,
            ),
            **(training or {}),
        ),
    )  # fmt: skip


def sparse_rows(n: int, d_in: int, seed: int = 0) -> Tensor:
    """(n, d_in) float32: sparse non-negative mixtures of random directions, unit RMS."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(2 * d_in, d_in, generator=generator)
    truth /= truth.norm(dim=1, keepdim=True)
    codes = torch.rand(n, 2 * d_in, generator=generator)
    codes *= torch.rand(n, 2 * d_in, generator=generator) < 3 / (2 * d_in)
    x = codes @ truth + 0.01 * torch.randn(n, d_in, generator=generator)
    return x / x.square().mean().sqrt()
