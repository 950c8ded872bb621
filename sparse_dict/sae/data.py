"""What a dictionary reads and what it reconstructs: columns of the activations, scaled."""

from dataclasses import dataclass, replace
from typing import Self

from sparse_dict.activations.store import Activations
from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae import architectures, scaling, schedule
from sparse_dict.sae.scaling import Scaling


@dataclass(frozen=True, eq=False)
class Columns:
    """Some columns of the activations, and how dictionaries see them."""

    activations: Activations
    scaling: Scaling

    @property
    def width(self) -> int:
        """How many columns."""
        return self.activations.d_in


@dataclass(frozen=True, eq=False)
class Data:
    """What is read and what is reconstructed: one and the same, but for a transcoder."""

    x: Columns
    y: Columns

    @classmethod
    def of(cls, config: TrainSAEConfig, activations: Activations) -> Self:
        """Those of a dictionary whose config is settled."""
        read, written = _sites(config, activations)
        x = Columns(read, Scaling.of(config.activations, read))
        if read is written:
            return cls(x, x)
        return cls(x, Columns(written, Scaling.of(config.activations, written)))


def _sites(config: TrainSAEConfig, activations: Activations) -> tuple[Activations, Activations]:
    read = activations.at(config.sae.site, "sae.site")
    if config.sae.target is None:
        return read, read
    return read, activations.at(config.sae.target, "sae.target")


def settled(config: TrainSAEConfig, activations: Activations) -> TrainSAEConfig:
    """`config` as a record keeps it: what depends on the activations decided."""
    read, written = _sites(config, activations)
    widths = [columns.stop - columns.start for columns, _ in read.sites]
    return replace(
        config,
        activations=scaling.settled(config.activations, read, written),
        sae=type(architectures.of(config.sae)).settled(config.sae, widths),
        optimizer=schedule.settled(config.optimizer, read.d_in),
    )
