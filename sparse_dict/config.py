"""The schema of every stage's config: names, types and ranges.

The values live in ``conf/*.yaml``; a field here without a default must be set there. A misspelt
key or a wrong type ends at compose time; ranges are checked in ``__post_init__``, which
`OmegaConf.to_object` runs before a stage writes anything.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from sparse_dict.errors import UserError
from sparse_dict.sites import Site, parse

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"


def _positive(config: Any, section: str, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise UserError(f"{section}.{name} must be positive, not {getattr(config, name)}")


def _not_negative(config: Any, section: str, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 0:
            raise UserError(f"{section}.{name} must not be negative, not {getattr(config, name)}")


def _one_of(config: Any, section: str, name: str, *choices: str) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise UserError(f"{section}.{name} must be one of {', '.join(choices)}, not {value!r}")


# --- text -----------------------------------------------------------------------------------------


@dataclass
class DataConfig:
    """What every corpus has: the share of its documents held out for validation and harvest."""

    val_fraction: float = MISSING

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.val_fraction must lie in (0, 1), not {self.val_fraction}")


@dataclass
class DocstringsData(DataConfig):
    """Docstrings of installed libraries."""

    packages: list[str] | None = MISSING  # import names; null takes every installed library
    min_chars: int = MISSING  # shorter docstrings are left out


@dataclass
class FilesData(DataConfig):
    """Local txt, jsonl or parquet files."""

    files: Any = MISSING  # a path or glob, or a list of them
    text_column: str = MISSING  # the column or JSON key that holds the text


@dataclass
class HubData(DataConfig):
    """A data set of the Hugging Face hub."""

    path: str = MISSING
    name: str | None = MISSING
    revision: str | None = MISSING
    split: str = MISSING
    streaming: bool = MISSING
    text_column: str = MISSING
    max_documents: int | None = MISSING  # null takes all


@dataclass
class ToyData:
    """Synthetic activations whose features are known, in place of a text and a language model."""

    d_in: int = MISSING
    n_features: int = MISSING
    n_active: float = MISSING  # features active in a row, mean
    decay: float = MISSING  # a feature's probability as a share of the one before it
    correlated: bool = MISSING  # whether features are active together
    value: str = MISSING  # of an active feature; uniform: U(0, 1) | product: of two such

    def __post_init__(self) -> None:
        _positive(self, "data", "d_in", "n_features", "n_active", "decay")
        _one_of(self, "data", "value", "uniform", "product")
        if self.decay > 1:
            raise UserError(f"data.decay must be at most 1, not {self.decay}")
        most = self.n_active / sum(self.decay**i for i in range(self.n_features))
        if most >= 1:
            raise UserError(
                f"data.n_active={self.n_active} would make the first feature active with "
                f"probability {most:.2f}: take fewer, more n_features or a larger decay"
            )


@dataclass
class GPT2Tokenizer:
    """GPT-2's byte-pair vocabulary, through tiktoken."""

    kind: str = "gpt2"


@dataclass
class BPETokenizer:
    """A byte-pair vocabulary trained on the corpus."""

    vocab_size: int = MISSING  # ids in all: bytes, merges and the end-of-text token
    train_chars: int = MISSING  # characters of the corpus that the trainer sees
    kind: str = "bpe"

    def __post_init__(self) -> None:
        if self.vocab_size < 258:
            raise UserError(
                "tokenizer.vocab_size must be at least 258 (256 bytes, one merge, end of text), "
                f"not {self.vocab_size}"
            )
        _positive(self, "tokenizer", "train_chars")


# --- language model -------------------------------------------------------------------------------


@dataclass
class ModelConfig:
    """A GPT in the nanoGPT manner."""

    n_layers: int = MISSING
    n_heads: int = MISSING
    d_model: int = MISSING
    d_mlp: int = MISSING
    n_ctx: int = MISSING  # tokens in one context

    def __post_init__(self) -> None:
        _positive(self, "model", "n_layers", "n_heads", "d_model", "d_mlp", "n_ctx")
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

    def __post_init__(self) -> None:
        _positive(self, "optimizer", "lr")
        _not_negative(
            self, "optimizer", "min_lr_ratio", "weight_decay", "grad_clip", "warmup_fraction"
        )


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
        _positive(
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
        _one_of(self, "training", "precision", "fp32", "bf16")


# --- activations ----------------------------------------------------------------------------------


@dataclass
class StudyLM:
    """The language model that train_lm.py has put into lm_dir."""


@dataclass
class HFModel:
    """A causal language model of the transformers library, with its own tokenizer."""

    name_or_path: str = MISSING  # a folder, or a name on the Hugging Face hub
    revision: str | None = MISSING
    n_ctx: int = MISSING  # tokens in one context
    dtype: str = MISSING  # float32 | bfloat16 | float16: what the model computes in

    def __post_init__(self) -> None:
        _positive(self, "lm", "n_ctx")
        _one_of(self, "lm", "dtype", "float32", "bfloat16", "float16")


@dataclass
class HarvestConfig:
    """Which activations are written, how many, and how."""

    layer: int = MISSING  # counted from zero
    site: str = MISSING  # a short name (sparse_dict/sites.py), or with lm=hf a module's path
    n_tokens: int = MISSING  # rows to write; the corpus may hold fewer
    split: str = MISSING  # which part of the corpus: validation | train | all
    batch_size: int = MISSING  # sequences of n_ctx tokens in one forward pass
    shard_rows: int = MISSING
    dtype: str = MISSING  # float16 | float32
    # LAYER/SITE or modules' paths, side by side in one row; null: layer and site alone
    sites: list[str] | None = None
    skip_first: int = 0  # positions left out at the start of each context: attention sinks

    def __post_init__(self) -> None:
        _not_negative(self, "harvest", "layer", "skip_first")
        _positive(self, "harvest", "n_tokens", "batch_size", "shard_rows")
        places = self.places()
        if not places or len(set(places)) < len(places):
            raise UserError(
                f"harvest.sites must name one site or more, each once, not {self.sites}"
            )
        _one_of(self, "harvest", "split", "validation", "train", "all")
        _one_of(self, "harvest", "dtype", "float16", "float32")

    def places(self) -> list[Site]:
        """The sites in the order in which a row holds them."""
        if self.sites is None:
            return [parse(self.site, self.layer, "harvest.site")]
        return [parse(text, None, "harvest.sites") for text in self.sites]


@dataclass
class ActivationsConfig:
    """How a dictionary sees the activations."""

    scaling: str = MISSING  # rms: divide by their root mean square | none

    def __post_init__(self) -> None:
        _one_of(self, "activations", "scaling", "rms", "none")


# --- sparse autoencoders --------------------------------------------------------------------------


@dataclass
class SAEConfig:
    """One dictionary: its shape and its loss."""

    dict_size: int = MISSING
    activation: str = MISSING  # relu | topk | batch_topk | jumprelu
    tied: bool = MISSING  # encoder = decoder transposed
    init: str = MISSING  # independent | aligned: whether the encoder starts as the decoder
    l1: float = MISSING  # coefficient of the L1 penalty
    l1_scaling: str = MISSING  # none | dict_size: divide l1 by the dictionary's size
    k: int = MISSING  # topk, batch_topk: active features a row
    l0: float = MISSING  # jumprelu: coefficient of the number of active features
    threshold: float = MISSING  # jumprelu: its thresholds' first value
    bandwidth: float = MISSING  # jumprelu: width of the kernel that moves thresholds
    dead: str = MISSING  # none | resample | auxk: what is done about dead features
    resample_every: int = MISSING  # resample: optimiser steps between resamplings
    aux_k: int = MISSING  # auxk: dead features that model the residual of a row
    aux_coefficient: float = MISSING  # auxk: weight of that loss
    strategy: str = MISSING  # plain | freeze_perturb
    freeze_above: float = MISSING  # freeze_perturb: MCS with the companion above which to freeze
    perturb_every: int = MISSING  # freeze_perturb: optimiser steps between perturbations
    perturb_noise: float = MISSING  # freeze_perturb: length of the noise added to unit rows
    perturb_share: float = MISSING  # freeze_perturb: share of the training in which it is done
    precision: str = MISSING  # fp32 | bf16: of the encoder's product
    project_gradient: bool = MISSING  # drop the decoder gradient's part along its unit rows

    def __post_init__(self) -> None:
        _positive(
            self,
            "sae",
            "dict_size",
            "k",
            "threshold",
            "bandwidth",
            "resample_every",
            "aux_k",
            "perturb_every",
        )
        _not_negative(self, "sae", "l1", "l0", "aux_coefficient", "perturb_noise", "perturb_share")
        _one_of(self, "sae", "init", "independent", "aligned")
        _one_of(self, "sae", "strategy", "plain", "freeze_perturb")
        _one_of(self, "sae", "activation", "relu", "topk", "batch_topk", "jumprelu")
        _one_of(self, "sae", "l1_scaling", "none", "dict_size")
        _one_of(self, "sae", "dead", "none", "resample", "auxk")
        _one_of(self, "sae", "precision", "fp32", "bf16")
        if self.activation in ("topk", "batch_topk") and self.k > self.dict_size:
            raise UserError(f"sae.k ({self.k}) is larger than sae.dict_size ({self.dict_size})")
        if self.strategy == "freeze_perturb" and self.precision == "bf16":
            raise UserError("sae.strategy=freeze_perturb needs sae.precision=fp32")
        if self.activation == "jumprelu" and self.bandwidth > 2 * self.threshold:
            raise UserError(
                f"sae.bandwidth ({self.bandwidth}) must be at most twice sae.threshold "
                f"({self.threshold}): the kernel would reach below zero"
            )


@dataclass
class AdamConfig:
    """Adam with a constant learning rate after a linear warm-up, for dictionaries."""

    lr: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    eps: float = MISSING
    warmup_steps: int = MISSING

    def __post_init__(self) -> None:
        _positive(self, "optimizer", "lr", "eps")
        _not_negative(self, "optimizer", "beta1", "beta2", "warmup_steps")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise UserError(f"optimizer.{name} must be below 1, not {getattr(self, name)}")


@dataclass
class SAETrainingConfig:
    """How long and in what pieces dictionaries are trained."""

    n_activations: int = MISSING  # rows seen in all; more than there are means several passes
    batch_size: int = MISSING  # rows in one optimiser step
    eval_rows: int = MISSING  # rows at the end of the harvest, kept for the final numbers
    l1_warmup_steps: int = MISSING  # optimiser steps over which l1 rises from zero
    dead_window: int = MISSING  # a feature is dead if not active on this many rows seen last
    snapshots: int = MISSING  # decoders kept at the end, half, a quarter ... of the training
    log_every: int = MISSING  # optimiser steps between logged values
    checkpoint_every: int = MISSING  # optimiser steps between checkpoints

    def __post_init__(self) -> None:
        _positive(
            self,
            "training",
            "n_activations",
            "batch_size",
            "eval_rows",
            "dead_window",
            "log_every",
            "checkpoint_every",
        )
        _not_negative(self, "training", "l1_warmup_steps", "snapshots")


# --- analysis -------------------------------------------------------------------------------------


ANALYSIS_PARTS = (
    "claims", "heatmap", "histograms", "agreement", "families", "ridge", "undertraining",
    "sparsity", "frontier", "baselines", "loss_recovered", "truth", "contexts", "interp",
)  # fmt: skip
BASELINES = ("neurons", "random", "pca", "ica", "nmf")


@dataclass
class AnalysisConfig:
    """How dictionaries are compared and what is shown."""

    matching: str = MISSING  # max | hungarian: how a feature finds its partner
    against: str = MISSING  # next | next_two | all_larger: which dictionaries it is sought in
    features: str = MISSING  # all | alive: which features count
    threshold: float = MISSING  # an MCS above it is called high
    block_rows: int = MISSING  # features compared at a time; bounds the memory
    match_limit: int = MISSING  # dictionaries of different seeds above this size are not matched
    parts: list[str] = MISSING  # what is analysed, among ANALYSIS_PARTS

    def __post_init__(self) -> None:
        _one_of(self, "analysis", "matching", "max", "hungarian")
        _one_of(self, "analysis", "against", "next", "next_two", "all_larger")
        _one_of(self, "analysis", "features", "all", "alive")
        _positive(self, "analysis", "block_rows", "match_limit")
        for part in self.parts:
            if part not in ANALYSIS_PARTS:
                raise UserError(
                    f"analysis.parts may hold {', '.join(ANALYSIS_PARTS)}, not {part!r}"
                )
        if not -1 <= self.threshold <= 1:
            raise UserError(f"analysis.threshold is a cosine in [-1, 1], not {self.threshold}")


@dataclass
class BaselinesConfig:
    """Simpler bases that dictionaries are measured against, and the loss behind either."""

    methods: list[str] = MISSING  # among BASELINES
    rows: int = MISSING  # to fit, one half and then the other; as many as a half are measured
    ks: list[int] = MISSING  # codes kept in a row: the points of a baseline's curves
    loss_tokens: int = MISSING  # held-out text on which the language model's loss is taken

    def __post_init__(self) -> None:
        _positive(self, "baselines", "rows", "loss_tokens")
        for method in self.methods:
            if method not in BASELINES:
                raise UserError(
                    f"baselines.methods may hold {', '.join(BASELINES)}, not {method!r}"
                )
        if not self.ks or min(self.ks) < 1:
            raise UserError(f"baselines.ks must be positive numbers, not {self.ks}")


@dataclass
class ContextsConfig:
    """Which features are shown with the text that they are active on, and how much of it."""

    # null: some of each kind. Or a list of NAME/INDEX, where NAME is a dictionary's folder, a size
    # in the main chain, or "neuron".
    features: list[str] | None = MISSING
    per_group: int = MISSING  # of each dictionary: top MCS, low MCS, random, outliers, dead
    n_tokens: int = MISSING  # of the harvested text, read again to find contexts
    top: int = MISSING  # contexts with the highest activations
    spread: int = MISSING  # contexts at evenly spaced quantiles of the activations
    width: int = MISSING  # tokens shown on either side

    def __post_init__(self) -> None:
        _positive(self, "contexts", "per_group", "n_tokens", "top", "width")
        _not_negative(self, "contexts", "spread")
        for name in self.features or []:
            owner, _, index = name.rpartition("/")
            if not (owner and index.isascii() and index.isdigit()):
                raise UserError(
                    "contexts.features must hold NAME/INDEX, such as 256/3 or neuron/5, "
                    f"not {name!r}"
                )


LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass
class InterpConfig:
    """Explanations of features by a chat model, and how well they predict; null base_url: off."""

    base_url: str | None = MISSING  # an OpenAI-compatible endpoint, such as http://host:8000/v1
    model: str | None = MISSING  # as the endpoint calls it
    api_key_env: str | None = MISSING  # environment variable that holds the key; null: none is sent
    price_in: float | None = MISSING  # of a million tokens of prompt; null: 0, on this machine only
    price_out: float | None = MISSING  # of a million tokens of answer; likewise
    max_cost: float = MISSING  # never exceeded, all runs together; in the prices' currency
    per_group: int = MISSING  # features explained of each group and baseline
    baselines: list[str] = MISSING  # among BASELINES
    width: int = MISSING  # tokens of an excerpt
    examples: int = MISSING  # excerpts that an explanation is made from
    simulate: int = MISSING  # held-out excerpts simulated, half the highest and half random
    detect: int = MISSING  # held-out excerpts to tell apart, half active and half not
    parallel: int = MISSING  # requests at a time
    timeout_s: float = MISSING
    retries: int = MISSING  # of a request, when the server is busy or fails

    def __post_init__(self) -> None:
        _positive(self, "interp", "per_group", "width", "examples", "parallel", "timeout_s")
        _not_negative(self, "interp", "max_cost", "retries")
        for name in ("simulate", "detect"):
            if getattr(self, name) < 2 or getattr(self, name) % 2:
                raise UserError(f"interp.{name} must be even and positive")
        for method in self.baselines:
            if method not in BASELINES:
                raise UserError(f"interp.baselines may hold {', '.join(BASELINES)}, not {method!r}")
        if self.base_url is None:
            return
        try:
            parts = urlsplit(self.base_url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or parts.username is not None:
            raise UserError(
                f"interp.base_url must be http(s)://HOST/PATH, without a password, "
                f"not {self.base_url!r}"
            )
        if not self.model:
            raise UserError("interp.model must name the model that interp.base_url is to use")
        prices = (self.price_in, self.price_out)
        if None in prices and host not in LOOPBACK:
            raise UserError(
                "interp.price_in and interp.price_out must be given for a server elsewhere, "
                "or the cap could not hold; 0 if it is free"
            )
        if any(not price >= 0 for price in prices if price is not None):
            raise UserError("interp.price_in and interp.price_out must not be negative")
        if any(prices) and not self.max_cost > 0:
            raise UserError("interp.max_cost must be positive where tokens have a price")


# --- all stages -----------------------------------------------------------------------------------


@dataclass
class TrackingConfig:
    """Weights & Biases."""

    mode: str = MISSING  # auto | online | offline | disabled
    project: str = MISSING
    entity: str | None = MISSING
    tags: list[str] = MISSING

    def __post_init__(self) -> None:
        _one_of(self, "tracking", "mode", "auto", "online", "offline", "disabled")


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
    optimizer: AdamWConfig = MISSING
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
    analysis: AnalysisConfig = MISSING
    baselines: BaselinesConfig = MISSING
    contexts: ContextsConfig = MISSING
    interp: InterpConfig = MISSING


def _choices(group: str, *left_out: str) -> str:
    """The choices of a config group as a line of ``--help``."""
    files = (CONF_DIR / group).glob("*.yaml")
    names = sorted(file.stem for file in files if file.stem not in left_out)
    shown = "experiment" if group.endswith("/experiment") else group
    return f"  {shown}={'|'.join(names)}"


def register() -> None:
    """Make the schemas and the resolvers known to Hydra; every script does so by importing us."""
    store = ConfigStore.instance()
    for name, node in {
        "train_lm": TrainLMConfig,
        "harvest": HarvestStageConfig,
        "train_sae": TrainSAEConfig,
        "analyze": AnalyzeConfig,
        "data/docstrings": DocstringsData,
        "data/files": FilesData,
        "data/hub": HubData,
        "data/toy": ToyData,
        "tokenizer/gpt2": GPT2Tokenizer,
        "tokenizer/bpe": BPETokenizer,
        "lm/study": StudyLM,
        "lm/hf": HFModel,
    }.items():
        group, _, leaf = f"schema/{name}".rpartition("/")
        store.store(group=group, name=leaf, node=node, provider="sparse_dict")
    OmegaConf.register_new_resolver(
        "sparse_dict.conf", lambda folder: str(CONF_DIR / folder), replace=True
    )
    OmegaConf.register_new_resolver("sparse_dict.choices", _choices, replace=True)
    OmegaConf.register_new_resolver(
        "sparse_dict.if_relu",
        lambda activation, value: value if activation == "relu" else 0.0,
        replace=True,
    )
    OmegaConf.register_new_resolver(
        "sparse_dict.job_folder", lambda dirname: dirname or "default", replace=True
    )


register()
