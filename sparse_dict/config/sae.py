"""A dictionary of any kind, its optimiser and its training."""

from dataclasses import dataclass

from omegaconf import MISSING

from sparse_dict.config.ranges import Checked, between, coefficient, not_negative, one_of, positive
from sparse_dict.config.sites import parse
from sparse_dict.errors import UserError


@dataclass
class SAEConfig(Checked, section="sae"):
    """What every kind of dictionary has.

    `sae/architectures/` adds each kind's own keys, and `sae/interventions/` those of what is done
    to dictionaries beside training them.
    """

    dict_size: int = positive()  # number of features
    activation: str = MISSING  # the kind, a module of sae/architectures/; chosen by sae=NAME
    tied: bool = MISSING  # encoder = decoder transposed
    init: str = one_of("independent", "aligned")  # aligned: the encoder starts as the decoder
    l1: float = coefficient()  # coefficient of the L1 penalty
    # what l1 is divided by: d_in, so that one l1 gives a similar L0 at any width; none, as the
    # post; dict_size, the dictionary's size
    l1_scaling: str = one_of("none", "d_in", "dict_size")
    dead: str = one_of("none", "resample", "auxk")  # what is done about features that stay inactive
    resample_every: int = positive(2_500)  # resample: optimiser steps between two
    aux_k: int = positive()  # auxk: inactive features that model the residual of a row
    aux_coefficient: float = not_negative()  # auxk: weight of that loss
    precision: str = one_of("fp32", "bf16")  # of products; on a CPU, of the one that selects codes
    project_gradient: bool = MISSING  # drop the decoder gradient's part along its unit rows
    encoder_norm: bool = False  # keep each encoder row times its decoder row at one
    # LAYER/SITE or a module's path, of a harvest of several: whose columns are read; null: all
    site: str | None = None
    target: str | None = None  # transcoder: the site that is reconstructed; null: what is read
    skip: bool = False  # transcoder: the output also gets a linear map of the input

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("site", "target"):
            if (place := getattr(self, key)) is not None:
                parse(place, None, f"sae.{key}")
        if self.target is not None and (self.tied or self.init == "aligned"):
            raise UserError(
                "sae.target: encoder and decoder are of different sites, so they cannot be alike: "
                "set sae.tied=false and sae.init=independent"
            )
        if self.target is not None and self.site in (None, self.target):
            raise UserError("sae.target needs another site in sae.site, from which it is made")
        if self.skip and self.target is None:
            raise UserError("sae.skip needs sae.target: x itself would be its own reconstruction")
        if self.target is not None and self.encoder_norm:
            raise UserError("sae.target needs sae.encoder_norm=false")


@dataclass
class SparsityConfig:
    """The levels of sparsity where kinds are compared; `conf/sae/` takes its values from these."""

    l1: float = MISSING  # of kinds with an L1 penalty
    k: int = MISSING  # of TopK and its like
    l0: float = MISSING  # of JumpReLU


@dataclass
class AdamConfig(Checked, section="optimizer"):
    """Adam for dictionaries: a linear warm-up, and a decay at the end if there is a schedule."""

    lr: float = positive()  # learning rate
    # what becomes of lr where activations are wider than 128 columns: d_in, times sqrt(128 / d_in);
    # none, nothing. A record has the rate that was used
    lr_scaling: str = one_of("none", "d_in", default="none")
    beta1: float = between(0, 1, "[)")  # decay of the mean gradient
    beta2: float = between(0, 1, "[)")  # decay of its mean square
    eps: float = positive()  # added to the root of that
    warmup_steps: int = not_negative()  # optimiser steps over which the rate rises
    schedule: str = one_of("constant", "linear", "cosine", default="constant")  # how the rate ends
    decay_fraction: float = between(0, 1, "(]", default=0.2)  # of the training, in which it falls


@dataclass
class SAETrainingConfig(Checked, section="training"):
    """How long and in what pieces dictionaries are trained."""

    n_activations: int = positive()  # rows seen in all; more than there are means several passes
    batch_size: int = positive()  # rows in one optimiser step
    eval_rows: int = positive()  # rows at the end of the harvest, kept for the final numbers
    l1_warmup_steps: int = not_negative()  # optimiser steps over which l1 rises from zero
    # a feature is inactive if none of the last so many rows, or half of the training, activated it
    dead_window: int = positive()
    snapshots: int = not_negative()  # decoders kept: at the end, half of it, a quarter and so on
    log_every: int = positive()  # optimiser steps between logged values
    checkpoint_every: int = positive()  # optimiser steps between checkpoints
    rows: str = one_of("all", "half_a", "half_b", "bootstrap", default="all")  # which rows are seen
    rows_seed: int = not_negative(0)  # of the split into halves, or of the bootstrap
