"""The whole config of each of the four stages."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING

from sparse_dict.config.activations import ActivationsConfig, HarvestConfig
from sparse_dict.config.analysis import ANALYSES, ComparisonConfig
from sparse_dict.config.lm import AdamWConfig, LMTrainingConfig, ModelConfig
from sparse_dict.config.ranges import NAME_BYTES, Checked, not_negative, one_of
from sparse_dict.config.sae import AdamConfig, SAEConfig, SAETrainingConfig, SparsityConfig
from sparse_dict.errors import UserError


@dataclass
class TrackingConfig(Checked, section="tracking"):
    """Weights & Biases."""

    # whether runs are sent; auto: if there is a key and the server answers
    mode: str = one_of("auto", "online", "offline", "disabled")
    project: str = MISSING  # to which the runs belong
    entity: str | None = MISSING  # user or team; null: the key's own
    tags: list[str] = MISSING  # of every run
    label: str | None = None  # name of a dictionary's run; null: what varies in its grid
    job_type: str | None = None  # of the runs; null: the stage
    upload: str = one_of("none", "weights", default="none")  # weights: dictionaries are sent

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.project) <= 128 or set(self.project) & set("/\\#?%:"):
            raise UserError(
                "tracking.project must have 1 to 128 characters, and none of / \\ # ? % :, "
                f"not {self.project!r}"
            )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise UserError(f"tracking.tags must have 1 to 64 characters each, not {tag!r}")


@dataclass
class StudyConfig(Checked):
    """What all four stages share."""

    name: str = MISSING  # of the study
    study_dir: str = MISSING  # where all four stages put what they make
    device: str = MISSING  # auto (all GPUs, or else the CPU), cpu, cuda or cuda:1
    seed: int = not_negative()  # of initial values, and of what else is drawn
    tracking: TrackingConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.name).name != self.name or self.name[:1] in ("", ".") or not (
            self.name.isprintable() and len(self.name.encode()) <= NAME_BYTES
        ):  # fmt: skip
            raise UserError(
                f"name must be a plain folder name, of {NAME_BYTES} bytes at most, "
                f"not {self.name!r}"
            )


@dataclass
class TrainLMConfig(StudyConfig):
    """Stage 1."""

    lm_dir: str = MISSING  # of the language model
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
    activations_dir: str = MISSING  # of the harvest
    cache_dir: str = MISSING
    data: Any = MISSING
    harvest: HarvestConfig = MISSING
    lm: Any = MISSING  # StudyLM or HFModel


@dataclass
class TrainSAEConfig(StudyConfig):
    """Stage 3."""

    activations_dir: Any = MISSING  # a folder, or a list: harvests of the same tokens side by side
    lm_dir: str = MISSING  # read by intervention=guide
    activations: ActivationsConfig = MISSING
    sparsity: SparsityConfig = MISSING
    sae: SAEConfig = MISSING
    optimizer: AdamConfig = MISSING
    training: SAETrainingConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_folders("activations_dir", self.activations_dir)

    @property
    def activations_dirs(self) -> list[Path]:
        """The folders of `activations_dir`, one or more."""
        return _folders(self.activations_dir)


def _folders(given: Any) -> list[Path]:
    return [Path(folder) for folder in (given if isinstance(given, list) else [given])]


def _check_folders(key: str, value: Any) -> None:
    given = value if isinstance(value, list) else [value]
    if not given or not all(isinstance(folder, str) for folder in given):
        raise UserError(f"{key} must be a folder, or a list of them, not {value!r}")


Settings = TypeVar("Settings")


@dataclass
class AnalyzeConfig(StudyConfig):
    """Stage 4 without the analyses, for each of which `analyze_schema` adds a section."""

    sae_dir: Any = MISSING  # a folder, or a list: the first is analysed, the others beside it
    analysis_dir: str = MISSING  # of the report
    activations_dir: Any = MISSING  # what the dictionaries were trained on; a folder, or a list
    lm_dir: str = MISSING
    cache_dir: str = MISSING
    comparison: ComparisonConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_folders("sae_dir", self.sae_dir)
        _check_folders("activations_dir", self.activations_dir)

    @property
    def sae_dirs(self) -> list[Path]:
        """The folders of `sae_dir`, one or more."""
        return _folders(self.sae_dir)

    @property
    def activations_dirs(self) -> list[Path]:
        """The folders of `activations_dir`, one or more."""
        return _folders(self.activations_dir)

    def is_on(self, name: str) -> bool:
        """Whether an analysis was chosen."""
        return getattr(self, name) is not None

    def settings(self, kind: type[Settings]) -> Settings | None:
        """The settings of the analysis whose settings are of this type; None if it is off."""
        (name,) = (name for name, settings in ANALYSES.items() if settings is kind)
        found: Settings | None = getattr(self, name)
        return found


def analyze_schema() -> type[AnalyzeConfig]:
    """`AnalyzeConfig` with a section for each of ANALYSES, None where it was not chosen."""
    sections = [(name, kind | None, None) for name, kind in ANALYSES.items()]
    return make_dataclass("AnalyzeConfig", sections, bases=(AnalyzeConfig,))
