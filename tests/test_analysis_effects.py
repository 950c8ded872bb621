"""The loss without single features, and what it says of those that recur."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from analysis_study import compared, directions, unit, write_dictionary
from rounding import rounding, through

from sparse_dict.analysis import effects, study
from sparse_dict.analysis.analyses import effects as analysis
from sparse_dict.analysis.claims import FAILS, HOLDS, OPEN
from sparse_dict.analysis.effects import Compared, loss, measure
from sparse_dict.analysis.seeds import matched
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
    torch.manual_seed(0)
    model = GPT(MODEL, N_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
        model.blocks[LAYER].mlp_out.weight[:, 3] = 0  # what neuron 3 does is not heard
    return model.eval()


def source_of(model: GPT, skip: int = 0) -> SimpleNamespace:
    text = np.random.default_rng(0).integers(0, N_VOCAB, (40, N_CTX)).astype(np.int32)
    with torch.no_grad():
        (found,) = model.read(torch.from_numpy(text).long(), [Site("mlp_post", LAYER)])
    rows = found[:, skip:].numpy()
    place = SimpleNamespace(sites=(Site("mlp_post", LAYER),), skip_first=skip)
    return SimpleNamespace(
        text=text,
        place=place,
        lm=SimpleNamespace(model=model),
        rows=lambda contexts: rows[contexts],
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
    assert loss(source, contexts, None) == pytest.approx(hooked(lambda x: x), rel=BAR)
    for feature in range(5):
        want = hooked(lambda x, f=feature: x - part(first, f, x) + part(second, 7, x))
        change = part(second, 7, rows) - part(first, feature, rows)
        assert loss(source, contexts, change.numpy()) == pytest.approx(want, rel=BAR)


def test_a_neuron_that_nobody_reads_has_no_effect_and_a_twin_replaces_its_feature(model, tmp_path):
    neurons = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    first, second = entries_of(tmp_path, neurons, neurons[::-1].copy())
    source = source_of(model)
    pair = Compared(first, [matched(first, second)])
    table = measure(pair, source, EffectsConfig(100, 4, 1000, 9), 0, tmp_path / "kept").set_index(
        "feature"
    )
    assert (table["recurrence"] == 1).all()
    rounded = BAR * loss(source, np.arange(len(source.text)), None)
    assert table.loc[[3, D + 3], "ablated"].abs().max() < rounded
    assert table["ablated"].abs().max() > 100 * rounded
    assert table["substituted"].abs().max() < rounded


def test_an_effect_is_a_mean_over_all_tokens_and_of_many_features_some_are_drawn(model, tmp_path):
    neurons = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    first, second = entries_of(tmp_path, neurons, neurons)
    source = source_of(model)
    pair = Compared(first, [matched(first, second)])
    kept, all_of_them = tmp_path / "kept", EffectsConfig(100, 1000, 1000, 9)
    table = measure(pair, source, all_of_them, 0, kept)
    every = table.set_index("feature")
    contexts, rows = np.arange(len(source.text)), source.rows(slice(None))
    original = loss(source, contexts, None)
    for feature in (1, 5):
        without = -first.trained.dictionary.encode(rows.reshape(-1, D))[:, feature, None]
        change = (without * first.decoder[feature]).reshape(rows.shape)
        whole = loss(source, contexts, change) - original
        assert every.at[feature, "ablated"] == pytest.approx(whole, abs=BAR * original)
    some = measure(pair, source, EffectsConfig(7, 1000, 1000, 9), 0, tmp_path / "others")
    assert len(some) == 7
    same = every.loc[some["feature"], "ablated"]
    np.testing.assert_allclose(some["ablated"], same, rtol=0, atol=BAR * original)

    late = replace(all_of_them, minutes=1e-9)  # one feature a call
    few = [measure(pair, source, late, 0, tmp_path / "late") for _ in range(3)]
    assert [len(part) for part in few] == [1, 2, 3]
    chosen = every.loc[few[-1]["feature"]].reset_index()
    pd.testing.assert_frame_equal(few[-1], chosen[few[-1].columns])

    record = files.read_json(kept)  # as a process leaves it that is killed after five features
    files.write_json(kept, record | {"effects": [[9.0, 9.0]] * 5})
    resumed = measure(pair, source, all_of_them, 0, kept)
    others = (resumed["ablated"] != 9).to_numpy()
    assert others.sum() == len(table) - 5
    pd.testing.assert_frame_equal(resumed[others], table[others])
    files.write_json(kept, record | {"of": "another"})
    pd.testing.assert_frame_equal(measure(pair, source, all_of_them, 0, kept), table)


def table_of(recurrence: np.ndarray, ablated: np.ndarray) -> pd.DataFrame:
    n = len(recurrence)
    return pd.DataFrame(
        {
            "feature": range(n), "frequency": np.linspace(0.01, 0.5, n), "recurrence": recurrence,
            "ablated": ablated, "substituted": ablated / 2, "cosine": 0.8,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("strong", "verdict"), [(3.0, HOLDS), (0.1, FAILS)])
def test_the_claim_is_on_the_share_of_the_whole_effect(tmp_path, strong, verdict):
    rng = np.random.default_rng(0)
    recurs = np.arange(60) % 2
    table = table_of(recurs.astype(float), np.where(recurs, strong, 1.0) + rng.normal(0, 0.01, 60))
    decoders = [unit(directions(60, 32, seed)) for seed in range(2)]
    entries_of(tmp_path, *decoders)
    context = compared(tmp_path, "effects")
    context.__dict__["effects"] = (table, 1000)
    signal, _ = analysis.claims(context)
    assert signal.verdict == verdict
    share = analysis.by_recurrence(table).set_index("features")["share of effect"]
    assert share["recur"] == pytest.approx(strong / (strong + 1), abs=0.01)
    assert analysis.correlations(table)["spearman"].iloc[0] * (strong - 1) > 0
    assert set(np.bincount(analysis.thirds(table["frequency"]))) == {20}
    analysis.drawn(table)


@pytest.mark.parametrize(("planted", "verdict"), [(True, HOLDS), (False, OPEN)])
def test_features_that_do_not_recur_may_span_the_same_subspace(tmp_path, planted, verdict):
    d, plane = 96, np.linalg.qr(np.random.default_rng(9).standard_normal((96, 30)))[0].T
    decoders = [
        unit(directions(30, 30, seed) @ plane) if planted else directions(30, d, seed)
        for seed in range(2)
    ]
    entries_of(tmp_path, *decoders)
    context = compared(tmp_path, "effects")
    context.__dict__["effects"] = (table_of(np.zeros(30), np.ones(30)), 1000)
    _, spans = analysis.claims(context)
    assert spans.verdict == verdict


def test_equal_spans_overlap_wholly_and_orthogonal_ones_not_at_all():
    rows = np.random.default_rng(0).standard_normal((4, 10))
    mixed = np.random.default_rng(1).standard_normal((4, 4)) @ rows
    assert analysis.span_overlap(rows, mixed) == pytest.approx(1)
    assert analysis.span_overlap(np.eye(10)[:3], np.eye(10)[5:]) == pytest.approx(0)


def test_without_a_second_dictionary_nothing_is_claimed(tmp_path):
    entries_of(tmp_path, directions(30, D, 0))
    context = compared(tmp_path, "effects")
    assert [claim.verdict for claim in analysis.claims(context)] == [OPEN, OPEN]
    assert "-m seed=0,1,2" in str(analysis.section(context).blocks)
    assert effects.largest(context.comparison.main, context.row_pairs) is None
