import math
import tracemalloc

import pytest
import torch
import torch.nn.functional as F
from rounding import assert_rounded, through
from safetensors.torch import save_file

from sparse_dict.config import ModelConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm import folder
from sparse_dict.lm.model import GPT
from sparse_dict.storage import files

CONFIG = ModelConfig(n_layers=3, n_heads=2, d_model=8, d_mlp=20, n_ctx=16)
N_VOCAB = 37
TERMS = through(CONFIG, N_VOCAB)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT(CONFIG, N_VOCAB)


@pytest.fixture
def tokens():
    return torch.randint(N_VOCAB, (4, 16), generator=torch.Generator().manual_seed(1))


def test_there_are_no_biases_and_the_embedding_is_tied(model):
    per_block = 8 * 3 * 8 + 8 * 8 + 2 * 8 * 20 + 2 * 8
    assert sum(p.numel() for p in model.parameters()) == (N_VOCAB + 16) * 8 + 3 * per_block + 8
    assert not [name for name, _ in model.named_parameters() if "bias" in name]


def test_initial_values_are_gpt2s():
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layers=8, n_heads=2, d_model=64, d_mlp=256, n_ctx=64), 500)
    block = model.blocks[3]
    for weight in (model.embed.weight, model.positions.weight, block.qkv.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    for weight in (block.attn_out.weight, block.mlp_out.weight):
        assert weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)


def test_a_position_sees_no_later_token(model, tokens):
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % N_VOCAB
    before, after = model.hidden(tokens), model.hidden(changed)
    assert_rounded(before[:, :9], after[:, :9], TERMS)
    assert not torch.isclose(before[:, 9:], after[:, 9:]).all(-1).any()


def test_the_order_of_earlier_tokens_matters(model, tokens):
    swapped = tokens.clone()
    swapped[:, [0, 1]] = tokens[:, [1, 0]]
    assert (model.hidden(tokens)[:, 8] - model.hidden(swapped)[:, 8]).abs().max() > 1e-6


def test_the_loss_is_the_cross_entropy_of_the_tied_unembedding(model, tokens):
    targets = tokens.roll(-1, 1)
    logits = model.hidden(tokens) @ model.embed.weight.T
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert_rounded(model.loss(tokens, targets), expected, TERMS + tokens.numel())


def test_an_unknown_site_is_refused(model, tokens):
    for site in (Site("resid", 0), Site("mlp_post", 3), Site("blocks.0.norm_1")):
        with pytest.raises(UserError, match="is not a site"):
            model.read(tokens, [site])


@pytest.mark.parametrize(
    "claim", [{"n_layers": 10**6}, {"d_mlp": 10**12}, {"n_ctx": 10**12}, {"n_vocab": 10**12}]
)
def test_a_record_that_claims_a_larger_model_is_refused_before_that_is_made(tmp_path, model, claim):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    shape = vars(CONFIG) | claim
    prints = {"model": folder.fingerprint(tmp_path / "model.safetensors")}
    record = {
        "format_version": 1, "n_vocab": shape.pop("n_vocab", N_VOCAB), "corpus": {},
        "config": {"model": shape}, "fingerprints": prints | {"tokenizer": "t", "corpus": "c"},
    }  # fmt: skip
    files.write_json(tmp_path / "lm.json", record)
    tracemalloc.start()
    with pytest.raises(UserError, match="safetensors cannot be loaded"):
        folder.load(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**20
