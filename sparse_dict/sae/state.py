"""One dictionary in training: parameters, Adam's moments, when each feature was last active."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae import architectures
from sparse_dict.sae.architectures import Architecture
from sparse_dict.sae.loss import Params, Term

FLOOR_DECAY = 0.99  # of BatchTopK's running threshold, per 256 rows
SHARED = ("b_dec", "W_skip")  # parameters without an entry for each feature

Change = Callable[[Params, Generator], None]  # of initial values, in place


def drawn_from(
    seed: int, architecture: Architecture, d_in: int, d_out: int, changes: Sequence[Change] = ()
) -> Params:
    """The initial parameters of a dictionary, drawn on the CPU: the same on every device."""
    # The size enters the seed: from the seed alone, a larger dictionary would begin with all
    # rows of a smaller one and agree with it before either has learned anything.
    mixed = np.random.SeedSequence([seed, architecture.sae.dict_size]).generate_state(1)[0]
    generator = Generator().manual_seed(int(mixed))
    p = architecture.initial(d_in, d_out, generator)
    for change in changes:
        change(p, generator)
    if architecture.sae.encoder_norm and not architecture.sae.tied:
        align(p["W_enc"], p["W_dec"])
    return p


def align(W_enc: Tensor, W_dec: Tensor) -> None:
    """Move encoder rows along unit decoder rows until each has a product of one with its own."""
    W_enc.add_((1 - (W_enc * W_dec).sum(dim=-1, keepdim=True)) * W_dec)


def keep_aligned(W_enc: Tensor, W_dec: Tensor, g_enc: Tensor, g_dec: Tensor) -> None:
    """The gradients where a product of one is kept, from those of free rows, in place.

    W_enc stands for V + (1 - V W_dec) W_dec with a free V, at V = W_enc: a reparametrisation with
    the constraint of Aligned Training (arXiv 2605.18629). Moving encoder rows back after each step
    (`align`) alone would come to rest where the decoder's share of the gradient is not zero.
    """
    along = (g_enc * W_dec).sum(dim=-1, keepdim=True)
    g_enc.sub_(along * W_dec)
    g_dec.sub_(along * W_enc)


@dataclass
class State:
    """One dictionary in training. Rows are features."""

    params: Params  # as its architecture has them
    m: Params  # Adam's first moments
    v: Params  # and second
    last_fired: Tensor  # (dict_size,) int64: rows seen when the feature was last active
    sums: Tensor  # (4,) the fields of `Stats`, of the steps since it was last zeroed
    architecture: Architecture
    seed: int
    dead_window: int  # rows
    d_in: int  # columns that are read
    d_out: int  # and reconstructed: as many, but for a transcoder
    # BatchTopK: (1,) running mean of the smallest code chosen, the threshold used afterwards
    batch_floor: Tensor | None = None
    terms: tuple[Term, ...] = ()  # what interventions add to its loss

    @classmethod
    def initial(
        cls,
        config: TrainSAEConfig,
        d_in: int,
        d_out: int,
        device: torch.device,
        changes: Sequence[Change] = (),
        terms: tuple[Term, ...] = (),
    ) -> "State":
        """The initial values of its architecture, and nothing learned yet."""
        architecture, training = architectures.of(config.sae), config.training
        drawn = drawn_from(config.seed, architecture, d_in, d_out, changes)
        params = {name: tensor.to(device) for name, tensor in drawn.items()}
        return cls(
            params=params,
            m={name: torch.zeros_like(tensor) for name, tensor in params.items()},
            v={name: torch.zeros_like(tensor) for name, tensor in params.items()},
            last_fired=torch.zeros(config.sae.dict_size, dtype=torch.int64, device=device),
            sums=torch.zeros(4, dtype=torch.float64, device=device),
            architecture=architecture,
            seed=config.seed,
            dead_window=min(training.dead_window, max(1, training.n_activations // 2)),
            d_in=d_in,
            d_out=d_out,
            batch_floor=torch.zeros(1, device=device) if architecture.keeps_floor else None,
            terms=terms,
        )

    def drawn(self, seed: int) -> Params:
        """Other initial parameters, on the CPU."""
        return drawn_from(seed, self.architecture, self.d_in, self.d_out)

    @property
    def W_dec(self) -> Tensor:
        """(dict_size, d_out)."""
        return self.params["W_dec"]

    @property
    def W_enc(self) -> Tensor:
        """(dict_size, d_in)."""
        return self.params.get("W_enc", self.params["W_dec"])

    @property
    def b(self) -> Tensor:
        """(dict_size,) the encoder's bias."""
        return self.params["b"]

    @property
    def whole(self) -> Params:
        """Parameters as an architecture takes them: ``W_enc`` is always there."""
        return {"W_enc": self.W_enc} | self.params

    @property
    def dict_size(self) -> int:
        return self.W_dec.shape[-2]

    @property
    def per_feature(self) -> list[str]:
        """Parameters that have an entry for each feature."""
        return [name for name in self.params if name not in SHARED]

    @property
    def is_fast(self) -> bool:
        """Whether its gradients are written by hand; else autograd makes them."""
        return self.architecture.fast and not self.terms

    def inactive(self, seen: int) -> Tensor:
        """(dict_size,) bool: not active on the last `dead_window` of the `seen` rows."""
        return seen - self.last_fired >= min(self.dead_window, seen)

    def begin_anew(self, features: Tensor) -> None:
        """Forget Adam's moments of `features`, (dict_size,) bool."""
        for moments in (self.m, self.v):
            for name in self.per_feature:
                moments[name][features] = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint by name: ``W_enc`` with moments ``m_enc``, ``v_enc`` ..."""
        named = dict(self.params)
        for kind, moments in (("m", self.m), ("v", self.v)):
            for name, tensor in moments.items():
                named[f"{kind}_{name.removeprefix('W_').removeprefix('log_')}"] = tensor
        named["last_fired"] = self.last_fired
        if self.batch_floor is not None:
            named["batch_floor"] = self.batch_floor
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the values that `tensors()` gave; earlier versions added columns of zeros."""
        for name, tensor in self.tensors().items():
            given = tensors[name]
            kept = given[tuple(slice(n) for n in tensor.shape)]
            if kept.shape != tensor.shape or given.count_nonzero() != kept.count_nonzero():
                raise ValueError(f"{name} does not have the shape {tuple(tensor.shape)}")
            tensor.copy_(kept)

    def is_finite(self) -> bool:
        """Whether all parameters are, and the sums of codes and errors."""
        values = [*self.params.values(), self.sums]
        return bool(torch.stack([value.sum().float() for value in values]).isfinite().all())

    def stats(self) -> "Stats":
        """The sums as numbers; this waits for a GPU."""
        squared_error, l1, active, rows = self.sums.tolist()
        return Stats(squared_error, l1, int(active), int(rows))


@dataclass
class Stats:
    """Sums over the rows of one or more steps of one dictionary."""

    squared_error: float = 0.0  # over rows and dimensions, in scaled units
    l1: float = 0.0  # sum of codes
    active: int = 0  # active entries
    rows: int = 0
