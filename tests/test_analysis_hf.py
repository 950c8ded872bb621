"""Analyses of Hugging Face's models against computations that share no code with them."""
# ruff: noqa: F811

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analysis_study import config_of, context_of, settings_of, tabled, unit, write_dictionary
from damage import resealed
from rounding import assert_rounded

transformers = pytest.importorskip("transformers")

from test_activations_hf import (  # noqa: E402, F401
    D_MLP,
    EOS,
    KINDS,
    LAYERS,
    N_CTX,
    TERMS,
    D,
    folders,
    lm,
    loaded,
    stage_config,
    tokenizer,
)
from test_analysis_interp import settings_of as interp_settings  # noqa: E402

from sparse_dict.activations import stage  # noqa: E402
from sparse_dict.analysis import frame, harvested, study  # noqa: E402
from sparse_dict.analysis import source as sources  # noqa: E402
from sparse_dict.analysis.features import page, top_contexts  # noqa: E402
from sparse_dict.analysis.harvested import Place  # noqa: E402
from sparse_dict.analysis.interp import cases  # noqa: E402
from sparse_dict.analysis.measured.reconstruction_loss import losses, recovered  # noqa: E402
from sparse_dict.analysis.report import provenance  # noqa: E402
from sparse_dict.config import ContextsConfig, LossRecoveredConfig  # noqa: E402
from sparse_dict.config.sites import SITES, Site  # noqa: E402
from sparse_dict.errors import UserError  # noqa: E402
from sparse_dict.lm import hf, hf_source  # noqa: E402
from sparse_dict.storage import files  # noqa: E402
from sparse_dict.tools.notebook import show_feature  # noqa: E402

pytestmark = pytest.mark.slow

LAYER = 1
SHOWN = ContextsConfig(["16/0", "16/5", "neuron/3"], 3, 10**6, top=4, spread=2, width=4)
PATHS = {  # blocks, and in a block: attention, norm before the MLP, first and last matrix of it
    "gpt2": ("transformer.h", "attn", "ln_2", "mlp.c_fc", "mlp.c_proj"),
    "llama": ("model.layers", "self_attn", "post_attention_layernorm", "mlp.gate_proj",
              "mlp.down_proj"),
    "neox": ("gpt_neox.layers", "attention", "post_attention_layernorm", "mlp.dense_h_to_4h",
             "mlp.dense_4h_to_h"),
}  # fmt: skip
PATHS["serial_neox"] = PATHS["neox"]


def with_output(module, new):
    """Let a module compute `new`, whatever it reads."""
    return module.register_forward_hook(
        lambda _, __, out: (new, *out[1:]) if isinstance(out, tuple) else new
    )


def direct_logits(model, kind, site, tokens, new):
    """Logits of a plain model of transformers with `new` at a site."""
    blocks, attention, norm, first, last = PATHS[kind]
    block = model.get_submodule(f"{blocks}.{site.layer}")
    match site.name:
        case "resid_pre":
            hook = with_output(model.get_submodule(f"{blocks}.{site.layer - 1}"), new)
        case "attn_out":
            hook = with_output(block.get_submodule(attention), new)
        case "resid_mid":
            hook = with_output(block, new + block.mlp(block.get_submodule(norm)(new)))
        case "mlp_pre":
            hook = with_output(block.get_submodule(first), new)
        case "mlp_post":
            hook = with_output(block.mlp, block.get_submodule(last)(new))
        case "mlp_out":
            hook = with_output(block.mlp, new)
        case _:
            hook = with_output(block, new)
    logits = model(tokens).logits
    hook.remove()
    return logits


def written_by(model, seed=0, n=40):
    """Text that the model wrote itself, so that it predicts it better than an ablated one does."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(257, (n, 1), generator=generator)
    for _ in range(N_CTX):
        odds = model(text).logits[:, -1].softmax(-1)
        text = torch.cat([text, odds.multinomial(1, generator=generator)], dim=1)
    return text


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SITES)
def test_an_activation_goes_back_into_the_model_at_its_very_site(loaded, kind, name):
    if (kind, name) == ("neox", "resid_mid"):
        pytest.skip("attention and MLP are parallel")
    model, site, text = loaded(kind), Site(name, LAYER), written_by(loaded(kind).model, n=5)
    tokens, targets = text[:, :-1], text[:, 1:]
    for sites in ([site], [Site("resid_pre", 0), site], [Site("resid_post", 2), site]):
        found, follow = model.split(tokens, targets, sites)
        whole = F.cross_entropy(model.model(tokens).logits.mT, targets, reduction="none")
        assert_rounded(follow(found), whole, TERMS)
    found, follow = model.split(tokens, targets, [site])
    new = found[0].flip(0) + found[0].std() * torch.randn(found[0].shape)
    logits = direct_logits(model.model, kind, site, tokens, new)
    wanted = F.cross_entropy(logits.mT, targets, reduction="none")
    assert ((wanted - whole).abs() > 1e-3).any()
    assert_rounded(follow([new]), wanted, TERMS)
    some = torch.arange(targets.numel()).view(targets.shape) % 3 == 1
    assert_rounded(follow([new], some), wanted[some], TERMS)
    twice = torch.tensor([4, 0, 4])
    assert_rounded(follow([new[twice]], contexts=twice), wanted[twice], TERMS)
    assert_rounded(model.read(tokens, [site])[0], found[0], TERMS)  # nothing is left behind


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_the_loss_is_taken_on_few_logits_at_a_time(loaded, kind, monkeypatch):
    model, text = loaded(kind), written_by(loaded(kind).model)
    sites = [Site("mlp_post", 2)]
    found, follow = model.split(text[:, :-1], text[:, 1:], sites)
    whole, seen = follow([found[0] * 0]), []
    monkeypatch.setattr(hf, "LOGITS", 3 * 257 * N_CTX)
    model.model.register_forward_hook(lambda _, __, out: seen.append(len(out.logits)))
    _, again = model.split(text[:, :-1], text[:, 1:], sites)
    assert_rounded(again([found[0] * 0]), whole, TERMS)
    assert seen == [3] * 13 + [1]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "neox", "llama"])
def test_blocks_before_the_first_site_are_not_run_again(loaded, kind):
    model, text, ran = loaded(kind), written_by(loaded(kind).model, n=3), []
    found, follow = model.split(text[:, :-1], text[:, 1:], [Site("attn_out", 2)])
    for i, block in enumerate(model._blocks()):
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
    follow(found)
    assert ran == [2]
    model.model(text[:, :-1])
    assert ran == [2, 0, 1, 2]


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sites", [["1/mlp_post"], ["0/resid_post", "2/mlp_pre"], ["PATH", "2/attn_out"]]
)
def test_identity_recovers_all_of_the_loss_and_the_mean_nothing(loaded, kind, sites):
    model, text = loaded(kind), written_by(loaded(kind).model)
    path = Site(f"{PATHS[kind][0]}.0.{PATHS[kind][4]}:in")
    named = {"PATH": path}
    places = [named[s] if s in named else Site(s[2:], int(s[0])) for s in sites]
    rows = torch.cat(model.read(text[:, :-1], places), -1).flatten(0, 1).numpy()
    mean = rows.mean(0, dtype=np.float64)

    def made(x):
        return [("same", x.copy()), ("mean of it", np.tile(mean.astype("f4"), (len(x), 1)))]

    found = losses(model, text.numpy(), Place(tuple(places), 0), mean, made)
    original, ablated = found["original"], found["mean"]
    logits = model.model(text[:, :-1]).logits
    wanted = F.cross_entropy(logits.mT, text[:, 1:], reduction="none").mean(1)
    np.testing.assert_allclose(original, wanted, rtol=1e-5)
    assert ablated.mean() > original.mean() + 0.01
    assert recovered(found["same"], original, ablated).value == pytest.approx(1, abs=1e-4)
    assert recovered(found["mean of it"], original, ablated).value == pytest.approx(0)


def test_a_path_means_the_short_name_of_the_same_place(loaded):
    model = loaded("llama")
    for path, short in {
        "model.layers.1.mlp.down_proj:in": Site("mlp_post", 1),
        "model.layers.2": Site("resid_post", 2),
        "model.layers.0:in": Site("resid_pre", 0),
        "model.layers.0.self_attn:out": Site("attn_out", 0),
    }.items():
        assert model.short_name(Site(path)) == short
    for path in ("model.norm", "model.layers.1.mlp.up_proj", "model.layers.7"):
        assert model.short_name(Site(path)) == Site(path)
    parallel = Site("gpt_neox.layers.0.post_attention_layernorm:in")
    assert loaded("neox").short_name(parallel) == parallel


# --- a study --------------------------------------------------------------------------------------


def studied(folders, target, kind, **changes):
    """A harvest, and two dictionaries of it, a random and a perfect one."""
    stage.run(stage_config(folders, target, kind, **changes))
    manifest = files.read_json(target / "activations" / "manifest.json")
    d_in = manifest["d_in"]
    rng = np.random.default_rng(0)
    both = np.concatenate([np.eye(d_in), -np.eye(d_in)]).astype(np.float32)
    for name, decoder in {"random": unit(rng.standard_normal((16, d_in))), "perfect": both}.items():
        write_dictionary(
            target / "sae" / name, decoder, np.ones(len(decoder), np.int64),
            fingerprints={"activations": manifest["fingerprints"]["activations"]},
        )  # fmt: skip
    return config_of(
        target,
        contexts=SHOWN,
        comparison=settings_of(),
        loss_recovered=LossRecoveredConfig(320, [1]),
    )


SITES_OF = {
    "gpt2": ["2/resid_pre", "0/mlp_post"],
    "neox": ["1/resid_post"],
    "llama": ["1/mlp_post"],
}


@torch.no_grad()
@pytest.mark.parametrize("kind", SITES_OF)
def test_contexts_are_those_of_a_direct_computation(folders, loaded, tmp_path, kind):
    config = studied(folders, tmp_path, kind, sites=SITES_OF[kind], skip_first=2)
    gallery = top_contexts.gather(tabled(config))
    # All text as transformers' own tokenizer reads it, and what its model computes on it.
    made = transformers.AutoTokenizer.from_pretrained(folders / kind)
    (path,) = (tmp_path / "cache" / "tokens").iterdir()
    stored = [np.load(path / f"{part}-00000.npy") for part in ("train", "validation")]
    text = np.concatenate(stored)[: 600 // (N_CTX - 2) * N_CTX].astype(np.int64).reshape(-1, N_CTX)
    model, values = loaded(kind).model, {}
    blocks, _, _, _, last = PATHS[kind]
    for name in SITES_OF[kind]:
        layer, short = name.split("/")
        block = model.get_submodule(f"{blocks}.{layer}")
        if short == "mlp_post":
            module, of = block.get_submodule(last), lambda args, out: args[0]
        elif short == "resid_pre":
            module, of = block, lambda args, out: args[0]
        else:
            module, of = block, lambda args, out: out[0] if isinstance(out, tuple) else out
        module.register_forward_hook(
            lambda _, args, out, name=name, of=of: values.__setitem__(name, of(args, out).clone())
        )
    model(torch.from_numpy(text))
    rows = np.concatenate([values[name].numpy() for name in SITES_OF[kind]], -1)
    assert len(gallery.features) == 3 + 2 - (gallery.features[-2].chosen.nearest() is not None)
    for feature in gallery.features:
        chosen = feature.chosen
        codes = rows[..., chosen.index]
        if chosen.entry is not None:
            codes = np.maximum(rows @ chosen.entry.decoder[chosen.index], 0)
        codes = np.where(np.arange(N_CTX) < 2, 0, codes)
        assert feature.largest == pytest.approx(codes.max(), rel=1e-3)
        assert feature.density == pytest.approx((codes > 0).sum() / codes[:, 2:].size, abs=2e-3)
        peaks = np.sort(codes.max(1))[::-1][:4]
        shown = [context.values[context.peak] for context in feature.top]
        assert set(np.round(shown, 3)) <= set(np.round(codes[codes > 0], 3).ravel())
        assert shown[0] == pytest.approx(peaks[0], rel=1e-3)
        for context in feature.top:
            at = np.argwhere(np.isclose(codes, context.values[context.peak], rtol=1e-4))
            assert any(
                (text[i, j - context.peak : j - context.peak + len(context.tokens)]).tolist()
                == context.tokens.tolist()
                for i, j in at
                if j >= context.peak
            )
            known = gallery.source.words(context.tokens.tolist())
            words = "".join(known[t] for t in context.tokens.tolist())
            assert words == made.decode(context.tokens)


@torch.no_grad()
@pytest.mark.parametrize("kind", SITES_OF)
def test_logit_effects_go_through_the_models_own_unembedding(folders, loaded, tmp_path, kind):
    config = studied(folders, tmp_path, kind, sites=SITES_OF[kind])
    gallery = top_contexts.gather(tabled(config))
    feature, model = gallery.features[0], loaded(kind).model
    row = torch.from_numpy(feature.chosen.entry.decoder[feature.chosen.index])
    match kind:
        case "gpt2":  # of two sites
            residual = row[:D] + row[D:] @ model.transformer.h[0].mlp.c_proj.weight
            gained = (residual - residual.mean()) * model.transformer.ln_f.weight
        case "neox":
            gained = (row - row.mean()) * model.gpt_neox.final_layer_norm.weight
        case _:
            gained = (model.model.layers[1].mlp.down_proj.weight @ row) * model.model.norm.weight
    logits = model.get_output_embeddings().weight @ gained
    logits -= logits.mean()
    order = logits.argsort(descending=True).tolist()
    assert [token for token, _ in feature.promoted] == order[:10]
    assert [token for token, _ in feature.demoted] == order[::-1][:10]
    np.testing.assert_allclose([v for _, v in feature.promoted], logits[order[:10]], rtol=1e-3)


def test_the_page_tells_each_sites_part_of_a_feature_and_which_effects_are_shown(
    folders,
    tmp_path,
):
    config = studied(folders, tmp_path, "gpt2", sites=["1/mlp_pre", "0/resid_mid"])
    gallery = top_contexts.gather(tabled(config))
    text = " ".join(page.page(gallery).split())
    assert "decoder row (its part of 0/resid_mid) and the final norm" in text
    data = page.payload(gallery, gallery.features, ())
    assert data["sites"] == [["1/mlp_pre", 0, D_MLP], ["0/resid_mid", D_MLP, D_MLP + D]]
    assert data["unit"] == "coordinate"
    for feature, drawn in zip(gallery.features, data["features"], strict=True):
        assert sum(drawn["shares"]) == pytest.approx(1, abs=1e-3)
        if feature.chosen.entry:
            squares = feature.chosen.entry.decoder[feature.chosen.index] ** 2
            assert drawn["shares"][0] == pytest.approx(squares[:D_MLP].sum(), abs=1e-3)
    one = studied(folders, tmp_path / "one", "gpt2", site="mlp_pre")
    gallery = top_contexts.gather(tabled(one))
    text = " ".join(page.page(gallery).split())
    assert "A direct path to the logits is missing: a non-linearity follows 1/mlp_pre." in text
    assert all(not feature.promoted for feature in gallery.features)
    assert gallery.unit == "neuron"


@pytest.mark.parametrize("kind", SITES_OF)
def test_the_loss_is_taken_on_text_that_was_not_harvested(folders, tmp_path, kind):
    config = studied(
        folders, tmp_path, kind, sites=SITES_OF[kind], split="validation", n_tokens=200
    )
    frame.measure(context := context_of(config))
    measured = context.tables.others
    (model,) = measured["loss_recovered_model"].itertuples()
    assert "of the validation text, not harvested" in model.text
    table, original = measured["loss_recovered"].set_index("dictionary"), model.original
    assert table.loss["perfect"] == pytest.approx(original, abs=1e-4)
    assert abs(table.loss["random"] - original) > 1e-3


def test_the_model_is_found_where_it_was_moved_to_and_no_other_is_taken(folders, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folders / "gpt2", copy)
    target = tmp_path / "study"
    stage.run(replace(stage_config(folders, target), lm=lm(copy)))
    manifest = files.read_json(target / "activations" / "manifest.json")
    decoder = unit(np.random.default_rng(0).standard_normal((16, D_MLP)))
    prints = {"activations": manifest["fingerprints"]["activations"]}
    write_dictionary(target / "sae" / "a", decoder, np.ones(16, np.int64), fingerprints=prints)
    config = config_of(target, contexts=SHOWN, comparison=settings_of())
    shutil.move(copy, tmp_path / "moved")
    with pytest.raises(UserError, match=f"{copy} does not exist"):
        top_contexts.gather(tabled(config))
    found = replace(config, lm_dir=str(tmp_path / "moved"))
    assert top_contexts.gather(tabled(found)).features
    with pytest.raises(UserError, match="set lm_dir to that model's folder"):
        top_contexts.gather(tabled(replace(config, lm_dir=str(folders / "llama"))))
    assert "Hugging Face model" in provenance.paragraph(config, study.load(target / "sae"))


def test_a_name_on_the_hub_is_recorded_with_its_commit_and_opened_from_the_cache(
    folders,
    tmp_path,
    monkeypatch,
):
    from huggingface_hub import constants

    commit, cached = "c" * 40, tmp_path / "hub" / "models--someone--tiny"
    shutil.copytree(folders / "llama", cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hf_source, "_online", lambda: False)
    config = stage_config(folders, tmp_path)
    config.lm = lm("someone/tiny")
    stage.run(config)
    manifest = files.read_json(tmp_path / "activations" / "manifest.json")
    assert manifest["lm_commit"] == commit
    # The branch has moved on: it is still the commit that is opened.
    (cached / "refs" / "main").write_text("d" * 40)
    found = harvested.model(manifest, config_of(tmp_path))
    assert found.model.direct(Site("resid_post", 2), torch.eye(D)).shape == (D, 257)


@pytest.mark.parametrize("change", [{"name_or_path": 3}, {"dtype": None}, {"n_ctx": "x"}])
def test_a_record_without_its_model_is_named(folders, tmp_path, change):
    stage.run(stage_config(folders, tmp_path))
    path = tmp_path / "activations" / "manifest.json"
    resealed("config", "lm", **change)(path)
    with pytest.raises(UserError, match=r"^(lm\.name_or_path=|manifest\.json is malformed)"):
        harvested.model(files.read_json(path), config_of(tmp_path))


def test_tokens_are_shown_as_the_text_they_stand_for(tmp_path):
    from tokenizers import Tokenizer, decoders, models

    made = hf_source.Tokenizer(tokenizer())
    line = [made.token_bytes(int(i)) for i in made.encode_batch(["é \n"])[0]]
    assert line == ["é".encode()[:1], "é".encode()[1:], b" ", b"\n"]
    assert made.token_bytes(0) == EOS.encode()
    assert made.token_bytes(5000) == b"[5000]"
    pieces = {"▁one": 1, "<0x0A>": 2, "x": 3, "<0x0": 4, "</s>": 0}
    sentence = Tokenizer(models.BPE(pieces, [], byte_fallback=True))
    sentence.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    other = hf_source.Tokenizer(
        transformers.PreTrainedTokenizerFast(tokenizer_object=sentence, eos_token="</s>")
    )
    shown = [other.token_bytes(i) for i in range(5)]
    assert shown == [b"</s>", b" one", b"\n", b"x", b"<0x0"]


def test_a_chat_model_reads_the_models_own_tokens_with_their_activations(folders, tmp_path):
    config = studied(folders, tmp_path, "gpt2", sites=SITES_OF["gpt2"])
    context = tabled(replace(config, interp=interp_settings("http://localhost:1/v1")))
    source = sources.open_source(config, context.study, 10**6)
    made = transformers.AutoTokenizer.from_pretrained(folders / "gpt2")
    asked = cases.cases(context, source)
    assert {case.group for case in asked} >= {"neuron basis", "random directions"}
    text = made.decode(source.text.ravel()).replace("\n", "⏎")
    for case in asked:
        for excerpt in case.examples:
            assert "".join(excerpt.tokens) in text
            assert excerpt.values.max() > 0


def test_a_notebook_shows_a_feature(folders, tmp_path):
    pytest.importorskip("circuitsvis")
    config = studied(folders, tmp_path, "llama")
    gallery = top_contexts.gather(tabled(config))
    page.write(gallery, tmp_path / "analysis")
    shown = show_feature(tmp_path, "16/5").html
    first = gallery.features[1].top[0]
    assert all(word in shown for word in gallery.source.words(first.tokens.tolist()).values())
