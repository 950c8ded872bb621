"""What one dictionary is while it trains: parameters, Adam moments, and who fired when."""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from sparse_dict.config import SAEConfig, TrainSAEConfig
from sparse_dict.sae import kernel

FLOOR_DECAY = 0.99  # of BatchTopK's running threshold, per 256 rows


@dataclass
class Hyper:
    """The numbers of one step of one dictionary."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    penalty: float  # L1 coefficient after scaling and warm-up
    l0: float  # L0 coefficient after warm-up
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
    sums: Tensor  # (4,) what `Stats` holds, of the steps since it was last zeroed
    sae: SAEConfig
    seed: int
    dead_window: int  # rows
    # JumpReLU's thresholds (dict_size,), learned as logarithms so that they stay positive
    log_threshold: Tensor | None = None
    m_threshold: Tensor | None = None
    v_threshold: Tensor | None = None
    # BatchTopK: (1,) running mean of the smallest code chosen, the threshold used afterwards
    batch_floor: Tensor | None = None

    @property
    def dict_size(self) -> int:
        """Number of features."""
        return self.W_dec.shape[-2]

    @classmethod
    def initial(cls, config: TrainSAEConfig, d_in: int, device: torch.device) -> "State":
        """Random unit decoder rows; an encoder as `sae.init` says.

        ``independent``: encoder and bias uniform in +-1/sqrt(d_in), as `torch.nn.Linear` has them,
        which is how the post began. ``aligned``: the encoder equal to the decoder, zero bias.

        The values depend on the config's seed, size and width alone, and are drawn on the CPU, so
        that they are the same on every device and whatever trains alongside.
        """
        size, width = config.sae.dict_size, kernel.padded(d_in)
        # Not from the seed alone: a larger dictionary would begin with all rows of a smaller one,
        # and be found to agree with it long before either has learned anything.
        mixed = int(np.random.SeedSequence([config.seed, size]).generate_state(1)[0])
        generator = torch.Generator().manual_seed(mixed)
        W_dec = torch.zeros(size, width)
        W_dec[:, :d_in] = torch.randn(size, d_in, generator=generator)
        W_dec /= W_dec.norm(dim=1, keepdim=True)
        W_enc, b = W_dec.clone(), torch.zeros(size)
        if config.sae.init == "independent":
            bound = d_in**-0.5
            W_enc[:, :d_in].uniform_(-bound, bound, generator=generator)
            b.uniform_(-bound, bound, generator=generator)
        W_dec = W_dec.to(device)
        thresholds: dict[str, Tensor] = {}
        if config.sae.activation == "jumprelu":
            log = math.log(config.sae.threshold)
            thresholds["log_threshold"] = torch.full((size,), log, device=device)
            thresholds["m_threshold"] = torch.zeros(size, device=device)
            thresholds["v_threshold"] = torch.zeros(size, device=device)
        elif config.sae.activation == "batch_topk":
            thresholds["batch_floor"] = torch.zeros(1, device=device)
        moments = [torch.zeros_like(W_dec) for _ in range(2 if config.sae.tied else 4)]
        return cls(
            W_enc=W_dec if config.sae.tied else W_enc.to(device),
            W_dec=W_dec,
            b=b.to(device),
            m_enc=moments[0],
            v_enc=moments[1],
            m_dec=moments[-2],
            v_dec=moments[-1],
            m_b=torch.zeros(size, device=device),
            v_b=torch.zeros(size, device=device),
            last_fired=torch.zeros(size, dtype=torch.int64, device=device),
            # Apple's GPUs have no float64
            sums=torch.zeros(4, device=device).to(
                torch.float32 if device.type == "mps" else torch.float64
            ),
            sae=config.sae,
            seed=config.seed,
            dead_window=config.training.dead_window,
            **thresholds,
        )

    def dead(self, seen: int) -> Tensor:
        """(dict_size,) bool: not active on the last `dead_window` of the `seen` rows."""
        return seen - self.last_fired >= min(self.dead_window, seen)

    def follow_floors(self, floors: list[float]) -> None:
        """Move BatchTopK's running threshold towards the smallest codes just chosen."""
        if self.batch_floor is None:
            return
        for floor in floors:
            first = float(self.batch_floor) == 0.0
            self.batch_floor += (floor - self.batch_floor) * (1.0 if first else 1 - FLOOR_DECAY)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors to save, shared ones once; the sums are saved as `stats`."""
        left_out = {"sums"} | ({"W_enc", "m_enc", "v_enc"} if self.sae.tied else set())
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the values that `tensors()` gave."""
        for name, tensor in self.tensors().items():
            if tensors[name].shape != tensor.shape:  # copy_ would broadcast
                raise ValueError(f"{name} does not have the shape {tuple(tensor.shape)}")
            tensor.copy_(tensors[name])

    def hold(self, tensors: dict[str, Tensor]) -> None:
        """Have these tensors, named as in `tensors()` and `sums`, in place of its own."""
        for name, tensor in tensors.items():
            setattr(self, name, tensor)
        if self.sae.tied:
            self.W_enc, self.m_enc, self.v_enc = self.W_dec, self.m_dec, self.v_dec

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        everything = self.tensors() | {"sums": self.sums}
        self.hold({name: tensor.to(device) for name, tensor in everything.items()})

    def is_finite(self) -> bool:
        """Whether every parameter is, and the sums: of codes and errors since they were zeroed."""
        values = [self.W_enc, self.W_dec, self.b, self.sums]
        if self.log_threshold is not None:
            values.append(self.log_threshold)
        return bool(torch.stack([value.sum().float() for value in values]).isfinite().all())

    def stats(self) -> "Stats":
        """The sums as numbers, for which a GPU is waited for."""
        squared_error, l1, active, rows = self.sums.tolist()
        return Stats(squared_error, l1, int(active), int(rows))

    def add_stats(self, stats: "Stats") -> None:
        """Add to the sums."""
        numbers = [stats.squared_error, stats.l1, stats.active, stats.rows]
        self.sums += torch.tensor(numbers, dtype=self.sums.dtype).to(self.sums.device)


def hyper(config: TrainSAEConfig, step: int) -> Hyper:
    """The numbers of optimiser step `step`, counted from one.

    Learning rate and penalties rise linearly from zero at first; of the L1 penalty, Anthropic's
    Circuits Updates of April 2024 do so ("Update on how we train SAEs").
    """
    o, sae = config.optimizer, config.sae
    warm = min(1.0, step / o.warmup_steps) if o.warmup_steps else 1.0
    penalty = sae.l1 / sae.dict_size if sae.l1_scaling == "dict_size" else sae.l1
    rise = config.training.l1_warmup_steps
    risen = min(1.0, step / rise) if rise else 1.0
    return Hyper(o.lr * warm, o.beta1, o.beta2, o.eps, penalty * risen, sae.l0 * risen, step)


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
