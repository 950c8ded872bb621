import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_dict.analysis.measures import random_directions as rd


@pytest.mark.parametrize(
    ("m", "mean"), [(512, 0.267), (1024, 0.283), (2048, 0.301), (4096, 0.314), (8192, 0.328)]
)
def test_the_exact_mean_is_the_measured_one_in_128_dimensions(m: int, mean: float):
    assert rd.max_mean(128, m) == pytest.approx(mean, abs=0.003)


@given(m=st.integers(1, 5000))
def test_in_three_dimensions_the_cosine_is_uniform_and_the_mean_has_a_closed_form(m: int):
    t = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(rd.cosine_cdf(t, 3), (1 + t) / 2, atol=1e-12)
    assert rd.max_mean(3, m) == pytest.approx((m - 1) / (m + 1), abs=1e-6)


def test_in_two_dimensions_the_cosine_follows_the_arcsine_law():
    t = np.linspace(-1, 1, 21)
    np.testing.assert_allclose(rd.cosine_cdf(t, 2), 1 - np.arccos(t) / np.pi, atol=1e-9)


@given(d=st.integers(8, 300), m=st.integers(1, 20_000))
def test_the_density_integrates_to_the_distribution_function(d: int, m: int):
    t = np.linspace(-1, 1, 20_001)
    density = rd.max_pdf(t, d, m)
    area = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * (t[1] - t[0]))])
    np.testing.assert_allclose(area, rd.max_cdf(t, d, m), atol=1e-3)


def test_simulated_random_dictionaries_follow_the_exact_law():
    rng = np.random.default_rng(3)
    values = np.concatenate(
        [
            (rd.unit_vectors(500, 64, rng) @ rd.unit_vectors(300, 64, rng).T).max(axis=1)
            for _ in range(10)
        ]
    )
    assert values.mean() == pytest.approx(rd.max_mean(64, 300), abs=0.003)
    distance = np.abs(np.sort(rd.mcs_cdf(values, 64, [300])) - np.arange(len(values)) / len(values))
    assert distance.max() < 0.04


def test_the_law_of_an_average_over_dictionaries_is_that_of_the_simulation():
    rng = np.random.default_rng(4)
    rows = rd.unit_vectors(4000, 16, rng)
    values = np.mean(
        [(rows @ rd.unit_vectors(m, 16, rng).T).max(axis=1) for m in (20, 50, 90)], axis=0
    )
    sizes = [20, 50, 90]
    assert values.mean() == pytest.approx(rd.mean_mcs(16, sizes), abs=0.03)
    t = np.linspace(-1, 1, 8001)
    density = rd.mcs_pdf(t, 16, sizes)
    assert density.sum() * (t[1] - t[0]) == pytest.approx(1, abs=1e-3)
    assert (t * density).sum() * (t[1] - t[0]) == pytest.approx(rd.mean_mcs(16, sizes), abs=1e-3)
    assert rd.mcs_cdf(np.array([1.0]), 16, sizes)[0] == pytest.approx(1)


def test_without_a_larger_dictionary_there_is_no_random_expectation():
    assert np.isnan(rd.mean_mcs(128, []))
