import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from analysis_study import config_of, context_of, unit, write_dictionary
from hydra import compose, initialize_config_dir
from rounding import of_cosines, rounding
from sae_helpers import sae_config
from safetensors.numpy import load_file, save_file

from sparse_dict.activations import stage as harvest_stage
from sparse_dict.activations.store import Activations
from sparse_dict.activations.toy import TRUTH, Toy, correlation_matrix, probabilities
from sparse_dict.analysis import frame, study
from sparse_dict.analysis import stage as analysis_stage
from sparse_dict.analysis.claim import judge
from sparse_dict.analysis.measured import true_features
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.sections import truth
from sparse_dict.config import (
    CONF_DIR,
    HarvestConfig,
    HarvestStageConfig,
    StudyLM,
    ToyData,
    TrackingConfig,
)
from sparse_dict.errors import UserError
from sparse_dict.launch.jobs import typed
from sparse_dict.sae.stage import train_many


def toy_data(**changes):
    values = dict(
        d_in=64, n_features=128, n_active=5.0, decay=0.99, correlated=False, value="uniform"
    )  # fmt: skip
    return ToyData(**values | changes)


def harvest_config(folder, rows=3000, seed=0, dtype="float32", **data):
    return HarvestStageConfig(
        name="toy", study_dir=str(folder), device="cpu", seed=seed,
        tracking=TrackingConfig(mode="disabled", project="p", entity=None, tags=[]),
        lm_dir="nowhere", activations_dir=str(folder / "activations"), cache_dir="nowhere",
        data=toy_data(**data), lm=StudyLM(),
        harvest=HarvestConfig(2, "mlp_post", rows, "validation", 64, 1000, dtype),
    )  # fmt: skip


# --- the data -------------------------------------------------------------------------------------


def test_features_are_unit_vectors_and_probabilities_decay_to_the_wanted_mean():
    toy = Toy(toy_data(), seed=0)
    np.testing.assert_allclose(np.linalg.norm(toy.features, axis=1), 1, rtol=rounding(64))
    p = probabilities(toy.data)
    np.testing.assert_allclose(p[1:] / p[:-1], 0.99)
    assert p.sum() == pytest.approx(5)


@pytest.mark.parametrize("correlated", [False, True])
def test_each_feature_is_active_as_often_as_its_probability_says(correlated):
    toy = Toy(toy_data(correlated=correlated), seed=1)
    n = 100_000
    active = (toy.rows(n)[1] > 0).mean(0)
    p = toy.probabilities
    z = (active - p) / np.sqrt(p * (1 - p) / n)
    assert np.abs(z).max() < 4.5
    assert z.std() == pytest.approx(1, abs=0.25)


def test_correlated_features_are_active_together_more_often_than_chance():
    counts = {c: (Toy(toy_data(correlated=c), 0).rows(50_000)[1] > 0).sum(1) for c in (False, True)}
    p = probabilities(toy_data())
    alone = (p * (1 - p)).sum()  # variance of the number of independent active features
    assert counts[False].var() == pytest.approx(alone, rel=0.03)
    assert counts[True].var() > 2 * alone


def test_pairs_are_active_together_as_a_gaussian_copula_says():
    from scipy.stats import multivariate_normal, norm

    data = toy_data(n_features=8, d_in=4, n_active=2.0, correlated=True)
    toy, n = Toy(data, 3), 400_000
    active = toy.rows(n)[1] > 0
    correlation = toy._factor.T @ toy._factor
    for i, j in ((0, 1), (2, 7)):
        bars = norm.ppf(toy.probabilities[[i, j]])
        cov = [[1, correlation[i, j]], [correlation[i, j], 1]]
        both = multivariate_normal([0, 0], cov).cdf(bars)
        spread = np.sqrt(both * (1 - both) / n)
        assert (active[:, i] & active[:, j]).mean() == pytest.approx(both, abs=4 * spread)


def test_correlation_matrices_are_positive_definite_with_a_unit_diagonal():
    matrix = correlation_matrix(128, np.random.default_rng(0))
    np.testing.assert_allclose(np.diag(matrix), 1)
    assert np.linalg.eigvalsh(matrix)[0] > 0
    assert 0.05 < matrix[np.triu_indices(128, 1)].mean() < 0.2


@pytest.mark.parametrize(("value", "mean"), [("uniform", 1 / 2), ("product", 1 / 4)])
def test_rows_are_sums_of_features_with_values_of_the_stated_law(value, mean):
    toy = Toy(toy_data(value=value), 0)
    x, codes = toy.rows(20_000)
    bar = rounding(128, codes.sum(1).max())
    np.testing.assert_allclose(x, codes.astype(np.float64) @ toy.features, rtol=0, atol=bar)
    values = codes[codes > 0]
    assert values.mean() == pytest.approx(mean, abs=0.005)
    assert values.max() < 1


def test_the_seed_decides_features_and_rows():
    first, same, other = (Toy(toy_data(), seed) for seed in (0, 0, 1))
    assert (first.rows(10)[0] == same.rows(10)[0]).all()
    assert not (first.features == other.features).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "normal"}, r"data\.value"),
        ({"decay": 1.01}, r"data\.decay"),
        ({"n_active": 100.0}, "probability would be"),
        ({"d_in": 0}, r"data\.d_in"),
    ],
)
def test_impossible_data_are_user_errors(change, message):
    with pytest.raises(UserError, match=message):
        toy_data(**change)


# --- the stage ------------------------------------------------------------------------------------


def test_the_harvest_writes_the_rows_and_the_true_features_without_a_language_model(tmp_path):
    config = harvest_config(tmp_path)
    harvest_stage.check(config)
    harvest_stage.run(config)
    found = Activations.open(tmp_path / "activations")
    assert (found.rows, found.d_in) == (3000, 64)
    found.verify()
    toy = Toy(config.data, 0)
    assert (load_file(tmp_path / "activations" / TRUTH)["features"] == toy.features).all()
    rows = found.origins(0, 3000)[:, 0]
    assert sorted(rows) == list(range(3000))
    assert not (rows == np.arange(3000)).all()  # shuffled
    np.testing.assert_array_equal(found.read(0, 3000), toy.rows(3000)[0][rows])


def test_the_same_command_again_changes_nothing_and_another_one_is_refused(tmp_path):
    harvest_stage.run(harvest_config(tmp_path))
    before = (tmp_path / "activations" / "manifest.json").stat().st_mtime_ns
    harvest_stage.run(harvest_config(tmp_path))
    assert (tmp_path / "activations" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"data\.decay is 0\.99 there"):
        harvest_stage.check(harvest_config(tmp_path, decay=0.98))


# --- training -------------------------------------------------------------------------------------


def truth_mmcs(folder, rows, steps, configs, **data):
    """Train dictionaries of fresh rows as stage 3 does; their entries, and MCS of the truth."""
    harvest_stage.run(harvest_config(folder, rows, dtype="float16", **data))
    made = []
    for sae in configs:
        config = sae_config(
            training=dict(
                n_activations=256 * steps, batch_size=256, eval_rows=4096, log_every=1000,
                checkpoint_every=10**6, dead_window=10**6, snapshots=0,
            ),
            **sae,
        )  # fmt: skip
        config.activations_dir = str(folder / "activations")
        config.activations.scaling = "none"
        made.append(config)
    outcomes = train_many(made, [folder / "sae" / str(i) for i in range(len(made))])
    assert not any(isinstance(outcome, Exception) for outcome in outcomes)
    entries = {entry.name: entry for entry in study.load(folder / "sae").entries}
    entries = [entries[str(i)] for i in range(len(made))]
    features = true_features.read(context_of(config_of(folder)))
    return entries, [max_cosine(features, entry.decoder, 512) for entry in entries]


@pytest.mark.slow  # five seconds
def test_a_dictionary_of_the_true_size_finds_the_true_features(tmp_path):
    # The same rows several times: making them takes longer than training on them.
    (entry,), (found,) = truth_mmcs(
        tmp_path, 250_000, 5000, [dict(dict_size=128, l1=1e-3)], correlated=True, value="product"
    )
    assert found.mean() > 0.95
    assert (found > 0.9).mean() > 0.8
    assert json.loads((entry.trained.folder / "cfg.json").read_text())["metadata"] == {
        "hook_name": "unknown"
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_authors_settings_give_what_their_code_gave(tmp_path):
    """d = 64, G = 128, correlated, value U*U, 8,000 steps; their code's numbers in the comments."""
    divided = dict(l1_scaling="dict_size")
    configs = [
        dict(dict_size=128, l1=0.1, **divided),  # MMCS .988, 98 % found, L0 8.3, FVU .065
        dict(dict_size=256, l1=0.316, **divided),  # .997, all found, 86 dead
        dict(dict_size=64, l1=0.1, **divided),  # .707
        dict(dict_size=128, l1=10.0, **divided),  # .30 to .38, all dead
        *(dict(dict_size=size, l1=1e-3) for size in (128, 256, 512, 1024)),  # .994 to .996
    ]
    steps = 8000
    entries, found = truth_mmcs(
        tmp_path, 256 * steps + 4096, steps, configs, correlated=True, value="product"
    )
    mmcs = [float(values.mean()) for values in found]
    assert mmcs[0] == pytest.approx(0.988, abs=0.03)
    assert entries[0].metrics["l0"] == pytest.approx(8.3, rel=0.15)
    assert entries[0].metrics["fvu"] == pytest.approx(0.065, rel=0.15)
    assert mmcs[1] == pytest.approx(0.997, abs=0.03)
    assert mmcs[2] == pytest.approx(0.707, abs=0.03)
    assert 0.3 < mmcs[3] < 0.4
    assert entries[3].metrics["l0"] < 0.01
    assert min(mmcs[4:]) > 0.95


# --- analysis -------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path):
    """A toy harvest and dictionaries that hold half and all of its 40 features."""
    config = harvest_config(tmp_path, n_features=40, d_in=32, n_active=2.0)
    harvest_stage.run(config)
    features = Toy(config.data, 0).features
    fingerprint = Activations.open(tmp_path / "activations").fingerprint
    rng = np.random.default_rng(0)
    for size, part in ((20, features[:20]), (64, features)):
        decoder = unit(rng.standard_normal((size, 32)))
        decoder[: len(part)] = part
        write_dictionary(
            tmp_path / "sae" / str(size), decoder, np.arange(size), eval_rows=100,
            fingerprints={"activations": fingerprint},
        )  # fmt: skip
    return tmp_path


def measured(folder, **changes):
    """The context of a study whose truth was measured."""
    context = context_of(config_of(folder, "truth", **changes))
    frame.measure(context)
    return context


def judged(context):
    return frame.verdicts(context, truth.ANALYSIS)


def test_mmcs_with_the_truth_is_the_mean_over_the_true_features(known):
    context = measured(known)
    features, of = true_features.read(context), context.tables.dictionaries.set_index("size")
    small = context.study.entries[0].decoder
    wanted = np.mean([max(feature @ row for row in small) for feature in features])
    assert of["truth_mmcs"][20] == pytest.approx(wanted, abs=of_cosines(32))
    assert of["truth_found"][20] == 0.5
    assert of["truth_mmcs"][64] == pytest.approx(1, abs=of_cosines(32))
    assert of["mmcs"][20] == pytest.approx(1, abs=of_cosines(32))


def test_correlations_of_the_two_mmcs_are_scipys():
    from scipy import stats

    rng = np.random.default_rng(0)
    larger = rng.random(12)
    table = pd.DataFrame({"mmcs": larger, "truth_mmcs": larger + rng.random(12)})
    table.loc[12] = [np.nan, 0.5]
    known = table.dropna()
    pearson, spearman = true_features.correlations(table)
    x, y = known.iloc[:, 0], known.iloc[:, 1]
    assert pearson.value == pytest.approx(stats.pearsonr(x, y)[0])
    assert spearman.value == pytest.approx(stats.spearmanr(x, y)[0])
    # The bootstrap agrees with the interval of Fisher's transformation, roughly.
    low, high = stats.pearsonr(x, y).confidence_interval()
    assert (pearson.low, pearson.high) == pytest.approx((low, high), abs=0.25)
    assert spearman.low < spearman.value < spearman.high


def test_predictions_are_listed_for_all_for_each_kind_and_for_those_large_enough():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "mmcs": rng.random(16), "truth_mmcs": rng.random(16),
            "family": ["a", "b"] * 8, "size": [8] * 10 + [16] * 6,
        }
    )  # fmt: skip
    found = truth.predictions(table, 16)
    assert found["of"].tolist() == ["all", "a", "b", "16 features or more"]
    assert found["dictionaries"].tolist() == [16, 8, 8, 6]
    one, _ = true_features.correlations(table[table["size"] == 16])
    assert found["Pearson"].iloc[-1] == f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}]"


def test_the_section_writes_its_table_and_heat_maps(known):
    with figures.style():
        section = frame.shown(measured(known), truth.ANALYSIS)
    kinds = [type(block).__name__ for block in section.blocks]
    assert kinds == ["str", "str", "Picture", "Table"]
    assert len(pd.read_csv(known / "analysis" / "partial" / "truth.csv")) == 2


def test_without_known_features_or_with_changed_ones_nothing_is_claimed(known, tmp_path):
    path = known / "activations" / TRUTH
    save_file({"features": np.eye(3, dtype=np.float32)}, path)
    context = measured(known)
    (text,) = frame.shown(context, truth.ANALYSIS).blocks
    assert "not the file that the manifest describes" in text
    assert [claim.verdict for claim in judged(context)] == ["undecided"] * 2
    path.unlink()
    with pytest.raises(UserError, match="does not exist"):
        true_features.read(context)

    (tmp_path / "plain").mkdir()
    np.save(tmp_path / "plain" / "a.npy", np.ones((50, 4), np.float32))
    plain = context_of(config_of(known, activations_dir=str(tmp_path / "plain")))
    fingerprint = Activations.open(tmp_path / "plain").fingerprint
    plain.study.entries[0].metrics["fingerprints"]["activations"] = fingerprint
    with pytest.raises(UserError, match="not known"):
        true_features.read(plain)


def test_the_claims_on_the_truth_follow_from_what_is_known(known):
    context = measured(known)
    found, predicted = judged(context)
    assert found.verdict == "holds"  # the larger one holds all features
    assert "64: 1.000" in found.ours
    assert predicted.verdict == "undecided"
    assert "needs 8" in predicted.ours


def of_mmcs(tables, larger, with_truth):
    """A study with these MMCS, and its verdict on the prediction."""
    row = tables.dictionaries.iloc[[0] * len(larger)]
    many = row.assign(mmcs=larger, truth_mmcs=with_truth)
    return judge(truth.CLAIMS[1], replace(tables, dictionaries=many)).verdict


def test_a_correlation_is_judged_by_its_interval(known):
    tables, rng = measured(known).tables, np.random.default_rng(0)
    x = rng.random(400)
    assert of_mmcs(tables, x, x) == "holds"
    assert of_mmcs(tables, x, -x) == "does not hold"
    assert of_mmcs(tables, x, rng.random(400)) == "does not hold"
    assert of_mmcs(tables, x[:7], x[:7]) == "undecided"


def test_features_that_no_dictionary_finds_or_could_find_are_not_said_to_be_found(
    known, monkeypatch
):
    features = true_features.read(context_of(config_of(known)))
    others = unit(np.random.default_rng(1).standard_normal((64, 32)))
    monkeypatch.setattr(true_features, "read", lambda _: others)
    assert judged(measured(known))[0].verdict == "does not hold"
    monkeypatch.setattr(true_features, "read", lambda _: np.concatenate([features, others]))
    assert "no dictionary has 104 features" in judged(measured(known))[0].ours


def composed(script, folder, *overrides):
    """The config that a script would be given for the toy experiment."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        common = ["experiment=toy", f"study_dir={folder}", "tracking.mode=disabled"]
        return typed(compose(script, [*common, *overrides]))


@pytest.mark.slow  # two seconds
def test_the_toy_experiment_of_the_three_stages_makes_a_study(tmp_path):
    size = ["harvest.n_tokens=4096", "data.d_in=16", "data.n_features=32"]
    harvest_stage.run(composed("harvest", tmp_path, *size))
    (tmp_path / "activations" / "partial").mkdir()  # as a kill may leave it at the very end
    harvest_stage.run(composed("harvest", tmp_path, *size))
    assert not (tmp_path / "activations" / "partial").exists()
    grid = [(size, l1) for size in (16, 32, 48) for l1 in (1e-3, 1e-2)]
    short = ["training.n_activations=3072", "training.eval_rows=1024"]
    configs = [
        composed("train_sae", tmp_path, f"sae.dict_size={size}", f"sae.l1={l1}", *short)
        for size, l1 in grid
    ]
    assert {config.activations.scaling for config in configs} == {"none"}
    train_many(configs, [tmp_path / "sae" / f"{size},{l1}" for size, l1 in grid])
    analysis_stage.run(composed("analyze", tmp_path, "analysis=[claims,truth]"))
    page = (tmp_path / "analysis" / "report.html").read_text()
    assert "Against the true features" in page
    assert "as a predictor" in page
    assert "sparse sums of 32 known random directions in 16 dimensions" in page
    claims = json.loads((tmp_path / "analysis" / "claims.json").read_text())["claims"]
    assert {"truth_found", "truth_predicted"} <= {claim["key"] for claim in claims}
    assert len(pd.read_csv(tmp_path / "analysis" / "truth.csv")) == 6
