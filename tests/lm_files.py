"""A language model, its text and its harvest, as the stages write them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from sparse_dict.activations.harvest import harvest
from sparse_dict.activations.writer import ShardWriter
from sparse_dict.config import FilesData, HarvestConfig, ModelConfig
from sparse_dict.lm import folder as lm_folder
from sparse_dict.lm.model import GPT
from sparse_dict.storage import files
from sparse_dict.text import tokens
from sparse_dict.text.tokenizer import Tokenizer
from sparse_dict.tracking import Run


def write_model(
    lm_dir: Path, model: GPT, config: ModelConfig, tokenizer: Tokenizer
) -> dict[str, str]:
    """A record as short as may be; returns its fingerprints."""
    tokenizer.save(lm_dir / "tokenizer")
    save_file(model.state_dict(), lm_dir / "model.safetensors")
    fingerprints = {
        "model": lm_folder.fingerprint(lm_dir / "model.safetensors"),
        "tokenizer": tokenizer.fingerprint,
        "corpus": "c",
    }
    record = {
        "format_version": 1, "n_vocab": tokenizer.n_vocab, "corpus": {},
        "config": {"model": vars(config)}, "fingerprints": fingerprints,
    }  # fmt: skip
    files.write_json(lm_dir / "lm.json", record)
    return fingerprints


def random_model(config: ModelConfig, n_vocab: int) -> GPT:
    """One whose values differ well beyond rounding, and matter for its loss."""
    torch.manual_seed(0)
    model = GPT(config, n_vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model.eval()


def write_text_and_model(
    base: Path, lines: Sequence[str], config: ModelConfig, *merged: bytes
) -> dict[str, str]:
    """Tokens of a document a line, 30 % held out, and a random model; returns its fingerprints."""
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (base / "text.jsonl").write_text(text)
    ranks = {bytes([i]): i for i in range(256)} | {pair: 256 + i for i, pair in enumerate(merged)}
    tokenizer = Tokenizer("bytes", ranks)
    tokens.prepare(FilesData(0.3, str(base / "text.jsonl"), "text"), tokenizer, base / "cache")
    return write_model(base / "lm", random_model(config, tokenizer.n_vocab), config, tokenizer)


def write_harvest(
    base: Path, folder: Path, prints: dict[str, str], layer: int, rows: int | None = None,
    skip_first: int = 0, **more: str,
) -> dict[str, str]:  # fmt: skip
    """Rows of the held-out text of `base`, all or some, in `folder`; returns their fingerprint.

    `more` stands in their manifest.
    """
    (path,) = (base / "cache" / "tokens").iterdir()
    store, opened = tokens.TokenStore.open(path), lm_folder.load(base / "lm")
    stream, shape = store.split("validation"), opened.config
    rows = rows or len(stream) // shape.n_ctx * (shape.n_ctx - skip_first)
    config = HarvestConfig(
        layer, "mlp_post", rows, "validation", 8, 1000, "float32", skip_first=skip_first
    )
    writer = ShardWriter(folder / "activations", rows, shape.d_mlp, 1000, "float32", seed=0)
    harvest(opened.model, stream, config, shape.n_ctx, writer, Run(None, False, folder))
    fields = {
        "layer": layer, "site": "mlp_post", "corpus": store.manifest["corpus"], **more,
        "config": {"data": {"val_fraction": 0.3}, "harvest": vars(config)},
    }  # fmt: skip
    writer.finish(fields, prints)
    manifest = files.read_json(folder / "activations" / "manifest.json")
    return {"activations": manifest["fingerprints"]["activations"]}
