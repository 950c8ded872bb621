"""Where the text comes from, and how it becomes tokens."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from sparse_dict.config.ranges import Checked, at_least, between, one_of, positive
from sparse_dict.errors import UserError


@dataclass
class DataConfig(Checked, section="data"):
    """What every corpus has: the share of its documents held out for validation and harvest."""

    val_fraction: float = between(0, 1)  # share of the documents that is held out


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

    path: str = MISSING  # OWNER/NAME on the hub
    name: str | None = MISSING  # a configuration of it; null: the only one
    revision: str | None = MISSING  # branch or commit; null: the main branch
    split: str = MISSING  # part of the data set
    streaming: bool = MISSING  # whether it is read as it is downloaded
    text_column: str = MISSING  # the column that holds the text
    max_documents: int | None = MISSING  # null takes all


@dataclass
class ToyData(Checked, section="data"):
    """Synthetic activations whose features are known, in place of a text and a language model."""

    d_in: int = positive()  # columns
    n_features: int = positive()  # the true ones
    n_active: float = positive()  # features active in a row, mean
    decay: float = between(0, 1, "(]")  # a feature's probability as a share of the one before it
    correlated: bool = MISSING  # whether features are active together
    value: str = one_of("uniform", "product")  # U(0, 1), or the product of two such

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.n_active / sum(self.decay**i for i in range(self.n_features))
        if most >= 1:
            raise UserError(
                f"data.n_active={self.n_active} would make the first feature active with "
                f"probability {most:.2f}: take fewer, more n_features or a larger decay"
            )


@dataclass
class GPT2Tokenizer:
    """GPT-2's byte-pair vocabulary, through tiktoken."""

    kind: str = "gpt2"  # follows from the choice


@dataclass
class BPETokenizer(Checked, section="tokenizer"):
    """A byte-pair vocabulary trained on the corpus."""

    # ids in all: bytes, merges and the end-of-text token
    vocab_size: int = at_least(258, " (256 bytes, one merge, end of text)")
    train_chars: int = positive()  # characters of the corpus that the trainer sees
    kind: str = "bpe"  # follows from the choice
