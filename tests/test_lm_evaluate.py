"""The loss of a language model on other text."""

import json
import math
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from sparse_dict.config import BPETokenizer, FilesData, ModelConfig
from sparse_dict.errors import UserError
from sparse_dict.lm import evaluate, folder
from sparse_dict.lm.model import GPT
from sparse_dict.text import tokenizer

SHAPE = ModelConfig(n_layers=1, n_heads=2, d_model=8, d_mlp=16, n_ctx=8)
TEXTS = [f"{i} alpha béta {'gamma delta ' * (i % 7)}epsilon {i * i}." for i in range(120)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def lm(text):
    torch.manual_seed(0)
    data = FilesData(0.5, str(text), "body")
    ranks = tokenizer.build(BPETokenizer(300, 10**6), data, text.parent / "cache")
    record = {"config": {"model": asdict(SHAPE)}}
    return folder.LoadedLM(GPT(SHAPE, ranks.n_vocab).eval(), ranks, record)


def test_the_loss_is_the_mean_cross_entropy_of_the_documents_one_after_another(lm, text):
    found = evaluate.on_files(lm, [str(text)], "body")
    ids = np.concatenate([[*ids, lm.tokenizer.eot] for ids in lm.tokenizer.encode_batch(TEXTS)])
    ids = torch.from_numpy(ids.astype(np.int64))
    n = (len(ids) - 1) // 128 * 128
    tokens, targets = ids[:n].view(-1, 8), ids[1 : n + 1].view(-1, 8)
    logits = lm.model.hidden(tokens) @ lm.model.embed.weight.T
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none"
    )
    blocks = losses.view(-1, 128).mean(1)
    assert found.tokens == n
    assert found.loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found.error == pytest.approx(blocks.std().item() / len(blocks) ** 0.5, rel=1e-3)
    n_bytes = sum(len(text.encode()) for text in TEXTS)
    whole = found.loss * len(ids) / math.log(2) / n_bytes
    assert found.bits_per_byte == pytest.approx(whole, rel=0.02)


def test_too_little_text_is_named(lm, tmp_path):
    (tmp_path / "short.txt").write_text("alpha")
    with pytest.raises(UserError, match=r"short\.txt: fewer than 257 tokens"):
        evaluate.on_files(lm, [str(tmp_path / "short.txt")])


def test_a_missing_language_model_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sparse_dict.lm.evaluate", str(tmp_path), "x.txt"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"{tmp_path} holds no language model (lm.json): run train_lm.py first"
    ]
