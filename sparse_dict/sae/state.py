"""What one dictionary is while it trains: parameters, Adam moments, and who fired when."""

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae import kernel


@dataclass
class Hyper:
    """The numbers of one step of one dictionary."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    penalty: float  # L1 coefficient after scaling and warm-up
    step: int  # counted from one, as Adam's bias correction wants it


@dataclass
class State:
    """One dictionary in training. Rows are features; columns are padded with zeros to `width`.

    With tied weights `W_enc` *is* `W_dec`, and so are their moments.
    """

    W_enc: Tensor  # (dict_size, width)
    W_dec: Tensor  # (dict_size, width), unit rows
    b: Tensor  # (dict_size,)
    m_enc: Tensor
    v_enc: Tensor
    m_dec: Tensor
    v_dec: Tensor
    m_b: Tensor
    v_b: Tensor
    last_fired: Tensor  # (dict_size,) int64: rows seen when the feature was last active
    tied: bool = field(default=False)

    @property
    def dict_size(self) -> int:
        """Number of features."""
        return self.W_dec.shape[0]

    @classmethod
    def initial(cls, config: TrainSAEConfig, d_in: int, device: torch.device) -> "State":
        """Random unit decoder rows, the encoder equal to the decoder, zero bias.

        The values depend on the config's seed, size and width alone, and are drawn on the CPU, so
        that they are the same on every device and whatever trains alongside.
        """
        size, width = config.sae.dict_size, kernel.padded(d_in)
        generator = torch.Generator().manual_seed(config.seed)
        W_dec = torch.zeros(size, width)
        W_dec[:, :d_in] = torch.randn(size, d_in, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        W_dec = W_dec.to(device)
        moments = [torch.zeros_like(W_dec) for _ in range(2 if config.sae.tied else 4)]
        return cls(
            W_enc=W_dec if config.sae.tied else W_dec.clone(),
            W_dec=W_dec,
            b=torch.zeros(size, device=device),
            m_enc=moments[0],
            v_enc=moments[1],
            m_dec=moments[-2],
            v_dec=moments[-1],
            m_b=torch.zeros(size, device=device),
            v_b=torch.zeros(size, device=device),
            last_fired=torch.zeros(size, dtype=torch.int64, device=device),
            tied=config.sae.tied,
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save; shared ones once."""
        skip = {"tied"} | ({"W_enc", "m_enc", "v_enc"} if self.tied else set())
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skip}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the values that `tensors()` gave."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])

    def is_finite(self) -> bool:
        """Whether every parameter is."""
        return all(bool(torch.isfinite(p.sum())) for p in (self.W_enc, self.W_dec, self.b))


def hyper(config: TrainSAEConfig, step: int) -> Hyper:
    """The numbers of optimiser step `step`, counted from one."""
    o, sae = config.optimizer, config.sae
    warm = min(1.0, step / o.warmup_steps) if o.warmup_steps else 1.0
    penalty = sae.l1 / sae.dict_size if sae.l1_scaling == "dict_size" else sae.l1
    if config.training.l1_warmup_steps:
        penalty *= min(1.0, step / config.training.l1_warmup_steps)
    return Hyper(o.lr * warm, o.beta1, o.beta2, o.eps, penalty, step)


@dataclass
class Stats:
    """Sums over the rows of one or more steps of one dictionary."""

    squared_error: float = 0.0  # over rows and dimensions, in scaled units
    l1: float = 0.0  # sum of codes
    active: int = 0  # active entries
    rows: int = 0

    def add(self, other: "Stats") -> None:
        """Add another's sums."""
        self.squared_error += other.squared_error
        self.l1 += other.l1
        self.active += other.active
        self.rows += other.rows

    @property
    def finite(self) -> bool:
        """Whether the sums are numbers."""
        return math.isfinite(self.squared_error) and math.isfinite(self.l1)
