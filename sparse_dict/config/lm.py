"""The language model, its optimiser and its training."""

from dataclasses import dataclass

from omegaconf import MISSING

from sparse_dict.config.ranges import not_negative, one_of, positive
from sparse_dict.errors import UserError


@dataclass
class ModelConfig:
    """A GPT in the nanoGPT manner."""

    n_layers: int = MISSING
    n_heads: int = MISSING
    d_model: int = MISSING
    d_mlp: int = MISSING
    n_ctx: int = MISSING  # tokens in one context

    def __post_init__(self) -> None:
        positive(self, "model", "n_layers", "n_heads", "d_model", "d_mlp", "n_ctx")
        if self.d_model % self.n_heads:
            raise UserError(
                f"model.d_model ({self.d_model}) must be a multiple of "
                f"model.n_heads ({self.n_heads})"
            )


@dataclass
class AdamWConfig:
    """AdamW with linear warm-up and cosine decay, for the language model."""

    lr: float = MISSING
    min_lr_ratio: float = MISSING  # learning rate at the end, as a share of lr
    beta1: float = MISSING
    beta2: float = MISSING
    weight_decay: float = MISSING  # on matrices only
    warmup_fraction: float = MISSING  # share of the run spent in warm-up
    grad_clip: float = MISSING  # global norm; 0 turns clipping off
    # Length of the cosine, in runs: above 1, the run ends before it. Older studies recorded none.
    cosine_runs: float = 1.0

    def __post_init__(self) -> None:
        positive(self, "optimizer", "lr", "cosine_runs")
        not_negative(
            self, "optimizer", "min_lr_ratio", "weight_decay", "grad_clip", "warmup_fraction"
        )


@dataclass
class MuonConfig(AdamWConfig):
    """Muon on the blocks' matrices, AdamW on embeddings, positions and norms."""

    hidden_lr: float = MISSING  # Muon's learning rate; `lr` is AdamW's, with the same schedule
    momentum: float = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "optimizer", "hidden_lr")
        not_negative(self, "optimizer", "momentum")
        if self.momentum >= 1:
            raise UserError(f"optimizer.momentum must be below 1, not {self.momentum}")


@dataclass
class LMTrainingConfig:
    """How long and in what pieces the language model is trained."""

    n_tokens: int = MISSING  # tokens seen in all
    batch_size: int = MISSING  # sequences of n_ctx tokens in one forward pass
    accumulate: int = MISSING  # forward passes in one optimiser step
    precision: str = MISSING  # fp32 | bf16
    eval_every: int = MISSING  # optimiser steps between validation losses
    eval_tokens: int = MISSING  # validation tokens in one estimate
    checkpoint_every: int = MISSING  # optimiser steps between checkpoints
    log_every: int = MISSING  # optimiser steps between logged values

    def __post_init__(self) -> None:
        positive(
            self,
            "training",
            "n_tokens",
            "batch_size",
            "accumulate",
            "eval_every",
            "eval_tokens",
            "checkpoint_every",
            "log_every",
        )
        one_of(self, "training", "precision", "fp32", "bf16")
