"""Where the text comes from, and how it becomes tokens."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from sparse_dict.config.ranges import one_of, positive
from sparse_dict.errors import UserError


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
        positive(self, "data", "d_in", "n_features", "n_active", "decay")
        one_of(self, "data", "value", "uniform", "product")
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
        positive(self, "tokenizer", "train_chars")
