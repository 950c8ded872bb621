"""The whole config of each of the four stages."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from sparse_dict.config.activations import ActivationsConfig, HarvestConfig
from sparse_dict.config.analysis import (
    BaselinesConfig,
    ComparisonConfig,
    ContextsConfig,
    InterpConfig,
    LossRecoveredConfig,
    NoSettings,
)
from sparse_dict.config.lm import AdamWConfig, LMTrainingConfig, ModelConfig
from sparse_dict.config.ranges import one_of
from sparse_dict.config.sae import AdamConfig, SAEConfig, SAETrainingConfig, SparsityConfig
from sparse_dict.errors import UserError


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: str = MISSING  # auto | online | offline | disabled
    project: str = MISSING
    entity: str | None = MISSING
    tags: list[str] = MISSING

    def __post_init__(self) -> None:
        one_of(self, "tracking", "mode", "auto", "online", "offline", "disabled")


@dataclass
class StudyConfig:
    """What all four stages share."""

    name: str = MISSING  # the study
    study_dir: str = MISSING
    device: str = MISSING  # auto | cpu | cuda | cuda:1 | mps
    seed: int = MISSING
    tracking: TrackingConfig = MISSING

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise UserError(f"name must be a plain folder name, not {self.name!r}")
        if self.seed < 0:
            raise UserError(f"seed must not be negative, not {self.seed}")


@dataclass
class TrainLMConfig(StudyConfig):
    """Stage 1."""

    lm_dir: str = MISSING
    cache_dir: str = MISSING  # corpora, vocabularies and token shards, shared by all studies
    data: Any = MISSING
    tokenizer: Any = MISSING
    model: ModelConfig = MISSING
    optimizer: AdamWConfig = MISSING  # or MuonConfig
    training: LMTrainingConfig = MISSING


@dataclass
class HarvestStageConfig(StudyConfig):
    """Stage 2."""

    lm_dir: str = MISSING
    activations_dir: str = MISSING
    cache_dir: str = MISSING
    data: Any = MISSING
    harvest: HarvestConfig = MISSING
    lm: Any = MISSING  # StudyLM or HFModel


@dataclass
class TrainSAEConfig(StudyConfig):
    """Stage 3."""

    activations_dir: str = MISSING
    activations: ActivationsConfig = MISSING
    sparsity: SparsityConfig = MISSING
    sae: SAEConfig = MISSING
    optimizer: AdamConfig = MISSING
    training: SAETrainingConfig = MISSING


@dataclass
class AnalyzeConfig(StudyConfig):
    """Stage 4."""

    sae_dir: str = MISSING
    analysis_dir: str = MISSING
    activations_dir: str = MISSING  # what the dictionaries were trained on
    lm_dir: str = MISSING
    cache_dir: str = MISSING
    comparison: ComparisonConfig = MISSING
    # The analyses: each a choice of the group `analysis`, None if it was not chosen.
    claims: NoSettings | None = None
    heatmap: NoSettings | None = None
    histograms: NoSettings | None = None
    agreement: NoSettings | None = None
    families: NoSettings | None = None
    ridge: NoSettings | None = None
    undertraining: NoSettings | None = None
    sparsity: NoSettings | None = None
    frontier: NoSettings | None = None
    baselines: BaselinesConfig | None = None
    loss_recovered: LossRecoveredConfig | None = None
    truth: NoSettings | None = None
    contexts: ContextsConfig | None = None
    interp: InterpConfig | None = None
