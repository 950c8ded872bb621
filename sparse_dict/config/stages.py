"""The whole config of each of the four stages."""

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING

from sparse_dict.config.analysis import ANALYSES, ComparisonConfig
from sparse_dict.config.ranges import (
    NAME_BYTES,
    Checked,
    at_least,
    between,
    coefficient,
    not_negative,
    one_of,
    positive,
)
from sparse_dict.config.sites import Site, parse
from sparse_dict.errors import UserError


@dataclass
class DataConfig(Checked, section="data"):
    """What every corpus has: the share of its documents held out for validation and harvest."""

    val_fraction: float = between(0, 1)  # share of documents held out


@dataclass
class DocstringsData(DataConfig):
    """Docstrings of installed libraries."""

    packages: list[str] | None = MISSING  # import names; null: all that are installed
    min_chars: int = MISSING  # shorter docstrings are left out


@dataclass
class FilesData(DataConfig):
    """Local txt, jsonl or parquet files."""

    files: Any = MISSING  # a path or glob, or a list of them
    text_column: str = MISSING  # the column or JSON key


@dataclass
class HubData(DataConfig):
    """A data set of the Hugging Face hub."""

    path: str = MISSING  # OWNER/NAME on the hub
    name: str | None = MISSING  # a configuration of it; null: the only one
    revision: str | None = MISSING  # branch or commit; null: the main branch
    split: str = MISSING  # part of the data set
    streaming: bool = MISSING  # read as it is downloaded
    text_column: str = MISSING  # the column that holds the text
    max_documents: int | None = positive()  # null takes all


@dataclass
class ToyData(Checked, section="data"):
    """Synthetic activations whose features are known, in place of a text and a language model."""

    d_in: int = positive()  # columns
    n_features: int = positive()  # the true ones
    n_active: float = positive()  # features active in a row, mean
    decay: float = between(0, 1, "(]")  # probability, as a share of the feature before
    correlated: bool = MISSING  # whether features are active together
    value: str = one_of("uniform", "product")  # U(0, 1), or a product of two

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.n_active / sum(self.decay**i for i in range(self.n_features))
        if most >= 1:
            raise UserError(
                f"data.n_active={self.n_active}: a feature's probability would be {most:.2f}"
            )


@dataclass
class GPT2Tokenizer:
    """GPT-2's byte-pair vocabulary, through tiktoken."""

    kind: str = "gpt2"  # follows from the choice


@dataclass
class BPETokenizer(Checked, section="tokenizer"):
    """A byte-pair vocabulary trained on the corpus."""

    # ids in all
    vocab_size: int = at_least(258, " (256 bytes, one merge, end of text)")
    train_chars: int = positive()  # characters that the trainer sees
    kind: str = "bpe"  # follows from the choice


@dataclass
class SAEConfig(Checked, section="sae"):
    """What every kind of dictionary has."""

    dict_size: int = positive()  # number of features
    activation: str = MISSING  # the kind, a module of sae/architectures/; chosen by sae=NAME
    tied: bool = MISSING  # encoder = decoder transposed
    init: str = one_of("independent", "aligned")  # aligned: the encoder starts as the decoder
    l1: float = coefficient()  # coefficient of the L1 penalty
    l1_scaling: str = one_of("none", "d_in", "dict_size")  # what l1 is divided by
    dead: str = one_of("none", "resample", "auxk")  # what is done about inactive features
    resample_every: int = positive(2_500)  # resample: optimiser steps between two
    aux_k: int = positive()  # auxk: inactive features of a row
    aux_coefficient: float = not_negative()  # auxk: weight of that loss
    precision: str = one_of("fp32", "bf16")  # of products, or on a CPU of selection
    project_gradient: bool = MISSING  # drop the decoder's gradient along its rows
    encoder_norm: bool = False  # encoder rows times decoder rows stay one
    site: str | None = None  # LAYER/SITE or a module's path: what is read; null: all columns
    target: str | None = None  # the site that a transcoder reconstructs
    skip: bool = False  # transcoder: add a linear map of the input

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("site", "target"):
            if (place := getattr(self, key)) is not None:
                parse(place, None, f"sae.{key}")
        if self.target is not None and (self.tied or self.init == "aligned"):
            raise UserError("sae.target needs sae.tied=false and sae.init=independent")
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
    # d_in: lr times sqrt(128 / d_in) where that is below one
    lr_scaling: str = one_of("none", "d_in", default="none")
    beta1: float = between(0, 1, "[)")  # decay of the mean gradient
    beta2: float = between(0, 1, "[)")  # decay of its mean square
    eps: float = positive()  # added to the root of that
    warmup_steps: int = not_negative()  # steps over which the rate rises
    schedule: str = one_of("constant", "linear", "cosine", default="constant")  # how the rate ends
    decay_fraction: float = between(0, 1, "(]", default=0.2)  # of the training, in which it falls


@dataclass
class SAETrainingConfig(Checked, section="training"):
    """How long and in what pieces dictionaries are trained."""

    n_activations: int = positive()  # rows seen in all
    batch_size: int = positive()  # rows in one optimiser step
    eval_rows: int = positive()  # the last rows, kept for the final numbers
    l1_warmup_steps: int = not_negative()  # steps over which l1 rises
    dead_window: int = positive()  # rows, none of which activates an inactive feature
    snapshots: int = not_negative()  # decoders kept: at the end, half of it ...
    log_every: int = positive()  # optimiser steps between logged values
    checkpoint_every: int = positive()  # optimiser steps between checkpoints
    rows: str = one_of("all", "half_a", "half_b", "bootstrap", default="all")  # which rows are seen
    rows_seed: int = not_negative(0)  # of the split into halves, or of the bootstrap


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
            raise UserError(f"model.d_model must be a multiple of model.n_heads, {self.n_heads}")


@dataclass
class AdamWConfig(Checked, section="optimizer"):
    """AdamW with linear warm-up and cosine decay, for the language model."""

    lr: float = positive()  # the highest learning rate
    min_lr_ratio: float = not_negative()  # at the end, as a share of lr
    beta1: float = MISSING  # decay of the mean gradient
    beta2: float = MISSING  # decay of its mean square
    weight_decay: float = not_negative()  # on matrices only
    warmup_fraction: float = not_negative()  # share of the run spent in warm-up
    grad_clip: float = not_negative()  # global norm; 0 turns clipping off
    cosine_runs: float = positive(1.0)  # length of the cosine, in runs


@dataclass
class MuonConfig(AdamWConfig):
    """Muon on the blocks' matrices, AdamW on embeddings, positions and norms."""

    hidden_lr: float = positive()  # Muon's learning rate; `lr` is AdamW's
    momentum: float = between(0, 1, "[)")  # of the matrices' gradients


@dataclass
class LMTrainingConfig(Checked, section="training"):
    """How long and in what pieces the language model is trained."""

    n_tokens: int = positive()  # tokens seen in all
    batch_size: int = positive()  # sequences of n_ctx tokens in one forward pass
    accumulate: int = positive()  # forward passes in one optimiser step
    precision: str = one_of("fp32", "bf16")  # of products
    eval_every: int = positive()  # steps between validation losses
    eval_tokens: int = positive()  # validation tokens in one estimate
    checkpoint_every: int = positive()  # optimiser steps between checkpoints
    log_every: int = positive()  # optimiser steps between logged values


@dataclass
class StudyLM:
    """The language model that train_lm.py has put into lm_dir."""


@dataclass
class HFModel(Checked, section="lm"):
    """A causal language model of the transformers library, with its own tokenizer."""

    name_or_path: str = MISSING  # a folder, or a name on the hub
    revision: str | None = MISSING  # branch or commit; null: the main branch
    n_ctx: int = positive()  # tokens of text in one context
    dtype: str = one_of("float32", "bfloat16", "float16")  # of the model
    bos: bool | None = None  # whether a token begins each context; null: as its tokenizer does


@dataclass
class HarvestConfig(Checked, section="harvest"):
    """Which activations are written, how many, and how."""

    layer: int = not_negative()  # counted from zero
    site: str = MISSING  # a short name (sparse_dict/config/sites.py), or with lm=hf a module's path
    n_tokens: int = positive()  # rows to write; the corpus may hold fewer
    split: str = one_of("validation", "train", "all")  # part of the corpus
    batch_size: int = positive()  # sequences of n_ctx tokens in one forward pass
    shard_rows: int = positive()  # rows in a file
    dtype: str = one_of("float16", "float32")  # of the rows on disk
    sites: list[str] | None = None  # LAYER/SITE or modules' paths, side by side
    skip_first: int = not_negative(0)  # positions at each context's start: attention sinks

    def __post_init__(self) -> None:
        super().__post_init__()
        places = self.places()
        if not places or len(set(places)) < len(places):
            raise UserError(f"harvest.sites must name sites, each once, not {self.sites}")

    def places(self) -> list[Site]:
        """The sites in the order in which a row holds them."""
        if self.sites is None:
            return [parse(self.site, self.layer, "harvest.site")]
        return [parse(text, None, "harvest.sites") for text in self.sites]


@dataclass
class ActivationsConfig(Checked, section="activations"):
    """How a dictionary sees the activations."""

    scaling: str = one_of("rms", "rms_by_site", "none")  # what they are divided by
    # auto: the mean row is subtracted if it is large
    centering: str = one_of("auto", "mean", "none", default="none")


@dataclass
class TrackingConfig(Checked, section="tracking"):
    """Weights & Biases."""

    # auto: online if the server answers
    mode: str = one_of("auto", "online", "offline", "disabled")
    project: str = MISSING  # to which the runs belong
    entity: str | None = MISSING  # user or team; null: the key's own
    tags: list[str] = MISSING  # of every run
    label: str | None = None  # of a dictionary's run; null: what varies
    job_type: str | None = None  # of the runs; null: the stage
    upload: str = one_of("none", "weights", default="none")  # weights: dictionaries are sent


@dataclass
class StudyConfig(Checked):
    """What all four stages share."""

    name: str = MISSING  # of the study
    study_dir: str = MISSING  # of all that is made
    device: str = MISSING  # auto (all GPUs, or else the CPU), cpu, cuda or cuda:1
    seed: int = not_negative()  # of all that is drawn
    tracking: TrackingConfig = MISSING

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.name).name != self.name or self.name[:1] in ("", ".") or not (
            self.name.isprintable() and len(self.name.encode()) <= NAME_BYTES
        ):  # fmt: skip
            raise UserError(f"name must be a plain folder name, not {self.name!r}")


@dataclass
class TrainLMConfig(StudyConfig):
    """Stage 1."""

    lm_dir: str = MISSING  # of the language model
    cache_dir: str = MISSING  # of texts and tokens, shared by all studies
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
        _folders("activations_dir", self.activations_dir)

    @property
    def activations_dirs(self) -> list[Path]:
        return _folders("activations_dir", self.activations_dir)


def _folders(key: str, given: Any) -> list[Path]:
    named = given if isinstance(given, list) else [given]
    if not named or not all(isinstance(folder, str) for folder in named):
        raise UserError(f"{key} must be a folder, or a list of them, not {given!r}")
    return [Path(folder) for folder in named]


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
        _folders("sae_dir", self.sae_dir)
        _folders("activations_dir", self.activations_dir)

    @property
    def sae_dirs(self) -> list[Path]:
        return _folders("sae_dir", self.sae_dir)

    @property
    def activations_dirs(self) -> list[Path]:
        return _folders("activations_dir", self.activations_dir)

    def is_on(self, name: str) -> bool:
        return getattr(self, name) is not None

    def settings(self, kind: type[Settings]) -> Settings | None:
        """The settings of the analysis whose settings are of this type; None if it is off."""
        (name,) = (name for name, settings in ANALYSES.items() if settings is kind)
        return getattr(self, name)


def analyze_schema() -> type[AnalyzeConfig]:
    """`AnalyzeConfig` with a section for each of ANALYSES, None where it was not chosen."""
    sections = [(name, kind | None, None) for name, kind in ANALYSES.items()]
    return make_dataclass("AnalyzeConfig", sections, bases=(AnalyzeConfig,))
