import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import torch_threads
from rounding import assert_rounded, through

from sparse_dict.activations import pre_activations
from sparse_dict.activations.harvest import harvest, widths
from sparse_dict.activations.store import Activations
from sparse_dict.activations.writer import ShardWriter
from sparse_dict.config import HarvestConfig, ModelConfig
from sparse_dict.config.sites import SITES, Site
from sparse_dict.errors import UserError
from sparse_dict.lm.model import GPT
from sparse_dict.text.tokens import TokenStream
from sparse_dict.tools import verify
from sparse_dict.tracking import Run

N_VOCAB = 29
N_CTX = 16
MODEL = ModelConfig(n_layers=3, n_heads=2, d_model=8, d_mlp=12, n_ctx=N_CTX)
TERMS = through(MODEL, N_VOCAB)
ROWS = 40 * N_CTX


def new_model():
    torch.manual_seed(0)
    model = GPT(MODEL, N_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # so that the values differ well beyond rounding
    return model


def new_stream():
    rng = np.random.default_rng(0)
    starts = np.cumsum([0, *rng.integers(3, 40, size=60)])
    tokens = rng.integers(N_VOCAB, size=int(starts[-1])).astype(np.uint16)
    return TokenStream([tokens[:500], tokens[500:]], starts[:-1])


LAYERS = [Site("mlp_post", layer) for layer in range(MODEL.n_layers)]


@pytest.fixture(scope="module")
def model():
    return new_model()


@pytest.fixture(scope="module")
def stream():
    return new_stream()


def harvested(folder, model, stream, sites=("1/mlp_post",), skip=0, batch_size=7):
    config = HarvestConfig(
        0, "mlp_post", ROWS, "validation", batch_size, 200, "float32", [*sites], skip
    )
    columns = widths(model, config.places())
    rows = ROWS // N_CTX * (N_CTX - skip)
    writer = ShardWriter(folder, rows, sum(columns), 200, "float32", seed=0)
    harvest(model, stream, config, N_CTX, writer, Run(None, False, folder))
    stops = np.cumsum(columns).tolist()
    pieces = zip([0, *stops], stops, strict=False)
    writer.finish({"sites": [{"columns": [start, stop]} for start, stop in pieces]}, {})
    return Activations.open(folder)


def in_text_order(found, stream):
    """Rows and their places in the stream."""
    document, position, _ = found.origins(0, found.rows).T
    place = stream.document_starts[document] + position
    return found.read(0, found.rows)[np.argsort(place)], np.sort(place)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_row_is_what_the_full_model_computes_at_its_origin(tmp_path, model, stream, layer):
    found = harvested(tmp_path, model, stream, [f"{layer}/mlp_post"])
    seen = []
    hook = model.blocks[layer].mlp_in.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        for start in range(0, ROWS, N_CTX):  # one context at a time, through all layers
            model.hidden(torch.from_numpy(stream.window(start, N_CTX))[None])
    hook.remove()
    x = torch.cat(seen, 1)[0].double()
    naive = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    document, position, token = found.origins(0, ROWS).T
    place = stream.document_starts[document] + position  # in the stream
    assert sorted(place) == list(range(ROWS))
    assert (stream.window(0, ROWS)[place] == token).all()
    assert_rounded(found.read(0, ROWS).astype(float), naive[place], TERMS)


@pytest.mark.parametrize("cores", [2, 3])
def test_the_number_of_cores_changes_no_byte(tmp_path, model, stream, cores):
    for n, name in ((1, "one"), (cores, "several")):
        with torch_threads(n):
            harvested(tmp_path / name, model, stream)
            assert torch.get_num_threads() == n
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "several" / path.name).read_bytes(), path.name


def test_the_batch_size_does_not_change_which_rows_are_taken(tmp_path, model, stream):
    one, many = (
        in_text_order(harvested(tmp_path / str(n), model, stream, batch_size=n), stream)[0]
        for n in (1, 64)
    )
    assert_rounded(one, many, TERMS)


ORDER = list(SITES)
D, D_MLP = MODEL.d_model, MODEL.d_mlp


def naive_sites(model, tokens):
    """What each block computes, by hooks on its modules and sums of what they gave."""
    seen = {}
    for layer, block in enumerate(model.blocks):
        for name in ("norm_1", "attn_out", "norm_2", "mlp_in", "mlp_out"):

            def keep(_, inputs, output, key=(layer, name)):
                seen[key] = inputs[0], output

            getattr(block, name).register_forward_hook(keep)
    model.hidden(tokens)
    found = {}
    for layer in range(MODEL.n_layers):
        before, added = seen[layer, "norm_1"][0], seen[layer, "attn_out"][1]
        between, hidden = before + added, seen[layer, "mlp_in"][1]
        post, written = seen[layer, "mlp_out"]
        values = [before, added, between, hidden, post, written, between + written]
        for name, value in zip(ORDER, values, strict=True):
            found[Site(name, layer)] = value
    for module in model.modules():
        module._forward_hooks.clear()
    return found


@torch.no_grad()
def test_every_site_is_what_the_blocks_modules_compute(model, stream):
    tokens = torch.from_numpy(stream.window(0, 2 * N_CTX)).view(2, N_CTX)
    naive = naive_sites(model, tokens)
    for site, value in naive.items():
        assert_rounded(model.read(tokens, [site])[0], value, TERMS)
    many = [Site("mlp_post", 2), Site("resid_pre", 0), Site("attn_out", 1)]
    for site, value in zip(many, model.read(tokens, many), strict=True):
        assert_rounded(value, naive[site], TERMS)


def test_nothing_behind_the_last_site_is_computed(model, stream):
    ran = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
    ]
    model.read(torch.zeros((1, 4), dtype=torch.int64), [Site("mlp_pre", 1), Site("attn_out", 0)])
    for handle in handles:
        handle.remove()
    assert ran[-1] == "blocks.1.mlp_in"


def test_several_sites_lie_side_by_side_in_the_order_asked_for(tmp_path, model, stream):
    found = harvested(tmp_path / "both", model, stream, ["2/mlp_post", "0/resid_mid"])
    assert found.d_in == D_MLP + D
    both, _ = in_text_order(found, stream)
    for name, columns in (("2/mlp_post", slice(D_MLP)), ("0/resid_mid", slice(D_MLP, None))):
        alone = harvested(tmp_path / name, model, stream, [name])
        rows, _ = in_text_order(alone, stream)
        assert_rounded(both[:, columns], rows, TERMS)
        place = found.manifest["sites"][0 if columns.start is None else 1]
        assert place["rms"] == pytest.approx(np.sqrt((rows.astype(np.float64) ** 2).mean()))


def test_the_first_positions_of_each_context_are_read_but_not_written(tmp_path, model, stream):
    every, _ = in_text_order(harvested(tmp_path / "all", model, stream), stream)
    found = harvested(tmp_path / "kept", model, stream, skip=3)
    rows, places = in_text_order(found, stream)
    kept = [place for place in range(ROWS) if place % N_CTX >= 3]
    assert places.tolist() == kept
    assert_rounded(rows, every[kept], TERMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"site": "mlp"}, "harvest.site must be one of resid_pre.*not 'mlp'"),
        ({"sites": ["mlp_post"]}, "harvest.sites must be LAYER/SITE"),
        ({"sites": ["1/mlp_post", "1/mlp_post"]}, "each once"),
        ({"sites": []}, "must name sites"),
        ({"skip_first": -1}, "must not be negative"),
    ],
)
def test_a_site_that_has_no_meaning_is_refused(changes, message):
    values = dict(
        layer=0, site="mlp_post", n_tokens=1, split="all", batch_size=1, shard_rows=1,
        dtype="float16",
    )  # fmt: skip
    with pytest.raises(UserError, match=message):
        HarvestConfig(**values | changes)


@pytest.mark.parametrize("skip", [0, 3])
def test_spread_and_linear_share_of_pre_activations_are_those_of_a_regression(
    model, stream, skip, monkeypatch
):
    monkeypatch.setattr(pre_activations, "SAMPLE_TOKENS", 10 * N_CTX)
    found = pre_activations.measure(model, LAYERS, stream, N_CTX, 40, 12, skip)
    contexts = np.stack([stream.window(i * N_CTX, N_CTX) for i in range(0, 40, 4)])
    for layer in range(MODEL.n_layers):
        sites = [Site("mlp_pre", layer), Site("mlp_post", layer)]
        with torch.no_grad():
            read = model.read(torch.from_numpy(contexts), sites)
        z, h = (part[:, skip:].flatten(0, 1).double().numpy() for part in read)
        left = 0.0
        for j in range(D_MLP):
            slope, intercept = np.polyfit(z[:, j], h[:, j], 1)
            left += (h[:, j] - slope * z[:, j] - intercept).var()
        assert found[layer] == {
            "layer": layer,
            "std": pytest.approx(z.std(), rel=1e-3),
            "linear": pytest.approx(1 - left / h.var(0).sum(), rel=1e-3),
        }


def test_small_pre_activations_are_in_the_linear_part_of_gelu(stream):
    model = new_model()
    with torch.no_grad():
        for block in model.blocks:
            block.mlp_in.weight.mul_(1e-3)
    found = pre_activations.measure(model, LAYERS, stream, N_CTX, 40, 64)
    assert all(m["linear"] > 0.99 for m in found)
    (one,) = pre_activations.measure(model, [Site("resid_mid", 1)], stream, N_CTX, 40, 64)
    assert one == found[1]


def test_a_model_without_the_sites_or_with_infinite_values_has_none(model, stream):
    class Bare:
        device = torch.device("cpu")

        def read(self, tokens, sites):
            raise UserError("no such site")

    assert pre_activations.measure(Bare(), LAYERS, stream, N_CTX, 40, 64) is None
    broken = new_model()
    with torch.no_grad():
        broken.blocks[1].mlp_in.weight.fill_(math.inf)
    found = pre_activations.measure(broken, LAYERS, stream, N_CTX, 40, 64)
    assert [m["layer"] for m in found] == [0]


def test_harvests_of_the_same_text_agree_row_for_row_whatever_was_read_there(
    tmp_path, model, stream
):
    torch.manual_seed(7)
    other = GPT(replace(MODEL, n_layers=2, d_mlp=20), N_VOCAB)
    harvested(tmp_path / "one" / "activations", model, stream)
    two = ("0/resid_pre", "1/attn_out")
    harvested(tmp_path / "two" / "activations", other, stream, two, batch_size=3)
    said = verify.same_rows(tmp_path / "one", tmp_path / "two")
    assert f"the same {ROWS} tokens, row for row" in said

    harvested(tmp_path / "skip" / "activations", model, stream, skip=1)
    with pytest.raises(UserError, match="rows, "):
        verify.same_rows(tmp_path / "one", tmp_path / "skip")
    changed = new_stream()
    changed.shards.arrays[0][123] = 1 - (changed.shards.arrays[0][123] == 1)
    harvested(tmp_path / "changed" / "activations", model, changed)
    with pytest.raises(UserError, match=r"is of other text: \(\d+, \d+, \d+\) and"):
        verify.same_rows(tmp_path / "one", tmp_path / "changed")
    np.save(tmp_path / "rows.npy", np.ones((ROWS, 4), np.float32))
    (tmp_path / "foreign" / "activations").mkdir(parents=True)
    (tmp_path / "rows.npy").rename(tmp_path / "foreign" / "activations" / "rows.npy")
    with pytest.raises(UserError, match="does not say where its rows come from"):
        verify.same_rows(tmp_path / "one", tmp_path / "foreign")
