import numpy as np
import pytest

from sparse_dict.analysis.measures import bimodality, random_directions
from sparse_dict.analysis.measures.bimodality import (
    dip_test,
    fit_mixture,
    shared_excess,
)


def test_one_hump_is_not_rejected_and_two_are():
    rng = np.random.default_rng(0)
    assert dip_test(rng.normal(0.3, 0.03, 400))[1] > 0.2
    assert dip_test(np.r_[rng.normal(0.3, 0.03, 200), rng.normal(0.95, 0.02, 200)])[1] == 0.001


def test_p_values_of_uniform_samples_are_spread_evenly():
    rng = np.random.default_rng(1)
    p = [dip_test(rng.random(100))[1] for _ in range(200)]
    assert 0.4 < np.mean(p) < 0.6
    assert np.mean(np.array(p) < 0.1) < 0.2


def test_the_rescaled_simulation_of_large_samples_agrees_with_the_direct_one(monkeypatch):
    values = np.random.default_rng(5).random(900)
    _, direct = dip_test(values)
    monkeypatch.setattr(bimodality, "LARGEST_SIMULATED", 300)
    assert dip_test(values)[1] == pytest.approx(direct, abs=0.06)


def test_an_empty_sample_has_no_dip():
    assert all(np.isnan(dip_test(np.array([]))))


def test_the_mixture_finds_both_humps():
    rng = np.random.default_rng(2)
    fit = fit_mixture(np.r_[rng.normal(0.3, 0.03, 700), rng.normal(0.95, 0.02, 300)])
    assert fit["lower hump"] == pytest.approx(0.3, abs=0.01)
    assert fit["upper hump"] == pytest.approx(0.95, abs=0.01)
    assert fit["upper weight"] == pytest.approx(0.3, abs=0.01)
    assert fit["separation"] == pytest.approx(0.65 * np.sqrt(2 / (0.03**2 + 0.02**2)), rel=0.1)
    assert fit["BIC gain"] > 100


def test_one_gaussian_does_not_call_for_a_second_one():
    assert fit_mixture(np.random.default_rng(4).normal(0.3, 0.03, 500))["BIC gain"] < 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_excess_over_the_random_curve_is_the_share_of_shared_features(share: float):
    rng = np.random.default_rng(6)
    k = int(share * 4000)
    rows = random_directions.unit_vectors(4000 - k, 64, rng)
    low = (rows @ random_directions.unit_vectors(256, 64, rng).T).max(axis=1)
    values = np.r_[low, np.full(k, 0.97)]
    found = shared_excess(values, random_directions.mcs_cdf(values, 64, [256]))
    assert found == pytest.approx(share, abs=0.04)
