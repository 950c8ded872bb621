"""Which model's activations are written, at which sites, and how a dictionary sees them."""

from dataclasses import dataclass

from omegaconf import MISSING

from sparse_dict.config.ranges import not_negative, one_of, positive
from sparse_dict.config.sites import Site, parse
from sparse_dict.errors import UserError


@dataclass
class StudyLM:
    """The language model that train_lm.py has put into lm_dir."""


@dataclass
class HFModel:
    """A causal language model of the transformers library, with its own tokenizer."""

    name_or_path: str = MISSING  # a folder, or a name on the Hugging Face hub
    revision: str | None = MISSING
    n_ctx: int = MISSING  # tokens of text in one context
    dtype: str = MISSING  # float32 | bfloat16 | float16: what the model computes in
    # Whether each context begins with the token that begins a text, which has no row; null: if the
    # model's tokenizer puts one before a text.
    bos: bool | None = None

    def __post_init__(self) -> None:
        positive(self, "lm", "n_ctx")
        one_of(self, "lm", "dtype", "float32", "bfloat16", "float16")


@dataclass
class HarvestConfig:
    """Which activations are written, how many, and how."""

    layer: int = MISSING  # counted from zero
    site: str = MISSING  # a short name (sparse_dict/config/sites.py), or with lm=hf a module's path
    n_tokens: int = MISSING  # rows to write; the corpus may hold fewer
    split: str = MISSING  # which part of the corpus: validation | train | all
    batch_size: int = MISSING  # sequences of n_ctx tokens in one forward pass
    shard_rows: int = MISSING
    dtype: str = MISSING  # float16 | float32
    # LAYER/SITE or modules' paths, side by side in one row; null: layer and site alone
    sites: list[str] | None = None
    skip_first: int = 0  # positions left out at the start of each context: attention sinks

    def __post_init__(self) -> None:
        not_negative(self, "harvest", "layer", "skip_first")
        positive(self, "harvest", "n_tokens", "batch_size", "shard_rows")
        places = self.places()
        if not places or len(set(places)) < len(places):
            raise UserError(
                f"harvest.sites must name one site or more, each once, not {self.sites}"
            )
        one_of(self, "harvest", "split", "validation", "train", "all")
        one_of(self, "harvest", "dtype", "float16", "float32")

    def places(self) -> list[Site]:
        """The sites in the order in which a row holds them."""
        if self.sites is None:
            return [parse(self.site, self.layer, "harvest.site")]
        return [parse(text, None, "harvest.sites") for text in self.sites]


@dataclass
class ActivationsConfig:
    """How a dictionary sees the activations."""

    # What they are divided by, so that their mean square is one: rms, one number | rms_by_site, one
    # for each of several sites side by side | none
    scaling: str = MISSING
    # Whether the mean row is subtracted first: mean | none | auto, as sae/scaling.py decides. Older
    # studies, which recorded nothing, did not subtract it.
    centering: str = "none"

    def __post_init__(self) -> None:
        one_of(self, "activations", "scaling", "rms", "rms_by_site", "none")
        one_of(self, "activations", "centering", "auto", "mean", "none")
