"""Harvest of small, randomly initialised models as transformers saves them."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rounding import assert_rounded, through

transformers = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers  # noqa: E402
from tokenizers.processors import TemplateProcessing  # noqa: E402

from sparse_dict.activations import stage  # noqa: E402
from sparse_dict.activations.store import Activations  # noqa: E402
from sparse_dict.analysis import harvested  # noqa: E402
from sparse_dict.config import (  # noqa: E402
    FilesData,
    HarvestConfig,
    HarvestStageConfig,
    HFModel,
    ModelConfig,
    TrackingConfig,
)
from sparse_dict.config.sites import SITES, Site  # noqa: E402
from sparse_dict.errors import UserError  # noqa: E402
from sparse_dict.lm import hf_source  # noqa: E402
from sparse_dict.text import tokens  # noqa: E402

pytestmark = pytest.mark.slow

N_CTX, D, D_MLP, LAYERS = 16, 12, 20, 3
TERMS = through(ModelConfig(LAYERS, 2, D, D_MLP, N_CTX), 257)
EOS = "<eos>"
KINDS = ("gpt2", "neox", "serial_neox", "llama")


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i + 1 for i, letter in enumerate(alphabet)} | {EOS: 0}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.enable_padding(length=64, pad_id=0, pad_token=EOS)  # which must not matter
    made.enable_truncation(8)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=EOS, pad_token=EOS, padding_side="left"
    )


def configuration(kind):
    sizes = dict(vocab_size=257, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    wide = dict(
        hidden_size=D, intermediate_size=D_MLP, num_hidden_layers=LAYERS, num_attention_heads=2,
        max_position_embeddings=N_CTX, initializer_range=0.3,
    )  # fmt: skip
    match kind:
        case "gpt2":
            return transformers.GPT2Config(
                n_embd=D, n_layer=LAYERS, n_head=2, n_inner=D_MLP, n_positions=N_CTX,
                initializer_range=0.3, **sizes,
            )  # fmt: skip
        case "neox" | "serial_neox":
            return transformers.GPTNeoXConfig(use_parallel_residual=kind == "neox", **wide, **sizes)
        case _:
            return transformers.LlamaConfig(num_key_value_heads=1, **wide, **sizes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("hf")
    for seed, kind in enumerate(KINDS):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(configuration(kind))
        model.save_pretrained(base / kind)
        tokenizer().save_pretrained(base / kind)
    with (base / "text.jsonl").open("w") as file:
        for i in range(60):
            file.write(json.dumps({"text": f"Document {i} {EOS} speaks of {i * i} things."}) + "\n")
    return base


def lm(folder, **changes):
    return replace(HFModel(str(folder), None, N_CTX, "float32"), **changes)


@pytest.fixture
def loaded(folders):
    return lambda kind: hf_source.load(lm(folders / kind), torch.device("cpu"))


def some_tokens():
    return torch.randint(257, (3, N_CTX), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_residual_stream_is_what_the_model_outputs_as_hidden_states(loaded, kind):
    model, ids = loaded(kind), some_tokens()
    sites = [Site("resid_pre", layer) for layer in range(LAYERS)]
    sites += [Site("resid_post", layer) for layer in range(LAYERS - 1)]
    found = model.read(ids, sites)  # leaves the pass early, which must not harm the next one
    hidden = model.model(ids, output_hidden_states=True).hidden_states
    assert len(hidden) == LAYERS + 1
    for site, value in zip(sites, found, strict=True):
        wanted = hidden[site.layer + (site.name == "resid_post")]
        assert_rounded(value, wanted, TERMS)
    # The last hidden state is behind the final norm.
    (last,) = model.read(ids, [Site("resid_post", LAYERS - 1)])
    norm = {"gpt2": "transformer.ln_f", "llama": "model.norm"}.get(
        kind, "gpt_neox.final_layer_norm"
    )
    assert_rounded(model.model.get_submodule(norm)(last), hidden[-1], TERMS)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_sites_of_a_block_fit_each_other_and_its_weights(loaded, kind):
    model = loaded(kind)
    names = [name for name in SITES if (kind, name) != ("neox", "resid_mid")]
    found = model.read(some_tokens(), [Site(name, 1) for name in names])
    at = dict(zip(names, found, strict=True))
    assert [at[name].shape[-1] for name in ("mlp_pre", "mlp_post")] == [D_MLP, D_MLP]
    block = model.model.get_submodule(f"{model.layout.path}.1")
    if kind == "llama":
        read = block.post_attention_layernorm(at["resid_mid"])
        pre = torch.nn.functional.linear(read, block.mlp.gate_proj.weight)
        gated = torch.nn.functional.silu(pre) * (read @ block.mlp.up_proj.weight.T)
        added = at["mlp_post"] @ block.mlp.down_proj.weight.T
    elif kind == "gpt2":
        read = block.ln_2(at["resid_mid"])
        pre = read @ block.mlp.c_fc.weight + block.mlp.c_fc.bias
        gated = torch.nn.functional.gelu(pre, approximate="tanh")
        added = at["mlp_post"] @ block.mlp.c_proj.weight + block.mlp.c_proj.bias
    else:
        read = block.post_attention_layernorm(at["resid_pre" if kind == "neox" else "resid_mid"])
        pre = torch.nn.functional.linear(
            read, block.mlp.dense_h_to_4h.weight, block.mlp.dense_h_to_4h.bias
        )
        gated = torch.nn.functional.gelu(pre)
        added = torch.nn.functional.linear(
            at["mlp_post"], block.mlp.dense_4h_to_h.weight, block.mlp.dense_4h_to_h.bias
        )
    assert_rounded(at["mlp_pre"], pre, TERMS)
    assert_rounded(at["mlp_post"], gated, TERMS)
    if kind != "neox":
        assert_rounded(at["resid_mid"], at["resid_pre"] + at["attn_out"], TERMS)
    assert_rounded(at["resid_post"], at["resid_pre"] + at["attn_out"] + added, TERMS)


@torch.no_grad()
def test_a_modules_path_names_the_same_place_as_the_short_name(loaded):
    model, ids = loaded("llama"), some_tokens()
    sites = [Site("mlp_post", 1), Site("model.layers.1.mlp.down_proj:in")]
    sites += [Site("attn_out", 0), Site("model.layers.0.self_attn")]
    one, two, three, four = model.read(ids, sites)
    assert torch.equal(one, two)
    assert torch.equal(three, four)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_no_module_behind_the_last_site_runs(loaded, kind):
    model, ran = loaded(kind), []
    assert model.layout.blocks  # which is measured by a whole pass
    for name, module in model.model.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    model.read(some_tokens(), [Site("mlp_pre", 1), Site("resid_pre", 0)])
    assert not [name for name in ran if ".2" in name or "head" in name or "norm" in name[-10:-2]]
    assert ran[-1].split(".")[-1] in ("c_fc", "dense_h_to_4h", "gate_proj")


def test_a_place_that_a_model_does_not_have_is_named(loaded):
    cases = {
        ("neox", Site("resid_mid", 0)): "parallel",
        ("gpt2", Site("transformer.h.0.mpl.c_fc")): "did you mean transformer.h.0.mlp.c_fc",
        ("gpt2", Site("transformer.wpe")): "not one row for each token",
    }
    for (kind, site), message in cases.items():
        with pytest.raises(UserError, match=message), torch.no_grad():
            loaded(kind).read(some_tokens(), [site])


def stage_config(folders, target, kind="gpt2", **changes):
    harvest = HarvestConfig(1, "mlp_post", 600, "all", 4, 200, "float32")
    return HarvestStageConfig(
        name="hf", study_dir=str(target), device="cpu", seed=0,
        tracking=TrackingConfig("disabled", "p", None, []), lm_dir="none",
        activations_dir=str(target / "activations"), cache_dir=str(target / "cache"),
        data=FilesData(0.3, str(folders / "text.jsonl"), "text"),
        lm=lm(folders / kind), harvest=replace(harvest, **changes),
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_rows_are_what_the_model_computes_on_packed_documents(folders, loaded, tmp_path, kind):
    config = stage_config(
        folders, tmp_path, kind, sites=["2/resid_pre", "0/mlp_post"], skip_first=1
    )
    stage.run(config)
    found = Activations.open(tmp_path / "activations")
    assert found.rows == 600 // (N_CTX - 1) * (N_CTX - 1)
    first, second = found.manifest["sites"]
    assert (first["site"], first["columns"]) == ("2/resid_pre", [0, D])
    assert (second["site"], second["columns"]) == ("0/mlp_post", [D, D + D_MLP])
    assert [m["layer"] for m in found.manifest["pre_activations"]] == [0, 2]
    rows = found.read(0, found.rows)
    assert second["rms"] == pytest.approx(float(np.sqrt((rows[:, D:] ** 2).mean())), rel=1e-5)

    store = tokens.prepare(config.data, hf_source.load_tokenizer(config.lm), tmp_path / "cache")
    stream = store.split("all")
    document, position, token = found.origins(0, found.rows).T
    place = stream.document_starts[document] + position
    assert sorted(place) == [i for i in range(found.rows // (N_CTX - 1) * N_CTX) if i % N_CTX]
    ids = torch.from_numpy(stream.window(0, found.rows // (N_CTX - 1) * N_CTX))
    assert (ids[place].numpy() == token).all()
    hidden = loaded(kind).model(ids.view(-1, N_CTX), output_hidden_states=True).hidden_states
    wanted = hidden[2].flatten(0, 1)[place].numpy()
    np.testing.assert_allclose(rows[:, :D], wanted, rtol=1e-4, atol=1e-4)


def test_a_second_harvest_is_already_there_unless_the_weights_changed(folders, tmp_path, caplog):
    copy = tmp_path / "model"
    shutil.copytree(folders / "gpt2", copy)
    config = replace(stage_config(folders, tmp_path), lm=lm(copy))
    stage.run(config)
    manifest = tmp_path / "activations" / "manifest.json"
    before = manifest.read_bytes()
    assert json.loads(before)["config"]["lm"]["n_ctx"] == N_CTX
    with caplog.at_level("INFO"):
        stage.run(config)
    assert "already there" in caplog.text
    assert manifest.read_bytes() == before
    torch.manual_seed(100)
    transformers.AutoModelForCausalLM.from_config(configuration("gpt2")).save_pretrained(copy)
    with pytest.raises(UserError, match=r"model is .* there"):
        stage.run(config)


def test_text_is_neither_padded_nor_cut_and_names_of_special_tokens_are_text(folders):
    made = hf_source.load_tokenizer(lm(folders / "gpt2"))
    texts = [f"one {EOS} two", "a rather longer text than the tokenizer's truncation"]
    ids = made.encode_batch(texts)
    assert [len(part) for part in ids] == [len(text) for text in texts]
    assert made.eot == 0
    assert not any((part == made.eot).any() for part in ids)
    assert [made._tokenizer.decode(part) for part in ids] == texts
    assert (made.n_vocab, made.dtype) == (257, np.uint16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harvest": {"layer": 3}}, "has layers 0 to 2"),
        ({"harvest": {"skip_first": N_CTX}}, "leave no context"),
        ({"lm": {"n_ctx": N_CTX + 1}}, f"takes {N_CTX} at most"),
        ({"lm": {"name_or_path": "no/such/folder/here"}}, "lm.name_or_path=no/such"),
    ],
)
def test_wrong_input_is_found_by_the_check(folders, tmp_path, change, message):
    config = stage_config(folders, tmp_path, **change.get("harvest", {}))
    config.lm = replace(config.lm, **change.get("lm", {}))
    with pytest.raises(UserError, match=message):
        stage.check(config)
    assert not (tmp_path / "activations").exists()


# --- the beginning of a text ----------------------------------------------------------------------

BOS = 256  # the last id that the models have


def with_beginning(source, target, adds=True):
    """A model whose tokenizer knows a token that begins a text, and perhaps adds it."""
    shutil.copytree(source, target)
    made = tokenizer().backend_tokenizer
    letter = max(made.get_vocab(), key=made.get_vocab().get)  # which gives way to it
    vocabulary = {t: i for t, i in made.get_vocab().items() if t != letter} | {"<bos>": BOS}
    begins = Tokenizer(models.BPE(vocabulary, []))
    begins.pre_tokenizer, begins.decoder = made.pre_tokenizer, made.decoder
    if adds:
        begins.post_processor = TemplateProcessing("<bos> $A", special_tokens=[("<bos>", BOS)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=begins, eos_token=EOS, bos_token="<bos>"
    ).save_pretrained(target)
    return target


@torch.no_grad()
@pytest.mark.parametrize("adds", [True, False])
def test_a_context_begins_as_the_tokenizer_begins_a_text(folders, tmp_path, adds, caplog):
    caplog.set_level("INFO")
    folder = with_beginning(folders / "llama", tmp_path / "model", adds)
    config = stage_config(folders, tmp_path, site="resid_post")
    config.lm = lm(folder, n_ctx=N_CTX - 1, bos=None if adds else True)
    stage.run(config)
    assert "each context begins with <bos>" in caplog.text
    found = Activations.open(tmp_path / "activations")
    document, position, token = found.origins(0, found.rows).T
    assert BOS not in token
    made = hf_source.load_tokenizer(config.lm)
    stream = tokens.prepare(config.data, made, tmp_path / "cache").split("all")
    place = stream.document_starts[document] + position
    text = torch.from_numpy(stream.window(0, found.rows)).view(-1, N_CTX - 1)
    begun = torch.cat([torch.full((len(text), 1), BOS), text], 1)
    model = hf_source.load(config.lm, torch.device("cpu")).model
    wanted = model(begun, output_hidden_states=True).hidden_states[2][:, 1:].flatten(0, 1)
    np.testing.assert_allclose(found.read(0, found.rows), wanted[place], rtol=1e-4, atol=1e-4)
    # The analyses' model begins likewise, and its loss is that of the tokens after the first.
    opened = harvested.model(found.manifest, SimpleNamespace(device="cpu", lm_dir="none")).model
    site = Site("resid_post", 1)
    (value,), follow = opened.split(text[:, :-1], text[:, 1:], [site])
    torch.testing.assert_close(value, wanted.view(*text.shape, -1)[:, :-1])
    logits = model(begun[:, :-1]).logits[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.mT, text[:, 1:], reduction="none")
    torch.testing.assert_close(follow([value]), loss)
    assert (follow([0 * value]) - loss).abs().max() > 1e-3
    # Without it the rows are others, which the manifest tells.
    config.lm = replace(config.lm, bos=False)
    with pytest.raises(UserError, match="bos is True there"):
        stage.run(config)


def test_a_model_without_a_beginning_is_read_without_and_has_no_key_of_it(folders, tmp_path):
    config = stage_config(folders, tmp_path)
    stage.run(config)
    manifest = json.loads((tmp_path / "activations" / "manifest.json").read_text())
    assert "bos" not in manifest["config"]["lm"]
    config.lm = lm(folders / "gpt2", bos=True)
    with pytest.raises(UserError, match=r"lm\.bos=true: .* has no token for the beginning"):
        stage.check(config)
    config.lm = lm(with_beginning(folders / "gpt2", tmp_path / "model"))
    message = f"takes {N_CTX - 1} at most"
    with pytest.raises(UserError, match=message):
        stage.check(config)


# --- what the model cannot read or compute --------------------------------------------------------


def test_ids_that_the_model_lacks_are_refused_with_both_numbers(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders / "gpt2", folder)
    made = transformers.AutoTokenizer.from_pretrained(folder)
    made.add_special_tokens({"additional_special_tokens": ["<image>"]})
    made.save_pretrained(folder)
    config = stage_config(folders, tmp_path)
    config.lm = lm(folder)
    stage.check(config)  # no text has that one
    made.add_tokens(["things"])
    made.save_pretrained(folder)
    with pytest.raises(UserError, match=r"259 ids, rows for 257 tokens"):
        stage.check(config)


@pytest.mark.parametrize(
    ("site", "value"),
    [
        ("0/resid_pre", "values"),
        ("model.layers.0", "loss"),
        ("model.layers.2", "activations"),
    ],
)
def test_what_float16_does_not_hold_is_told_before_the_harvest(
    folders, tmp_path, site, value, monkeypatch
):
    model = transformers.AutoModelForCausalLM.from_pretrained(folders / "llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e6)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    config = stage_config(folders, tmp_path, "llama", sites=[site])
    config.lm = lm(tmp_path / "model", dtype="float16")
    if value == "activations":  # of a text that overflows only later
        monkeypatch.setattr(stage, "_try", lambda *_: None)
    with pytest.raises(UserError, match=rf"{value} .* not finite: .*lm\.dtype=bfloat16"):
        stage.run(config)
    assert not (tmp_path / "activations" / "manifest.json").exists()
    config.lm = lm(tmp_path / "model", dtype="bfloat16")
    monkeypatch.undo()
    stage.run(config)
