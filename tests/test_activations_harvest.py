import math

import numpy as np
import pytest
import torch

from sparse_dict.activations.harvest import harvest
from sparse_dict.activations.store import Activations, ShardWriter
from sparse_dict.config import HarvestConfig, ModelConfig
from sparse_dict.lm.model import GPT
from sparse_dict.text.tokens import TokenStream
from sparse_dict.tracking import Run

N_VOCAB = 29
N_CTX = 16
MODEL = ModelConfig(n_layers=3, n_heads=2, d_model=8, d_mlp=12, n_ctx=N_CTX)
ROWS = 40 * N_CTX


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT(MODEL, N_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # so that the values differ well beyond rounding
    return model


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *rng.integers(3, 40, size=60)])
    tokens = rng.integers(N_VOCAB, size=int(starts[-1])).astype(np.uint16)
    return TokenStream([tokens[:500], tokens[500:]], starts[:-1], 1)


def harvested(folder, model, stream, batch_size=7, layer=1):
    config = HarvestConfig(layer, "mlp_post", ROWS, "validation", batch_size, 200, "float32")
    writer = ShardWriter(folder, ROWS, MODEL.d_mlp, config.shard_rows, config.dtype, seed=0)
    harvest(model, stream, config, N_CTX, writer, Run(None, False, folder))
    writer.finish({}, {})
    return Activations.open(folder)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_row_is_what_the_full_model_computes_at_its_origin(tmp_path, model, stream, layer):
    found = harvested(tmp_path, model, stream, layer=layer)
    seen = []
    hook = model.blocks[layer].mlp_in.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        for start in range(0, ROWS, N_CTX):  # one context at a time, through all layers
            model.hidden(torch.from_numpy(stream.window(start, N_CTX))[None])
    hook.remove()
    x = torch.cat(seen, 1)[0].double()
    naive = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    document, position, token = found.origins(0, ROWS).T
    place = stream._document_starts[document] + position  # in the stream
    assert sorted(place) == list(range(ROWS))
    assert (stream.window(0, ROWS)[place] == token).all()
    np.testing.assert_allclose(found.read(0, ROWS), naive.numpy()[place], rtol=1e-4, atol=1e-5)


def test_a_harvest_killed_in_the_middle_is_repeated_to_the_same_bytes(tmp_path, model, stream):
    harvested(tmp_path / "whole", model, stream)

    class Dying(TokenStream):
        def window(self, start, length):
            if start > ROWS // 2:
                raise KeyboardInterrupt
            return stream.window(start, length)

        def origins(self, start, length):
            return stream.origins(start, length)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        harvested(broken, model, Dying([], np.array([0]), 1))
    assert list((broken / "partial").iterdir())
    assert not (broken / "manifest.json").exists()
    harvested(broken, model, stream)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in broken.iterdir()) == names
    for name in names:
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_the_batch_size_does_not_change_which_rows_are_taken(tmp_path, model, stream):
    one = harvested(tmp_path / "1", model, stream, batch_size=1)
    many = harvested(tmp_path / "64", model, stream, batch_size=64)
    by_place = []
    for found in (one, many):
        document, position, _ = found.origins(0, ROWS).T
        order = np.argsort(stream._document_starts[document] + position)
        by_place.append(found.read(0, ROWS)[order])
    np.testing.assert_allclose(by_place[0], by_place[1], rtol=1e-4, atol=1e-5)
