"""Contexts of features against a brute-force reading of the whole text; the page and its safety."""

import base64
import hashlib
import html
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from analysis_study import config_of, tabled, unit, write_dictionary
from lm_files import write_harvest, write_text_and_model

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import source as module
from sparse_dict.analysis import study
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.features import page as features_page
from sparse_dict.analysis.features import top_contexts
from sparse_dict.analysis.features.chosen import (
    ASKED,
    DEAD,
    LOW,
    NEURON,
    RANDOM,
    TOP,
    Chosen,
    choose,
)
from sparse_dict.analysis.features.top_contexts import EFFECTS, Feature, Gallery, Stretch
from sparse_dict.analysis.harvested import Place
from sparse_dict.analysis.report import page as report
from sparse_dict.analysis.source import open_source, printable
from sparse_dict.config import (
    ComparisonConfig,
    ContextsConfig,
    ModelConfig,
)
from sparse_dict.config.sites import Site
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.storage import files, records
from sparse_dict.text import tokens

N_CTX, D, LAYER = 16, 12, 1
MODEL = ModelConfig(n_layers=2, n_heads=2, d_model=8, d_mlp=D, n_ctx=N_CTX)
SETTINGS = ContextsConfig(None, per_group=3, n_tokens=10**6, top=4, spread=3, width=5)
COMPARISON = ComparisonConfig("max", "next", "all", 0.9, 64, 64, 0.25)
EVIL = "</script><img src=x onerror=alert(1)><!--"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random model, its harvest and dictionaries of 8 and 20 features, as the stages write."""
    base = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", EVIL]
    drawn = (
        " ".join(rng.choice(words, size=20, p=[0.3, 0.3, 0.2, 0.18, 0.02])) for _ in range(200)
    )
    lines = [f"{i} {text}\n" for i, text in enumerate(drawn)]
    harvested(base, base, write_text_and_model(base, lines, MODEL, b"al", b"ta"))
    return base


def harvested(base, folder, fingerprints, skip_first=0):
    """Activations of the model in `base` and dictionaries of them, in `folder`."""
    more = {"skip_first": skip_first, "lm_dir": str(base / "lm")}
    prints = write_harvest(base, folder, fingerprints, LAYER, **more)
    rng = np.random.default_rng(2)
    for size in (8, 20):
        decoder = unit(rng.standard_normal((size, D)))
        count = rng.integers(1, 1000, size)
        count[3] = 0
        encoder = decoder + 0.1 * rng.standard_normal((size, D)).astype(np.float32)
        where = folder / "sae" / f"size={size}"
        write_dictionary(where, decoder, count, encoder=encoder, fingerprints=prints)


def config(base, **changes):
    return config_of(base, **({"contexts": SETTINGS, "comparison": COMPARISON} | changes))


def compared(base):
    return Comparison(study.load(base / "sae"), COMPARISON)


@pytest.fixture(scope="module")
def gathered(base):
    return top_contexts.gather(tabled(config(base)))


@pytest.fixture(scope="module")
def brute(base):
    """All tokens read, (contexts, N_CTX), and their raw activations, one context at a time."""
    lm = lm_folder.load(base / "lm")
    (path,) = (base / "cache" / "tokens").iterdir()
    stream = tokens.TokenStore.open(path).split("validation")
    text = stream.window(0, len(stream) // N_CTX * N_CTX).reshape(-1, N_CTX)
    seen = []
    with torch.no_grad():
        for row in text:
            seen.append(lm.model.read(torch.from_numpy(row)[None], [Site("mlp_post", LAYER)])[0][0])
    return text, torch.stack(seen).numpy()


def codes_of(feature, activations):
    chosen = feature.chosen
    if chosen.entry is None:
        return activations[..., chosen.index]
    d = chosen.entry.trained.dictionary
    pre = activations @ d.W_enc[:, chosen.index] + d.b_enc[chosen.index]
    return np.maximum(pre, 0)


def highest(text, codes, width):
    """The highest context of each model context, up to its peak, without repetitions.

    What follows the peak is left out: texts that are alike up to there differ by rounding alone.
    """
    found, seen = [], set()
    for row in np.argsort(-codes.max(1), kind="stable"):
        at = int(codes[row].argmax())
        first = max(0, at - width)
        left = tuple(text[row, first : at + 1])
        if codes[row, at] > 0 and left not in seen:
            found.append((list(left), codes[row, first : at + 1]))
        seen.add(left)
    return found


def up_to_peak(context):
    return context.tokens[: context.peak + 1].tolist()


def test_a_context_shows_consecutive_tokens_on_both_sides_within_the_models_context(
    gathered, brute
):
    text, activations = brute
    for feature in gathered.features:
        codes = codes_of(feature, activations)
        for context in [*feature.top, *feature.spread]:
            n = len(context.tokens)
            windows = np.lib.stride_tricks.sliding_window_view(text, n, axis=1)
            rows, starts = np.nonzero((windows == context.tokens).all(-1))
            shown = [codes[r, s : s + n] for r, s in zip(rows, starts, strict=True)]
            assert min(np.abs(values - context.values).max() for values in shown) < 1e-3
            for length in (context.peak, n - 1 - context.peak):
                assert length == SETTINGS.width or {0, N_CTX - n} & set(starts.tolist())


def test_the_highest_contexts_are_those_of_a_search_through_all_tokens(gathered, brute):
    text, activations = brute
    assert gathered.n_tokens == text.size
    for feature in gathered.features:
        wanted = highest(text, codes_of(feature, activations), SETTINGS.width)[: SETTINGS.top]
        values = [c.values[c.peak] for c in feature.top]
        np.testing.assert_allclose(values, [v.max() for _, v in wanted], rtol=1e-4)
        for context, (ids, codes) in zip(feature.top, wanted, strict=True):
            assert up_to_peak(context) == ids
            left = context.values[: context.peak + 1]
            np.testing.assert_allclose(left, codes, rtol=1e-4, atol=1e-4)


def test_histogram_density_and_maximum_count_every_token(gathered, brute):
    for feature in gathered.features:
        codes = codes_of(feature, brute[1]).ravel()
        active = codes[codes > 0]
        assert feature.density == len(active) / len(codes)
        assert feature.largest == pytest.approx(active.max(), rel=1e-4)
        counts, _ = np.histogram(active, top_contexts.BINS, (0, active.max()))
        assert feature.histogram.sum() == len(active)
        assert np.abs(np.cumsum(feature.histogram - counts)).max() <= 2  # rounding at the borders


def test_spread_contexts_lie_at_their_quantiles(base):
    settings = replace(SETTINGS, features=["20/0", "20/1", "neuron/2"], spread=10)
    gallery = top_contexts.gather(tabled(config(base, contexts=settings)))
    for feature in gallery.features[:3]:
        shown = [c.values[c.peak] for c in feature.spread]
        assert shown == sorted(shown, reverse=True)
        assert 8 <= len(shown) <= 10  # repeated text may leave one out
        assert 0 < shown[-1] < 0.3 * feature.largest


def test_contexts_do_not_depend_on_the_chunks(base, gathered, monkeypatch):
    monkeypatch.setattr(top_contexts, "CHUNK_VALUES", 1)
    again = top_contexts.gather(tabled(config(base)))
    for one, other in zip(gathered.features, again.features, strict=True):
        np.testing.assert_allclose(one.largest, other.largest, rtol=1e-4)
        assert [up_to_peak(c) for c in one.top] == [up_to_peak(c) for c in other.top]


def test_where_the_rows_need_much_memory_fewer_contexts_are_read(base, monkeypatch, caplog):
    monkeypatch.setattr(module, "MEMORY", 4 * 10 * N_CTX * D)
    monkeypatch.setattr(module, "PIECE", 100)
    with caplog.at_level("INFO"):
        source = open_source(config(base), compared(base).study, 10**6)
    assert source.text.shape == (10, N_CTX)
    assert f"{10 * N_CTX} tokens, not" in caplog.text
    lm = lm_folder.load(base / "lm")
    (wanted,) = lm.model.read(torch.from_numpy(source.text.astype(int)), [Site("mlp_post", LAYER)])
    np.testing.assert_allclose(source.rows(slice(None)), wanted.detach(), rtol=1e-4, atol=1e-4)


def test_positions_without_rows_count_for_nothing_and_are_shown_without_activation(
    base, brute, tmp_path
):
    skip = 12
    record = files.read_json(base / "lm" / "lm.json")
    harvested(base, tmp_path, record["fingerprints"], skip)
    where = {key: str(tmp_path / name) for key, name in [("activations_dir", "activations")]}
    gallery = top_contexts.gather(tabled(config(base, sae_dir=str(tmp_path / "sae"), **where)))
    text, activations = brute
    assert (gallery.source.place.skip_first, gallery.n_tokens) == (skip, len(text) * (N_CTX - skip))
    assert gallery.source.n_harvested == gallery.n_tokens
    for page in pages(gallery):
        assert "of 16, whose first 12 positions have no activations." in " ".join(page.split())
    for feature in gallery.features:
        codes = codes_of(feature, activations).copy()
        codes[:, :skip] = 0
        active = codes[codes > 0]
        assert feature.density == len(active) / codes[:, skip:].size
        assert feature.histogram.sum() == len(active)
        wanted = highest(text, codes, SETTINGS.width)[: SETTINGS.top]
        for context, (ids, values) in zip(feature.top, wanted, strict=True):
            assert up_to_peak(context) == ids
            left = context.values[: context.peak + 1]
            np.testing.assert_allclose(left, values, rtol=1e-4, atol=1e-4)
            assert context.values[0] == 0  # it reaches back before position 12


def test_logit_effects_follow_the_direct_path(base, gathered):
    model = lm_folder.load(base / "lm").model
    feature = next(f for f in gathered.features if f.chosen.entry)
    direction = torch.from_numpy(feature.chosen.entry.decoder[feature.chosen.index])
    with torch.no_grad():
        residual = model.blocks[LAYER].mlp_out(direction)
        normed = model.norm(residual)  # differs by its scale, which the effect leaves out
        logits = (
            normed * (residual.var(correction=0) + model.norm.eps).sqrt() @ model.embed.weight.T
        )
    logits -= logits.mean()
    order = logits.argsort(descending=True).tolist()
    assert [token for token, _ in feature.promoted] == order[:EFFECTS]
    assert [token for token, _ in feature.demoted] == order[::-1][:EFFECTS]
    np.testing.assert_allclose([v for _, v in feature.promoted], logits[order[:EFFECTS]], rtol=1e-4)


def test_each_group_is_shown_and_every_feature_has_its_nearest_neuron(base, gathered):
    comparison = compared(base)
    small, large = comparison.main.entries
    mcs = comparison.mcs(small)
    alive = np.flatnonzero(small.alive)
    of = {
        group: [
            f.chosen.index
            for f in gathered.features
            if group in f.chosen.groups and f.chosen.entry and f.chosen.entry.size == small.size
        ]
        for group in (TOP, LOW, RANDOM, DEAD)
    }
    ranked = alive[np.argsort(-mcs[alive])].tolist()
    assert set(of[TOP]) == set(ranked[:3])
    assert set(of[LOW]) == set(ranked[-3:])
    assert len(of[RANDOM]) == 3
    assert of[DEAD] == [3]
    assert any(f.chosen.entry and f.chosen.entry.size == large.size for f in gathered.features)
    neurons = [f.chosen.index for f in gathered.features if f.chosen.entry is None]
    assert neurons == sorted({f.chosen.nearest()[0] for f in gathered.features if f.chosen.entry})


def test_the_features_asked_for_are_shown_in_their_order(base):
    asked = ["20/7", "size=8/2", "neuron/5", "20/7"]
    chosen = choose(tabled(config(base)), replace(SETTINGS, features=asked))
    found = [(c.entry and c.entry.size, c.index) for c in chosen if ASKED in c.groups]
    assert found == [(20, 7), (8, 2), (None, 5)]
    settings = replace(SETTINGS, features=["neuron/5"])
    only = top_contexts.gather(tabled(config(base, contexts=settings)))
    assert [f.chosen.index for f in only.features] == [5]


@pytest.mark.parametrize("name", ["20/20", "neuron/12", "21/0", "nothing/1"])
def test_a_feature_that_does_not_exist_is_an_error(base, name):
    with pytest.raises(UserError, match=name):
        choose(tabled(config(base)), replace(SETTINGS, features=[name]))


@pytest.mark.parametrize("name", ["7", "20/", "/3", "20/-1", "20/x"])
def test_a_feature_without_name_and_index_is_refused_by_the_config(name):
    with pytest.raises(UserError, match="NAME/INDEX"):
        replace(SETTINGS, features=[name])


@pytest.mark.parametrize("key", ["activations_dir", "lm_dir", "cache_dir"])
def test_what_is_missing_is_named(base, tmp_path, key, monkeypatch):
    elsewhere = config(base, **{key: str(tmp_path / "none")})
    if key == "lm_dir":  # the harvest's record would still lead to it
        original = files.read_json

        def without_record(path, *whole):
            return {k: v for k, v in original(path, *whole).items() if k != "lm_dir"}

        monkeypatch.setattr(records, "read_json", without_record)
        fits = "sparse_dict.activations.store.fingerprint_of"
        monkeypatch.setattr(fits, lambda _, prints: prints["activations"])
    with pytest.raises(UserError, match=re.escape(str(tmp_path / "none"))):
        top_contexts.gather(tabled(elsewhere))


def test_the_harvests_record_leads_to_a_model_that_is_not_in_the_study(base, tmp_path):
    assert top_contexts.gather(tabled(config(base, lm_dir=str(tmp_path)))).features


def test_another_model_in_the_folder_is_not_taken_for_the_harvested_one(base, tmp_path):
    comparison = compared(base)
    record = files.read_json(base / "lm" / "lm.json")
    record["fingerprints"]["model"] = "0" * 16
    files.write_json(tmp_path / "lm.json", record)
    source = open_source(config(base, lm_dir=str(tmp_path)), comparison.study, 10**6)
    assert torch.equal(source.lm.model.embed.weight, lm_folder.load(base / "lm").model.embed.weight)


# --- the page -------------------------------------------------------------------------------------


def data_of(page):
    pattern = r'<script type="application/json"[^>]*>(.*?)</script>'
    return json.loads(re.search(pattern, page, re.DOTALL)[1])


def hostile(token, name="x"):
    """A gallery whose one token and whose dictionary's name are `token` and `name`."""
    trained = SimpleNamespace(
        fire_count=np.ones(4), dictionary=SimpleNamespace(W_dec=np.eye(4)[:, ::-1]),
        metrics={"config": {}},
    )  # fmt: skip
    entry = study.Entry(name, name, 4, "l1", 0.1, 0, trained)
    context = Stretch(np.zeros(3, np.int32), np.array([0, 2, 1], np.float32), 1)
    counts = np.ones(top_contexts.BINS, np.int64)
    shown = counts, [context], [context], [(0, 1.0)], [(0, 1.0)]
    pair = [Chosen(entry, 1, (TOP,), 0.9), Chosen(None, 2, (NEURON,))]
    place = Place((Site("mlp_post", 1),), 0)
    source = SimpleNamespace(
        place=place, columns=((0, 4),), text=np.zeros((1, 16)), n_harvested=100,
        words=lambda _: {0: token},
    )  # fmt: skip
    features = [Feature(chosen, 0.5, 2.0, *shown) for chosen in pair]
    return Gallery(features, source, "plain maximum", list(place.sites), [])


def pages(gallery):
    """The features page, and a report with their section."""
    return features_page.page(gallery), report.render(
        "t", "s", [report.Section("t", [features_page.sample(gallery)])]
    )


@pytest.mark.parametrize("text", [EVIL, "<!--<script>", "</SCRIPT >", "&lt;\u2028'\"\\"])
def test_no_token_or_name_can_end_the_data_or_become_markup(text):
    for page, harmless in zip(pages(hostile(text, text)), pages(hostile("a", "a")), strict=True):
        for mark in ("<script", "</script", "<!--", "<img"):
            assert page.lower().count(mark) == harmless.lower().count(mark)
        assert data_of(page)["vocabulary"] == [text]
        assert data_of(page)["dictionaries"][0]["name"] == text


def test_the_script_writes_text_and_no_markup():
    script = (features_page.FOLDER / "features.js").read_text(encoding="utf-8")
    for way in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert way not in script


def test_the_pages_need_no_network_and_run_their_own_style_and_script_alone(gathered):
    for page in pages(gathered):
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp|<link", page)
        links = re.findall(r'(?:src|href)="([^"]*)"', page)
        assert set(links) <= {"features.html", "report.html"}
        policy = html.unescape(re.search(r'Policy" content="([^"]*)"', page)[1])
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        for kind in ("style", "script"):
            inline = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
            digests = (hashlib.sha256(text.encode()).digest() for text in inline)
            allowed = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests)
            assert allowed
            assert f"{kind}-src {allowed}" in policy.split("; ")
        assert not re.search(r"<[^>]* (?:style|on\w+)=", page)  # which hashes do not allow


def test_the_page_holds_the_contexts_as_they_were_found(gathered, tmp_path):
    features_page.write(gathered, tmp_path)
    data = data_of((tmp_path / "features.html").read_text(encoding="utf-8"))
    assert len(data["features"]) == len(gathered.features)
    for drawn, feature in zip(data["features"], gathered.features, strict=True):
        assert drawn["index"] == feature.chosen.index
        assert drawn["dead"] == (feature.chosen.index == 3 and feature.chosen.entry is not None)
        for (ids, values, peak), context in zip(drawn["top"], feature.top, strict=True):
            words = [data["vocabulary"][i] for i in ids]
            known = gathered.source.words(context.tokens.tolist())
            assert words == [known[i] for i in context.tokens.tolist()]
            assert values[peak] / 255 * drawn["largest"] == pytest.approx(
                context.values[peak], abs=drawn["largest"] / 255
            )
        if found := feature.chosen.nearest():
            nearest = data["features"][drawn["neuron"][0]]
            assert (nearest["groups"], nearest["index"]) == ([NEURON], found[0])


def test_each_feature_names_its_partner_in_the_next_larger_dictionary(base, gathered):
    small, large = (entry.decoder for entry in compared(base).study.entries)
    cosines = unit(small) @ unit(large).T
    data = features_page.payload(gathered, gathered.features, ())
    names = {}
    for feature, shown in zip(gathered.features, data["features"], strict=True):
        entry = feature.chosen.entry
        if entry is None or entry.size == 20:
            assert shown["partner"] is None
        else:
            address, cosine = shown["partner"]
            assert address == f"20/{cosines[feature.chosen.index].argmax()}"
            assert cosine == pytest.approx(cosines[feature.chosen.index].max(), abs=1e-4)
        names[f"{entry.size if entry else 'neuron'}/{feature.chosen.index}"] = feature
    assert len(names) == len(gathered.features)  # what the page's addresses are


@pytest.mark.parametrize("show", [None, "showing:text", "showing:image"])
def test_features_of_own_arrays_are_shown_with_the_rows_that_they_are_strongest_on(
    tmp_path, monkeypatch, show
):
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, D)).astype(np.float32) for n in (300, 200)]
    (tmp_path / "activations").mkdir()
    for name, part in zip("ab", parts, strict=True):
        np.save(tmp_path / "activations" / f"{name}.npy", part)
    fingerprint = Activations.open(tmp_path / "activations").fingerprint
    for size in (4, 6):
        decoder = unit(rng.standard_normal((size, D)))
        prints = {"activations": fingerprint}
        alive = np.ones(size, np.int64)
        write_dictionary(tmp_path / "sae" / f"{size}", decoder, alive, fingerprints=prints)
    (tmp_path / "showing.py").write_text(
        "def text(file, row): return f'{file[-5:]}:{row}'\n"
        "def image(file, row): return b'\\x89PNG' + bytes([row % 256])\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, show=show)
    gallery = top_contexts.gather(tabled(config(tmp_path, contexts=settings)))
    data = features_page.payload(gallery, gallery.features, ())
    assert data["what"] == "row"
    x = np.concatenate(parts)
    for feature, shown in zip(gallery.features, data["features"], strict=True):
        codes = codes_of(feature, x)
        best = np.argsort(-codes)[: SETTINGS.top]
        best = best[codes[best] > 0]
        places = [(("a", i) if i < 300 else ("b", i - 300)) for i in best.tolist()]
        wanted = {
            None: [f"{name}.npy, row {row}" for name, row in places],
            "showing:text": [f"{name}.npy:{row}" for name, row in places],
            "showing:image": [
                "data:image/png;base64," + base64.b64encode(b"\x89PNG" + bytes([r % 256])).decode()
                for _, r in places
            ],
        }[show]
        assert [data["vocabulary"][c[0][0]] for c in shown["top"]] == wanted
        assert feature.largest == pytest.approx(codes.max(), rel=1e-5)
        assert feature.density == pytest.approx((codes > 0).mean())
    assert "rows on which it is most active" in features_page.page(gallery)


@pytest.mark.parametrize("show", ["nowhere:f", "json:nothing", "os.path:exists"])
def test_a_function_that_cannot_show_a_row_is_named(tmp_path, show):
    np.save(tmp_path / "a.npy", np.ones((8, 3), np.float32))
    one = SimpleNamespace(entries=[SimpleNamespace(decoder=np.ones((2, 3)))])
    settings = replace(SETTINGS, show=show)
    with pytest.raises(UserError, match=f"contexts.show={show}: "):
        module.open_rows(Activations.open(tmp_path), one, settings).words([0])


def test_the_report_shows_four_to_six_features_beside_their_neurons(gathered):
    _, page = pages(gathered)
    data = data_of(page)
    shown = [f for f in data["features"] if f["shown"]]
    assert 4 <= len(shown) <= 6
    assert all(f["top"] and f["neuron"] for f in shown)
    assert 'href="features.html"' in page
    assert len(data["features"]) < len(gathered.features)


def test_line_breaks_and_broken_characters_are_printable():
    assert printable("\u00a0a\n\t".encode()) == " a⏎⇥"
    assert printable("é".encode()[:1]) == "\\xc3"
    assert printable("\u202e\x00".encode()) == "\\u202e\\u0000"
