"""One dictionary in training: parameters, Adam's moments, when each feature was last active."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparse_dict.config import TrainSAEConfig
from sparse_dict.sae import architectures, kernel
from sparse_dict.sae.architectures import Architecture
from sparse_dict.sae.guidance import Guide
from sparse_dict.sae.loss import Params

FLOOR_DECAY = 0.99  # of BatchTopK's running threshold, per 256 rows
SHARED = ("b_dec", "W_skip")  # parameters without an entry for each feature


def drawn_from(
    seed: int,
    architecture: Architecture,
    d_in: int,
    d_out: int | None = None,
    directions: Tensor | None = None,
) -> Params:
    """The initial parameters of a dictionary, padded; `d_out` is that of a transcoder.

    With `directions` (n, d_in) decoder rows are random combinations of them, of unit norm.
    """
    # The size enters the seed: from the seed alone, a larger dictionary would begin with all
    # rows of a smaller one and agree with it before either has learned anything.
    mixed = np.random.SeedSequence([seed, architecture.sae.dict_size]).generate_state(1)[0]
    generator = torch.Generator().manual_seed(int(mixed))
    d_out = d_in if d_out is None else d_out
    p = architecture.initial(d_out, kernel.padded(max(d_in, d_out)), generator)
    sae = architecture.sae
    if sae.target is not None:
        return architecture.across(p, d_in, generator)
    if directions is not None:
        mixtures = torch.randn(sae.dict_size, len(directions), generator=generator) @ directions
        p["W_dec"][:, :d_in] = torch.nn.functional.normalize(mixtures, dim=1)
        if sae.init == "aligned" and not sae.tied:
            p["W_enc"] = p["W_dec"].clone()
    if sae.encoder_norm and not sae.tied:
        align(p["W_enc"], p["W_dec"])
    return p


def align(W_enc: Tensor, W_dec: Tensor) -> None:
    """Move encoder rows along the unit decoder rows until each has a product of one with its own.

    In place.
    """
    W_enc.add_((1 - (W_enc * W_dec).sum(dim=-1, keepdim=True)) * W_dec)


def keep_aligned(W_enc: Tensor, W_dec: Tensor, g_enc: Tensor, g_dec: Tensor) -> None:
    """The gradients where a product of one is kept, from those of free rows, in place.

    That is where W_enc stands for V + (1 - V W_dec) W_dec with a free V, at V = W_enc: a
    reparametrisation with the constraint of Aligned Training (arXiv 2605.18629). Moving encoder
    rows back after each step (`align`) would keep the constraint by itself, but would come to rest
    where the decoder's share of the gradient is not zero.
    """
    along = (g_enc * W_dec).sum(dim=-1, keepdim=True)
    g_enc.sub_(along * W_dec)
    g_dec.sub_(along * W_enc)


@dataclass
class State:
    """One dictionary in training. Rows are features; columns are padded with zeros to `width`.

    With tied weights there is no parameter ``W_enc``: it *is* ``W_dec``.
    """

    # as its architecture has them, (dict_size, width), (dict_size,), (width,), W_skip square
    params: Params
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
    metric: Tensor | None = None  # (width, width), padded, of its `Guide` if its loss needs one

    @property
    def W_dec(self) -> Tensor:
        """(dict_size, width), unit rows."""
        return self.params["W_dec"]

    @property
    def W_enc(self) -> Tensor:
        """(dict_size, width)."""
        return self.params.get("W_enc", self.params["W_dec"])

    @property
    def b(self) -> Tensor:
        """(dict_size,) the encoder's bias."""
        return self.params["b"]

    @property
    def dict_size(self) -> int:
        """Number of features."""
        return self.W_dec.shape[-2]

    @property
    def per_feature(self) -> list[str]:
        """Parameters that have an entry for each feature."""
        return [name for name in self.params if name not in SHARED]

    def whole(self, d_in: int | None = None, d_out: int | None = None) -> Params:
        """Parameters as a loss takes them: ``W_enc`` always there, columns without padding."""
        d_out = d_in if d_out is None else d_out
        p = {"W_enc": self.W_enc} | self.params
        ends = {"W_enc": d_in, "W_dec": d_out, "b_dec": d_out, "W_skip": d_in}
        found = {name: w[..., : ends[name]] if name in ends else w for name, w in p.items()}
        return found | {name: found[name][..., :d_out, :] for name in found if name == "W_skip"}

    @classmethod
    def initial(
        cls,
        config: TrainSAEConfig,
        d_in: int,
        device: torch.device,
        d_out: int | None = None,
        guide: Guide | None = None,
    ) -> "State":
        """The initial values of its architecture, and nothing learned yet.

        They depend on the config's seed, size and width and its guide alone, and are drawn on the
        CPU, so that they are the same on every device and whatever trains alongside.
        """
        guide = guide or Guide()
        size, architecture = config.sae.dict_size, architectures.of(config.sae)
        drawn = drawn_from(config.seed, architecture, d_in, d_out, guide.directions)
        metric = None
        if architecture.priced:
            assert guide.metric is not None
            more = drawn["W_dec"].shape[1] - d_in
            metric = torch.nn.functional.pad(guide.metric, (0, more, 0, more)).to(device)
        params = {name: tensor.to(device) for name, tensor in drawn.items()}
        return cls(
            params=params,
            m={name: torch.zeros_like(tensor) for name, tensor in params.items()},
            v={name: torch.zeros_like(tensor) for name, tensor in params.items()},
            last_fired=torch.zeros(size, dtype=torch.int64, device=device),
            # Apple's GPUs have no float64
            sums=torch.zeros(4, device=device).to(
                torch.float32 if device.type == "mps" else torch.float64
            ),
            architecture=architecture,
            seed=config.seed,
            d_in=d_in,
            d_out=d_in if d_out is None else d_out,
            dead_window=min(
                config.training.dead_window, max(1, config.training.n_activations // 2)
            ),
            batch_floor=torch.zeros(1, device=device) if architecture.keeps_floor else None,
            metric=metric,
        )

    def inactive(self, seen: int) -> Tensor:
        """(dict_size,) bool: not active on the last `dead_window` of the `seen` rows."""
        return seen - self.last_fired >= min(self.dead_window, seen)

    def begin_anew(self, features: Tensor) -> None:
        """Forget Adam's moments of `features`, (dict_size,) bool."""
        for moments in (self.m, self.v):
            for name in self.per_feature:
                moments[name][features] = 0.0

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint by name: ``W_enc`` with moments ``m_enc``, ``v_enc`` ...

        The sums are not among them; they are saved as `stats`.
        """
        named = dict(self.params)
        for kind, moments in (("m", self.m), ("v", self.v)):
            for name, tensor in moments.items():
                named[f"{kind}_{name.removeprefix('W_').removeprefix('log_')}"] = tensor
        named["last_fired"] = self.last_fired
        if self.batch_floor is not None:
            named["batch_floor"] = self.batch_floor
        return named

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the values that `tensors()` gave."""
        for name, tensor in self.tensors().items():
            if tensors[name].shape != tensor.shape:  # copy_ would broadcast
                raise ValueError(f"{name} does not have the shape {tuple(tensor.shape)}")
            tensor.copy_(tensors[name])

    def move(self, device: torch.device) -> None:
        """Go to another device."""
        for group in (self.params, self.m, self.v):
            group.update({name: tensor.to(device) for name, tensor in group.items()})
        self.last_fired, self.sums = self.last_fired.to(device), self.sums.to(device)
        if self.batch_floor is not None:
            self.batch_floor = self.batch_floor.to(device)
        if self.metric is not None:
            self.metric = self.metric.to(device)

    def is_finite(self) -> bool:
        """Whether all parameters are, and the sums of codes and errors."""
        values = [*self.params.values(), self.sums]
        return bool(torch.stack([value.sum().float() for value in values]).isfinite().all())

    def stats(self) -> "Stats":
        """The sums as numbers; this waits for a GPU."""
        squared_error, l1, active, rows = self.sums.tolist()
        return Stats(squared_error, l1, int(active), int(rows))

    def add_stats(self, stats: "Stats") -> None:
        """Add to the sums."""
        numbers = [stats.squared_error, stats.l1, stats.active, stats.rows]
        self.sums += torch.tensor(numbers, dtype=self.sums.dtype).to(self.sums.device)


@dataclass
class Stats:
    """Sums over the rows of one or more steps of one dictionary."""

    squared_error: float = 0.0  # over rows and dimensions, in scaled units
    l1: float = 0.0  # sum of codes
    active: int = 0  # active entries
    rows: int = 0
