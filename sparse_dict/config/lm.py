"""The language model, its optimiser and its training."""

from dataclasses import dataclass

from omegaconf import MISSING

from sparse_dict.config.ranges import Checked, between, not_negative, one_of, positive
from sparse_dict.errors import UserError


@dataclass
class ModelConfig(Checked, section="model"):
    """A GPT in the nanoGPT manner."""

    n_layers: int = positive()  # blocks
    n_heads: int = positive()  # of attention, in a block
    d_model: int = positive()  # width of the residual stream
    d_mlp: int = positive()  # neurons of an MLP
    n_ctx: int = positive()  # tokens in one context

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.n_heads:
            raise UserError(
                f"model.d_model ({self.d_model}) must be a multiple of "
                f"model.n_heads ({self.n_heads})"
            )


@dataclass
class AdamWConfig(Checked, section="optimizer"):
    """AdamW with linear warm-up and cosine decay, for the language model."""

    lr: float = positive()  # the highest learning rate
    min_lr_ratio: float = not_negative()  # learning rate at the end, as a share of lr
    beta1: float = MISSING  # decay of the mean gradient
    beta2: float = MISSING  # decay of its mean square
    weight_decay: float = not_negative()  # on matrices only
    warmup_fraction: float = not_negative()  # share of the run spent in warm-up
    grad_clip: float = not_negative()  # global norm; 0 turns clipping off
    cosine_runs: float = positive(1.0)  # length of the cosine in runs: above 1, the run ends before


@dataclass
class MuonConfig(AdamWConfig):
    """Muon on the blocks' matrices, AdamW on embeddings, positions and norms."""

    hidden_lr: float = positive()  # Muon's learning rate; `lr` is AdamW's, with the same schedule
    momentum: float = between(0, 1, "[)")  # of the matrices' gradients


@dataclass
class LMTrainingConfig(Checked, section="training"):
    """How long and in what pieces the language model is trained."""

    n_tokens: int = positive()  # tokens seen in all
    batch_size: int = positive()  # sequences of n_ctx tokens in one forward pass
    accumulate: int = positive()  # forward passes in one optimiser step
    precision: str = one_of("fp32", "bf16")  # of products
    eval_every: int = positive()  # optimiser steps between validation losses
    eval_tokens: int = positive()  # validation tokens in one estimate
    checkpoint_every: int = positive()  # optimiser steps between checkpoints
    log_every: int = positive()  # optimiser steps between logged values
