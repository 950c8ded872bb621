"""What a dictionary reads and reconstructs: columns of the activations, centred and scaled."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt

from sparse_dict.activations.store import Activations
from sparse_dict.config import ActivationsConfig, TrainSAEConfig
from sparse_dict.errors import UserError
from sparse_dict.sae import architectures, schedule
from sparse_dict.sae.folder import Array, Dictionary

# From this `Activations.mean_to_spread` on, activations.centering=auto subtracts the mean: without
# that nearly all features died at 0.67, and none at 0.25 (docs/l1.md).
CENTRE_FROM = 0.5


@dataclass(frozen=True, eq=False)
class Scaling:
    """A dictionary is trained on (x - mean) / scale. All are (d_in,), one value for each column."""

    mean: Array
    scale: npt.NDArray[np.float64]

    @classmethod
    def of(cls, config: ActivationsConfig, activations: Activations) -> Self:
        """What `config`, with its choices settled, makes of `activations`."""
        d_in, by_site = activations.d_in, config.scaling == "rms_by_site"
        sites = activations.sites if by_site else [(slice(0, d_in), activations.rms)]
        centred = config.centering == "mean"
        mean = activations.mean if centred else np.zeros(d_in)
        scale = np.ones(d_in)
        for columns, rms in sites:
            variance = rms**2 - (activations.mean[columns] ** 2).mean()
            if variance <= 1e-12 * rms**2:
                raise UserError(f"{activations.folder}: all rows are the same")
            if config.scaling != "none":
                scale[columns] = np.sqrt(variance) if centred else rms
        return cls(mean.astype(np.float32), scale)

    @cached_property
    def unit(self) -> float:
        """What codes are multiplied by when the scaling is undone."""
        alike = (self.scale == self.scale[0]).all()
        return float(self.scale[0] if alike else np.sqrt((self.scale**2).mean()))

    @property
    def balance(self) -> Array:
        """How large each column is beside the others: all ones unless sites are scaled apart."""
        return (self.scale / self.unit).astype(np.float32)


def undone(d: Dictionary, x: Scaling, y: Scaling) -> Dictionary:
    """A dictionary of raw activations, made of one of (x - mean) / scale times `y.unit`.

    Codes stay what they were, so that TopK keeps the same ones: decoder rows are no longer unit
    rows where sites were scaled apart. What is reconstructed has a scaling of its own, `y`.
    """
    gain, mean = (x.scale / y.unit).astype(np.float32), x.mean.astype(np.float64)
    W_enc = d.W_enc / gain[:, None]
    b_enc = d.b_enc - mean @ W_enc
    b_dec, W_skip = d.b_dec * y.balance + y.mean, d.W_skip
    if W_skip is not None:
        W_skip = (W_skip * y.scale / x.scale[:, None]).astype(np.float32)
        b_dec = (b_dec - mean @ W_skip).astype(np.float32)
    return replace(
        d,
        W_enc=W_enc,
        b_enc=b_enc.astype(np.float32),
        W_dec=d.W_dec * y.balance,
        b_dec=b_dec,
        W_skip=W_skip,
    )


def decided(config: ActivationsConfig, *seen: Activations) -> ActivationsConfig:
    """`config` as a record keeps it, with ``auto`` decided by all activations that are `seen`."""
    scaling, centering = config.scaling, config.centering
    if scaling == "rms_by_site" and all(len(found.sites) == 1 for found in seen):
        scaling = "rms"
    if centering == "auto":
        far = max(found.mean_to_spread for found in seen)
        centering = "mean" if far >= CENTRE_FROM else "none"
    return replace(config, scaling=scaling, centering=centering)


@dataclass(frozen=True, eq=False)
class Data:
    """What is read and what is reconstructed: one and the same, but for a transcoder."""

    x: Activations
    y: Activations
    x_scaling: Scaling
    y_scaling: Scaling

    @classmethod
    def of(cls, config: TrainSAEConfig, activations: Activations) -> Self:
        x, y = _sites(config, activations)
        return cls(x, y, *(Scaling.of(config.activations, columns) for columns in (x, y)))


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
        activations=decided(config.activations, read, written),
        sae=type(architectures.of(config.sae)).settled(config.sae, widths),
        optimizer=schedule.settled(config.optimizer, read.d_in),
    )
