"""The numbers of each optimiser step: learning rate and penalties over the training."""

import math
from dataclasses import dataclass, replace

from sparse_dict.config import AdamConfig, TrainSAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae import architectures

POSTS_WIDTH = 128  # columns of the activations for which learning rates are stated
RISING = ("l1", "l0")  # penalties that rise over `training.l1_warmup_steps`


@dataclass
class Hyper:
    """The numbers of one step of one dictionary."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    step: int  # counted from one, as Adam's bias correction wants it
    numbers: dict[str, float]  # those of its loss, after scaling and warm-up

    @property
    def corrected(self) -> tuple[float, float]:
        """What Adam's moments are multiplied by for their bias: the first times lr, the root."""
        return self.lr / (1 - self.beta1**self.step), (1 - self.beta2**self.step) ** -0.5


def total_steps(config: TrainSAEConfig) -> int:
    """Optimiser steps of a whole training."""
    return -(-config.training.n_activations // config.training.batch_size)


def settled(optimizer: AdamConfig, d_in: int) -> AdamConfig:
    """`optimizer` as a record keeps it: with the rate for activations `d_in` wide.

    A step of Adam changes each of a row's `d_in` weights by about lr, and with them what the
    feature makes of a row: the wider, the more. Too high a rate loses most features at once.
    """
    if optimizer.lr_scaling == "none":
        return optimizer
    factor = min(1.0, math.sqrt(POSTS_WIDTH / d_in))
    return replace(optimizer, lr=optimizer.lr * factor, lr_scaling="none")


def check(config: TrainSAEConfig) -> None:
    """See that what rises at first has risen before the training ends."""
    steps = total_steps(config)
    warmups = {
        "optimizer.warmup_steps": config.optimizer.warmup_steps,
        "training.l1_warmup_steps": config.training.l1_warmup_steps,
    }
    for key, warmup in warmups.items():
        if warmup > steps:
            raise UserError(f"{key}={warmup} outlasts the training, which has {steps:,} steps")


def rate(optimizer: AdamConfig, step: int, last_step: int) -> float:
    """The learning rate of optimiser step `step` of `last_step`, counted from one.

    It rises linearly over `warmup_steps`; with a schedule it falls towards zero over the last
    `decay_fraction` of the training, linearly (as in SAELens and dictionary_learning) or as a
    cosine.
    """
    o = optimizer
    warm = min(1.0, step / o.warmup_steps) if o.warmup_steps else 1.0
    if o.schedule == "constant":
        return o.lr * warm
    decay_steps = max(1.0, o.decay_fraction * last_step)
    left = min(1.0, (last_step + 1 - step) / decay_steps)  # 1 / decay_steps in the last step
    return o.lr * warm * (left if o.schedule == "linear" else (1 - math.cos(math.pi * left)) / 2)


def hyper(config: TrainSAEConfig, step: int, d_out: int) -> Hyper:
    """The numbers of optimiser step `step`, counted from one, where rows are `d_out` wide.

    With L1 divided by the width, the loss is 1/d_out times that with a summed squared error, to
    which Adam is blind: coefficients are those of SAELens and dictionary_learning. Penalties rise
    linearly at first, as in Anthropic's Circuits Updates of April 2024 ("Update on how we train
    SAEs").
    """
    o, sae = config.optimizer, config.sae
    rise = config.training.l1_warmup_steps
    risen = min(1.0, step / rise) if rise else 1.0
    names = architectures.known()[sae.activation].numbers
    numbers = {name: float(getattr(sae, name)) for name in names}
    divisors = {"none": 1, "d_in": d_out, "dict_size": sae.dict_size}
    numbers["l1"] /= divisors[sae.l1_scaling]
    for name in RISING:
        if name in numbers:
            numbers[name] *= risen
    lr = rate(o, step, total_steps(config))
    return Hyper(lr, o.beta1, o.beta2, o.eps, step, numbers)
