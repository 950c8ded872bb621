"""The loss without single features, and what it says of those that recur."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from analysis_study import directions, unit, write_dictionary
from lm_files import random_model
from rounding import rounding, through

import sparse_dict
from sparse_dict.analysis import study
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, judge
from sparse_dict.analysis.measured import feature_effects as single
from sparse_dict.analysis.measured.feature_effects import Read, measure
from sparse_dict.analysis.measures import alignment
from sparse_dict.analysis.sections import effects
from sparse_dict.config import EffectsConfig, ModelConfig
from sparse_dict.config.sites import Site
from sparse_dict.lm.model import GPT
from sparse_dict.storage import files

D, N_CTX, LAYER, N_VOCAB = 12, 16, 1, 31
MODEL = ModelConfig(n_layers=3, n_heads=2, d_model=8, d_mlp=D, n_ctx=N_CTX)
# Of a mean loss over a few contexts, as a share of it; an effect is a difference of two.
BAR = 2 * rounding(through(MODEL, N_VOCAB) + 6 * N_CTX)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = random_model(MODEL, N_VOCAB)
    with torch.no_grad():
        model.blocks[LAYER].mlp_out.weight[:, 3] = 0  # what neuron 3 does is not heard
    return model


def source_of(model: GPT, skip: int = 0) -> SimpleNamespace:
    text = np.random.default_rng(0).integers(0, N_VOCAB, (40, N_CTX)).astype(np.int32)
    with torch.no_grad():
        (found,) = model.read(torch.from_numpy(text).long(), [Site("mlp_post", LAYER)])
    rows = found[:, skip:].numpy()
    place = SimpleNamespace(sites=(Site("mlp_post", LAYER),), skip_first=skip)
    return SimpleNamespace(
        text=text,
        place=place,
        columns=((0, D),),
        lm=SimpleNamespace(model=model),
        rows=lambda contexts: rows[contexts],
        unit="tokens",
    )


def entries_of(folder, *decoders):
    for seed, decoder in enumerate(decoders):
        write_dictionary(folder / str(seed), decoder, np.full(len(decoder), 1000), seed=seed)
    return study.load(folder).entries


@pytest.mark.parametrize("skip", [0, 5])
def test_an_effect_is_that_of_a_hook_that_takes_the_feature_out(model, tmp_path, skip):
    first, second = entries_of(tmp_path, directions(20, D, 0), directions(20, D, 1))
    source = source_of(model, skip)
    tokens = torch.from_numpy(source.text[:6]).long()

    def hooked(change) -> float:
        handle = model.blocks[LAYER].mlp_out.register_forward_pre_hook(
            lambda _, given: (torch.cat([given[0][:, :skip], change(given[0][:, skip:])], 1),)
        )
        with torch.no_grad():
            logits = model.hidden(tokens[:, :-1]) @ model.embed.weight.T
        handle.remove()
        return float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        )

    def part(entry, feature, x):
        weights = entry.trained.dictionary
        code = torch.relu(x @ torch.from_numpy(weights.W_enc[:, feature]) + weights.b_enc[feature])
        return code[..., None] * torch.from_numpy(entry.decoder[feature])

    rows, contexts = torch.from_numpy(source.rows(slice(0, 6))), np.arange(6)
    read = Read.of(source, contexts)
    whole = read.before.mean()
    assert whole == pytest.approx(hooked(lambda x: x), rel=BAR)
    for feature in range(5):
        want = hooked(lambda x, f=feature: x - part(first, f, x) + part(second, 7, x))
        change = part(second, 7, rows) - part(first, feature, rows)
        rise = read.changes(contexts, [change.numpy()]).mean()
        assert whole + rise == pytest.approx(want, rel=BAR)


def test_a_neuron_that_nobody_reads_has_no_effect_and_a_twin_replaces_its_feature(model, tmp_path):
    neurons = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    first, second = entries_of(tmp_path, neurons, neurons[::-1].copy())
    source = source_of(model)
    kept = tmp_path / "kept"
    table = measure(first, second, source, EffectsConfig(100, 4, 1000, 9), 0, kept)
    table = table.set_index("feature")
    rounded = BAR * Read.of(source, np.arange(len(source.text))).before.mean()
    assert table.loc[[3, D + 3], "ablated"].abs().max() < rounded
    assert table["ablated"].abs().max() > 100 * rounded
    assert table["substituted"].abs().max() < rounded


def test_an_effect_is_a_mean_over_all_tokens_and_of_many_features_some_are_drawn(
    model, tmp_path, monkeypatch
):
    neurons = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    first, second = entries_of(tmp_path, neurons, neurons)
    source = source_of(model)
    kept, all_of_them = tmp_path / "kept", EffectsConfig(100, 1000, 1000, 9)
    table = measure(first, second, source, all_of_them, 0, kept)
    every = table.set_index("feature")
    contexts, rows = np.arange(len(source.text)), source.rows(slice(None))
    read = Read.of(source, contexts)
    original = read.before.mean()
    for feature in (1, 5):
        without = -first.trained.dictionary.encode(rows.reshape(-1, D))[:, feature, None]
        change = (without * first.decoder[feature]).reshape(rows.shape)
        whole = read.changes(contexts, [change]).mean()
        assert every.at[feature, "ablated"] == pytest.approx(whole, abs=BAR * original)
    some = measure(first, second, source, EffectsConfig(7, 1000, 1000, 9), 0, tmp_path / "others")
    assert len(some) == 7
    same = every.loc[some["feature"], "ablated"]
    np.testing.assert_allclose(some["ablated"], same, rtol=0, atol=BAR * original)
    with monkeypatch.context() as patch:
        patch.setattr(single, "MEMORY", 1)  # the model reads the contexts of one feature at a time
        apart = measure(first, second, source, all_of_them, 0, tmp_path / "apart")
    columns = ["ablated", "substituted"]
    np.testing.assert_allclose(apart[columns], table[columns], rtol=0, atol=BAR * original)

    late = replace(all_of_them, minutes=1e-9)  # one feature a call
    few = [measure(first, second, source, late, 0, tmp_path / "late") for _ in range(3)]
    assert [len(part) for part in few] == [1, 2, 3]
    chosen = every.loc[few[-1]["feature"]].reset_index()
    pd.testing.assert_frame_equal(few[-1], chosen[few[-1].columns])

    record = files.read_json(kept)  # as a process leaves it that is killed after five features
    files.write_json(kept, record | {"effects": [[9.0, 9.0]] * 5})
    resumed = measure(first, second, source, all_of_them, 0, kept)
    others = (resumed["ablated"] != 9).to_numpy()
    assert others.sum() == len(table) - 5
    pd.testing.assert_frame_equal(resumed[others], table[others])
    files.write_json(kept, record | {"of": "another"})
    pd.testing.assert_frame_equal(measure(first, second, source, all_of_them, 0, kept), table)


def of_effects(folder, recurrence: np.ndarray, ablated: np.ndarray, *decoders):
    """A study of these decoders, whose first one's features have these effects."""
    entries = entries_of(folder / "sae", *decoders)
    tables = sparse_dict.open_study(folder)
    n = len(recurrence)
    tables.others["effects"] = pd.DataFrame(
        {
            "feature": range(n), "frequency": np.linspace(0.01, 0.5, n), "recurrence": recurrence,
            "ablated": ablated, "substituted": ablated / 2, "cosine": 0.8,
        }
    )  # fmt: skip
    own = single.partners_of(tables)
    spans = [single.overlap(entries[0], other, own) for other in entries[1:]]
    tables.others["spans"] = pd.DataFrame(spans)
    return tables


SIGNAL, SUBSPACES = effects.CLAIMS


@pytest.mark.parametrize(("strong", "verdict"), [(3.0, HOLDS), (0.1, FAILS)])
def test_the_claim_is_on_the_share_of_the_whole_effect(tmp_path, strong, verdict):
    rng = np.random.default_rng(0)
    recurs = np.arange(60) % 2
    ablated = np.where(recurs, strong, 1.0) + rng.normal(0, 0.01, 60)
    decoders = [directions(60, 32, seed) for seed in range(2)]
    tables = of_effects(tmp_path, recurs.astype(float), ablated, *decoders)
    assert judge(SIGNAL, tables).verdict == verdict
    table = tables.others["effects"]
    share = single.by_recurrence(table).set_index("features")["share of effect"]
    assert share["recur"] == pytest.approx(strong / (strong + 1), abs=0.01)
    assert single.correlations(table)["spearman"].iloc[0] * (strong - 1) > 0
    assert single.thirds(table["frequency"]).value_counts().tolist() == [20] * 3
    effects.draw(table)


@pytest.mark.parametrize(("planted", "verdict"), [(True, HOLDS), (False, OPEN)])
def test_features_that_do_not_recur_may_span_the_same_subspace(tmp_path, planted, verdict):
    d, plane = 96, np.linalg.qr(np.random.default_rng(9).standard_normal((96, 30)))[0].T
    decoders = [
        unit(directions(30, 30, seed) @ plane) if planted else directions(30, d, seed)
        for seed in range(2)
    ]
    tables = of_effects(tmp_path, np.zeros(30), np.ones(30), *decoders)
    assert judge(SUBSPACES, tables).verdict == verdict


def test_equal_spans_overlap_wholly_and_orthogonal_ones_not_at_all():
    rows = np.random.default_rng(0).standard_normal((4, 10))
    mixed = np.random.default_rng(1).standard_normal((4, 4)) @ rows
    assert alignment.overlap(rows, mixed) == pytest.approx(1)
    assert alignment.overlap(np.eye(10)[:3], np.eye(10)[5:]) == pytest.approx(0)


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 9), (3, 5, 12), (7, 7, 20)])
def test_the_overlap_of_random_subspaces_has_the_mean_and_variance_of_drawn_ones(n, m, d):
    rng, draws = np.random.default_rng(0), 4000
    found = [
        alignment.overlap(rng.standard_normal((n, d)), rng.standard_normal((m, d)))
        for _ in range(draws)
    ]
    mean, variance = alignment.random_overlap(n, m, d)
    assert np.mean(found) == pytest.approx(mean, abs=4 * np.sqrt(variance / draws))
    # the relative error of a variance is sqrt((kurtosis - 1) / draws), 0.04 of squared normals
    assert np.var(found) == pytest.approx(variance, rel=0.16)


def test_the_largest_dictionary_that_has_partners_is_measured_against_those_of_other_seeds(
    tmp_path,
):
    for size, seeds in ((20, 3), (30, 2), (40, 1)):
        for seed in range(seeds):
            rows = directions(size, 16, 100 * size + seed)
            write_dictionary(
                tmp_path / "sae" / f"{size},{seed}", rows, np.ones(size, int), seed=seed
            )
    own = single.partners_of(sparse_dict.open_study(tmp_path))
    assert {*own["dictionary"], *own["other"]} == {"30,0", "30,1"}


def test_without_a_second_dictionary_nothing_is_claimed(tmp_path):
    write_dictionary(tmp_path / "sae" / "0", directions(30, D, 0), np.ones(30, int))
    tables = sparse_dict.open_study(tmp_path)
    found = [judge(claim, tables) for claim in effects.CLAIMS]
    assert [claim.verdict for claim in found] == [OPEN, OPEN]
    assert "seed=0,1,2" in found[0].command
    assert single.partners_of(tables).empty
