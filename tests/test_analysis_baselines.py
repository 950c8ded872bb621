import json
import shutil
import threading

import numpy as np
import pandas as pd
import pytest
from analysis_study import config_of, context_of, unit, write_dictionary
from conftest import torch_threads
from rounding import of_cosines, rounding
from scipy import stats

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import frame, study
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.measures.bases import at_sparsity, fit, kurtosis, mmcs_between, powers
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.curves import curves
from sparse_dict.analysis.sections import baselines
from sparse_dict.config import BASELINES, BaselinesConfig
from sparse_dict.errors import UserError

D = 12
SETTINGS = BaselinesConfig(methods=list(BASELINES), rows=1500, ks=[1, 4, D, 99])


def mixed(n, seed=0):
    """Rows (n, D) of D independent, heavy-tailed, positive sources, and their directions."""
    rng = np.random.default_rng(7)
    directions = unit(rng.standard_normal((D, D)))
    sources = np.random.default_rng(seed).exponential(size=(n, D)) ** 1.5
    return (sources @ directions).astype(np.float32), directions


def fvu_of(x, found):
    return float(np.square(x - found).sum() / np.square(x - x.mean(0)).sum())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of activations and a study of two seeds: one perfect, one arbitrary dictionary."""
    base = tmp_path_factory.mktemp("study")
    x, _ = mixed(4000)
    (base / "activations").mkdir()
    np.save(base / "activations" / "a.npy", x)
    fingerprint = Activations.open(base / "activations").fingerprint
    both = np.concatenate([np.eye(D), -np.eye(D)]).astype(np.float32)
    other = unit(np.random.default_rng(1).standard_normal((2 * D, D)))
    for seed, decoder in enumerate((both, other)):
        write_dictionary(
            base / "sae" / f"seed={seed}", decoder, np.ones(2 * D, np.int64), seed=seed,
            eval_rows=1000, fingerprints={"activations": fingerprint},
        )  # fmt: skip
    return base


@pytest.fixture(scope="module")
def measured(made):
    return context_of(config_of(made, baselines=SETTINGS)).once(baselines.fitted)


def test_kurtosis_is_that_of_scipy_and_of_the_laws_it_is_known_for():
    rng = np.random.default_rng(0)
    p = 0.05
    codes = np.stack(
        [rng.standard_normal(400_000), rng.laplace(size=400_000), rng.random(400_000) < p], axis=1
    ).astype(np.float32)
    found = kurtosis(sum(powers(part) for part in np.array_split(codes, 7)), len(codes))
    np.testing.assert_allclose(
        found, stats.kurtosis(codes.astype(np.float64)), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(found, [0, 3, (1 - 6 * p * (1 - p)) / (p * (1 - p))], atol=0.4)


def test_kurtosis_of_a_feature_that_never_varies_is_not_a_number():
    assert np.isnan(kurtosis(powers(np.array([[0, 1], [0, 1]], np.float32)), 2)).all()


@pytest.mark.parametrize("method", ["neurons", "random", "pca", "ica"])
def test_a_complete_basis_with_all_its_codes_reconstructs_exactly(method):
    x, _ = mixed(2000)
    (found,) = fit(method, x, 0).sparse(x, [D])
    np.testing.assert_allclose(found, x, atol=2e-4)


def test_the_neuron_basis_leaves_the_squares_of_the_deviations_that_it_drops():
    x, _ = mixed(500)
    basis = fit("neurons", x, 0)
    smallest = np.sort((x - x.mean(0)) ** 2, axis=1)
    for k, found in zip((1, 3, 8), basis.sparse(x, (1, 3, 8)), strict=True):
        wanted = smallest[:, : D - k].sum() / smallest.sum()
        assert fvu_of(x, found) == pytest.approx(wanted, rel=1e-4)


def test_pca_has_the_directions_of_the_singular_value_decomposition():
    x, _ = mixed(2000)
    _, _, rows = np.linalg.svd(x - x.mean(0, dtype=np.float64), full_matrices=False)
    cosines = np.abs((fit("pca", x, 0).directions * rows).sum(1))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_ica_finds_the_directions_of_independent_sources_and_pca_does_not():
    x, directions = mixed(8000)

    def agreement(method):
        cosines = np.abs(directions @ fit(method, x, 0).directions.T)
        return cosines.max(1).min()

    assert agreement("ica") > 0.98
    assert agreement("pca") < 0.9


def test_ica_leaves_out_dimensions_in_which_nothing_varies():
    x, _ = mixed(2000)
    x[:, 3] = 0.5
    basis = fit("ica", x, 0)
    assert basis.directions.shape == (D - 1, D)
    (found,) = basis.sparse(x, [D])
    np.testing.assert_allclose(found, x, atol=2e-4)


def test_nmf_has_codes_and_directions_without_a_sign():
    x, _ = mixed(1000)
    basis = fit("nmf", x, 0)
    codes = basis.encode(mixed(200, seed=1)[0])
    assert codes.min() >= 0
    assert basis.directions.min() >= 0
    np.testing.assert_allclose(np.linalg.norm(basis.directions, axis=1), 1, atol=1e-5)
    (found,) = basis.sparse(x, [D])
    assert fvu_of(x, found) < 0.2


def test_no_more_than_k_codes_of_a_row_are_used():
    x, _ = mixed(400)
    basis = fit("random", x, 0)
    for k, found in zip((1, 5), basis.sparse(x, (1, 5)), strict=True):
        used = np.abs((found - basis.offset) @ basis.directions.T) > 1e-4
        assert (used.sum(1) == k).all()


def test_opposite_directions_agree_but_not_for_nmf():
    x, _ = mixed(1000)
    pca, nmf = fit("pca", x, 0), fit("nmf", x, 0)
    for basis, wanted in ((pca, 1.0), (nmf, 0.0)):
        mirrored = bases.Basis(-basis.directions, basis.offset, basis.project, basis.signed)
        found = mmcs_between(basis, mirrored)
        # without a sign all products are zero or less
        assert found == pytest.approx(1.0, abs=of_cosines(D)) if wanted else found <= 0


def test_too_few_rows_are_a_user_error():
    with pytest.raises(UserError, match="20 rows are too few"):
        fit("pca", mixed(20)[0], 0)


def test_a_perfect_dictionary_has_no_error_and_an_arbitrary_one_its_own(made, measured):
    x = Activations.open(made / "activations").read(3250, 4000)
    rows = measured.dictionaries.set_index("seed")
    whole = measured.deviations.sum()
    assert whole == pytest.approx(((x - x.mean(0)) ** 2).sum(), rel=1e-5)
    assert measured.errors["seed=0"].sum() < rounding(2 * D) ** 2 * whole
    other = study.load(made / "sae").entries[1].trained.dictionary
    codes = np.maximum(x @ other.W_enc, 0)
    error = measured.errors["seed=1"].sum() / whole
    assert error == pytest.approx(fvu_of(x, codes @ other.W_dec), rel=1e-4)
    kurtosis = np.nanmedian(stats.kurtosis(codes.astype(np.float64)))
    assert rows["kurtosis"][1] == pytest.approx(kurtosis, rel=1e-4)


def test_baselines_are_measured_on_rows_that_they_were_not_fitted_to(made, measured):
    found = Activations.open(made / "activations")
    assert (measured.summary[["fitted_rows", "rows"]] == 750).all(axis=None)
    basis = fit("pca", found.read(0, 750), 0)
    x = found.read(3250, 4000)
    (wanted,) = basis.sparse(x, [4])
    front = measured.front.query("baseline == 'PCA'").set_index("l0")["fvu"]
    assert front[4] == pytest.approx(fvu_of(x, wanted), rel=1e-4)
    assert list(front.index) == sorted({1, 4, D, 7, 8})  # the dictionaries' L0 is 7.5
    between = (front[7] + front[8]) / 2
    assert measured.dictionaries["fvu_pca"].to_numpy() == pytest.approx(between)


def test_both_halves_are_fitted_at_the_same_time(made, monkeypatch):
    both = threading.Barrier(2, timeout=60)

    def fit(method, x, seed):
        both.wait()  # breaks if the other half waits for this one
        return bases.neurons(x.mean(0))

    monkeypatch.setattr(bases, "fit", fit)
    settings = BaselinesConfig(methods=["neurons"], rows=1500, ks=[1])
    with torch_threads(2):
        found = context_of(config_of(made, baselines=settings)).once(baselines.fitted)
    assert [*found.bases] == ["neurons"]


def test_a_dictionary_has_one_fvu_and_one_l0_in_a_report(made, measured):
    for row, entry in zip(
        measured.dictionaries.itertuples(), study.load(made / "sae").entries, strict=True
    ):
        assert (row.fvu, row.l0) == (entry.metrics["fvu"], entry.metrics["l0"])


@pytest.mark.parametrize("method", ["neurons", "random", "pca", "ica"])
def test_the_errors_of_rows_are_those_of_their_sparse_reconstructions(method):
    x, _ = mixed(300)
    basis, ks = fit(method, x, 0), [1, 3, D]
    found = basis.errors(x, basis.encode(x), ks)
    wanted = [np.square(made - x, dtype=np.float64).sum(1) for made in basis.sparse(x, ks)]
    bar = rounding(4 * D, float(np.square(x).sum(1).max()))  # what is left when all is explained
    np.testing.assert_allclose(found, np.transpose(wanted), rtol=1e-4, atol=bar)


@pytest.mark.parametrize(("l0", "wanted"), [(2, 10), (3, 7), (4, 4), (7, 1), (0.5, 10), (9, 0)])
def test_a_curve_is_read_off_between_the_whole_numbers_of_codes(l0, wanted):
    assert at_sparsity([2, 4, 8], np.array([[10.0, 4.0, 0.0]]), l0) == wanted


def test_sites_that_were_scaled_apart_weigh_alike_in_bases_too(tmp_path):
    x, _ = mixed(3000)
    balance = np.repeat(np.float32([100, 1]), D // 2)
    halves = [(x * balance)[:1500] / balance, x[:1500]]
    one, other = (fit("pca", rows, 0) for rows in halves)
    for k, found in zip((2, D), one.scaled(balance).sparse(x * balance, (2, D)), strict=True):
        (wanted,) = other.sparse(x, [k])
        np.testing.assert_allclose(found / balance, wanted, rtol=1e-3, atol=1e-4)


def test_halves_agree_on_the_neurons_and_on_ica_more_than_on_random_directions(measured):
    found = measured.summary.set_index("baseline")["mmcs_between_halves"]
    assert found["neuron basis"] == 1
    assert found["ICA"] > 0.97
    assert found["random directions"] < 0.75


def test_dictionaries_are_compared_between_seeds_where_there_are_several(made, measured):
    first, second = (entry.decoder for entry in study.load(made / "sae").entries)
    wanted = (first @ second.T).max(1).mean()
    assert measured.dictionaries["mmcs_between_seeds"][0] == pytest.approx(wanted, rel=1e-5)


def test_lines_join_levels_of_what_was_swept_and_kinds_have_markers_of_their_own():
    frame = pd.DataFrame(
        {
            "family": ["topk"] * 3 + ["relu"] * 2, "size": 8, "seed": 0, "l1": 0.0,
            "level": [8, 2, 4, 1, 2], "l0": [8.0, 2.0, 4.0, 3.0, 5.0],
            "fvu": [0.1, 0.3, 0.2, 0.4, 0.3],
        }
    )  # fmt: skip
    figure = curves(frame, None, "fvu", "")
    relu, topk = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert list(topk.get_xdata()) == [2, 4, 8]
    assert relu.get_marker() != topk.get_marker()
    labels = {text.get_text() for text in figure.axes[0].get_legend().get_texts()}
    assert {"relu", "topk"} <= labels


def section(made, **changes):
    context = context_of(config_of(made, **{"baselines": SETTINGS, **changes}))
    frame.measure(context)
    with figures.style():
        return frame.shown(context, baselines.ANALYSIS).blocks, context.tables.others


def test_the_section_holds_a_figure_and_tables_that_are_also_on_disk(made):
    blocks, others = section(made)
    kinds = [type(block).__name__ for block in blocks]
    assert kinds == ["str", "Picture", "Table", "Table"]
    assert set(others["baselines"]["baseline"]) == set(bases.LABELS.values())
    assert len(others["baselines_matched"]) == 2


def test_without_the_activations_the_section_says_what_is_missing(made, tmp_path):
    np.save(tmp_path / "a.npy", mixed(3000, seed=5)[0])
    for folder, why in ((made / "none", "does not exist"), (tmp_path, "other activations")):
        (text,), others = section(made, activations_dir=str(folder))
        assert why in text
        assert not others


def test_the_activations_are_found_where_the_dictionaries_recorded_them(made, tmp_path):
    """If they are the same; what else lies there is named with its fingerprint."""
    shutil.copytree(made / "activations", tmp_path / "rows")
    shutil.copytree(made / "sae", tmp_path / "study" / "sae")
    for path in (tmp_path / "study" / "sae").glob("*/metrics.json"):
        record = json.loads(path.read_text())
        record["config"]["activations_dir"] = str(tmp_path / "rows")
        path.write_text(json.dumps(record))
    settings = config_of(tmp_path / "study", baselines=SETTINGS)
    found = context_of(settings).activations
    assert found.folder == tmp_path / "rows"
    np.save(tmp_path / "rows" / "more.npy", mixed(100, seed=6)[0])
    with pytest.raises(UserError) as refused:
        _ = context_of(settings).activations
    study = str(tmp_path / "study" / "activations")
    assert f"{study} does not exist" in str(refused.value)
    assert f"{tmp_path / 'rows'} (fingerprint " in str(refused.value)
    assert f"(fingerprint {found.fingerprint})" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["umap"]}, "umap"),
        ({"ks": []}, "ks"),
        ({"ks": [0]}, "ks"),
        ({"rows": 0}, "rows"),
    ],
)
def test_settings_out_of_range_are_user_errors(change, message):
    with pytest.raises(UserError, match=message):
        BaselinesConfig(**{**vars(SETTINGS), **change})


def test_ica_and_nmf_take_fewer_of_wide_rows_and_are_left_out_of_the_widest(monkeypatch, caplog):
    assert [bases.most_rows(d) for d in (12, 128, 256)] == [1 << 16, 1 << 16, 1 << 14]
    assert bases.affordable(list(BASELINES), 512) == list(BASELINES)
    with caplog.at_level("INFO"):
        assert bases.affordable(list(BASELINES), 2112) == ["neurons", "random", "pca"]
        monkeypatch.setattr(bases, "WIDEST", 2)
        x, _ = mixed(4000)
        few = fit("ica", x, 0)
    assert caplog.messages == [
        "ICA and NMF left out: rows of 2,112 values are too wide for them",
        "ICA: fitted on the first 1,820 rows",
    ]
    np.testing.assert_array_equal(few.directions, fit("ica", x[:1820], 0).directions)


def test_rows_too_wide_for_every_method_leave_the_section_empty_with_the_reason(made, monkeypatch):
    monkeypatch.setattr(bases, "WIDEST", 0.01)
    blocks, _ = section(made, baselines=BaselinesConfig(methods=["ica"], rows=1500, ks=[1]))
    assert blocks == ["This part is missing: rows of 12 values are too wide for these methods."]


def test_a_method_left_out_is_named_beside_those_that_were_made(made, monkeypatch):
    monkeypatch.setattr(bases, "WIDEST", 0.01)
    blocks, _ = section(made)
    (picture,) = (block for block in blocks if type(block).__name__ == "Picture")
    assert picture.caption.endswith("ICA and NMF would take too long on rows of 12 values.")
