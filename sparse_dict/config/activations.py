"""Which model's activations are written, at which sites, and how a dictionary sees them."""

from dataclasses import dataclass

from omegaconf import MISSING

from sparse_dict.config.ranges import Checked, not_negative, one_of, positive
from sparse_dict.config.sites import Site, parse
from sparse_dict.errors import UserError


@dataclass
class StudyLM:
    """The language model that train_lm.py has put into lm_dir."""


@dataclass
class HFModel(Checked, section="lm"):
    """A causal language model of the transformers library, with its own tokenizer."""

    name_or_path: str = MISSING  # a folder, or a name on the Hugging Face hub
    revision: str | None = MISSING  # branch or commit; null: the main branch
    n_ctx: int = positive()  # tokens of text in one context
    dtype: str = one_of("float32", "bfloat16", "float16")  # what the model computes in
    # whether each context begins with the token that begins a text, which has no row; null: if the
    # model's tokenizer puts one there
    bos: bool | None = None


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
    # LAYER/SITE or modules' paths, side by side in one row; null: layer and site alone
    sites: list[str] | None = None
    skip_first: int = not_negative(0)  # positions at each context's start: attention sinks

    def __post_init__(self) -> None:
        super().__post_init__()
        places = self.places()
        if not places or len(set(places)) < len(places):
            raise UserError(
                f"harvest.sites must name one site or more, each once, not {self.sites}"
            )

    def places(self) -> list[Site]:
        """The sites in the order in which a row holds them."""
        if self.sites is None:
            return [parse(self.site, self.layer, "harvest.site")]
        return [parse(text, None, "harvest.sites") for text in self.sites]


@dataclass
class ActivationsConfig(Checked, section="activations"):
    """How a dictionary sees the activations."""

    # what they are divided by, so that their mean square is one: rms, one number; rms_by_site, one
    # for each of several sites; none
    scaling: str = one_of("rms", "rms_by_site", "none")
    # whether the mean row is subtracted first; auto: if it is large against the spread
    centering: str = one_of("auto", "mean", "none", default="none")
