"""The folder of a language model, as stage 1 writes it."""

from pathlib import Path

from safetensors.torch import save_file

from sparse_dict.config import ModelConfig
from sparse_dict.lm import folder
from sparse_dict.lm.model import GPT
from sparse_dict.storage import files
from sparse_dict.text.tokenizer import Tokenizer


def write_model(
    lm_dir: Path, model: GPT, config: ModelConfig, tokenizer: Tokenizer
) -> dict[str, str]:
    """A record as short as may be; returns its fingerprints."""
    tokenizer.save(lm_dir / "tokenizer")
    save_file(model.state_dict(), lm_dir / "model.safetensors")
    fingerprints = {
        "model": folder.fingerprint(lm_dir / "model.safetensors"),
        "tokenizer": tokenizer.fingerprint,
        "corpus": "c",
    }
    record = {
        "format_version": 1, "n_vocab": tokenizer.n_vocab, "corpus": {},
        "config": {"model": vars(config)}, "fingerprints": fingerprints,
    }  # fmt: skip
    files.write_json(lm_dir / "lm.json", record)
    return fingerprints
