"""What a dictionary reads and what it reconstructs: columns of the activations, and their view."""

import math
from dataclasses import dataclass, replace
from typing import Self

from sparse_dict.activations.store import Activations
from sparse_dict.config import AdamConfig, TrainSAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.architectures.crosscoder import CrosscoderConfig
from sparse_dict.sae.view import View
from sparse_dict.sae.view import settled as settled_view

POSTS_WIDTH = 128  # columns of the activations for which learning rates are stated


@dataclass(frozen=True, eq=False)
class Side:
    """Some columns of the activations, and how they are seen."""

    activations: Activations
    view: View

    @property
    def width(self) -> int:
        """How many columns."""
        return self.activations.d_in


@dataclass(frozen=True, eq=False)
class Sides:
    """What is read and what is reconstructed: one and the same, but for a transcoder."""

    x: Side
    y: Side

    @classmethod
    def of(cls, config: TrainSAEConfig, activations: Activations) -> Self:
        """Those of a dictionary whose config is settled.

        Raises:
            UserError: a site is not there, or its rows are all the same.
        """
        read, written = _columns(config, activations)
        x = Side(read, View.of(config.activations, read))
        if read is written:
            return cls(x, x)
        return cls(x, Side(written, View.of(config.activations, written)))


def _columns(config: TrainSAEConfig, activations: Activations) -> tuple[Activations, Activations]:
    read = activations.at(config.sae.site)
    if config.sae.target is None:
        return read, read
    return read, activations.at(config.sae.target, "sae.target")


def settled(config: TrainSAEConfig, activations: Activations) -> TrainSAEConfig:
    """`config` as a record keeps it: what depends on the activations decided.

    Raises:
        UserError: the folder cannot be read, or a site is not there.
    """
    read = _columns(config, activations)
    sae, seen = config.sae, settled_view(config.activations, *read)
    if isinstance(sae, CrosscoderConfig):
        widths = [columns.stop - columns.start for columns, _ in read[0].sites]
        if sae.widths not in (None, widths):
            raise UserError(
                f"sae.widths is {sae.widths}: {activations.folder} has sites of {widths}"
            )
        sae = replace(sae, widths=widths)
    optimizer = _scaled(config.optimizer, read[0].d_in)
    return replace(config, activations=seen, sae=sae, optimizer=optimizer)


def _scaled(optimizer: AdamConfig, d_in: int) -> AdamConfig:
    """`optimizer` with the rate for activations `d_in` wide.

    A step of Adam changes each of a row's `d_in` weights by about lr, and with them what the
    feature makes of a row: the wider, the more. Too high a rate loses most features at once.
    """
    if optimizer.lr_scaling == "none":
        return optimizer
    factor = min(1.0, math.sqrt(POSTS_WIDTH / d_in))
    return replace(optimizer, lr=optimizer.lr * factor, lr_scaling="none")
