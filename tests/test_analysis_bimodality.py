import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sparse_dict.analysis.measures import bimodality, random_directions
from sparse_dict.analysis.measures.bimodality import (
    dip_statistic,
    dip_test,
    fit_mixture,
    shared_excess,
)


def dip_by_linear_programming(x: np.ndarray) -> float:
    """The definition: the best unimodal distribution, a linear programme for each mode.

    Variables: heights left and right of every value (they differ at the mode only) and the
    distance; slopes rise up to the mode and fall after it.
    """
    x, counts = np.unique(x, return_counts=True)
    k, total = len(x), counts.sum()
    after = np.cumsum(counts) / total
    before = after - counts / total
    best = np.inf
    for mode in range(k):
        a, b = [], []

        def constrain(terms: dict[int, float], bound: float, a=a, b=b) -> None:
            row = np.zeros(2 * k + 1)
            for index, factor in terms.items():
                row[index] = factor
            a.append(row)
            b.append(bound)

        left, right, distance = range(k), range(k, 2 * k), 2 * k
        for i in range(k):
            for height, value in ((left[i], before[i]), (right[i], after[i])):
                constrain({height: 1, distance: -1}, value)
                constrain({height: -1, distance: -1}, -value)
            if i != mode:
                constrain({left[i]: 1, right[i]: -1}, 0)
                constrain({left[i]: -1, right[i]: 1}, 0)
            constrain({left[i]: 1, right[i]: -1}, 0)
        for i in range(k - 1):
            constrain({right[i]: 1, left[i + 1]: -1}, 0)
        for i in range(1, k - 1):
            if i == mode:
                continue
            sign = 1 if i < mode else -1
            u, v = x[i] - x[i - 1], x[i + 1] - x[i]
            # slope before <= slope after, left of the mode; the other way round on its right
            constrain(
                {left[i]: sign / u + sign / v, right[i - 1]: -sign / u, left[i + 1]: -sign / v}, 0
            )
        cost = np.zeros(2 * k + 1)
        cost[distance] = 1
        result = linprog(cost, A_ub=np.array(a), b_ub=b, bounds=[(0, 1)] * (2 * k) + [(0, 1)])
        best = min(best, result.fun)
    return best


@given(n=st.integers(1, 200))
def test_equally_spaced_points_have_the_smallest_dip(n: int):
    assert dip_statistic(np.arange(n) * 0.1) == pytest.approx(1 / (2 * n))


@given(n=st.integers(1, 50))
def test_two_equal_point_masses_have_the_largest_dip(n: int):
    assert dip_statistic(np.repeat([0.0, 1.0], n)) == pytest.approx(0.25)


@given(st.lists(st.integers(0, 30), min_size=2, max_size=9, unique=True))
@settings(max_examples=25, deadline=None)
def test_the_dip_of_a_small_sample_is_the_optimum_of_a_linear_programme(values: list[int]):
    x = np.array(values, dtype=float)
    assert dip_statistic(x) == pytest.approx(
        max(dip_by_linear_programming(x), 1 / (2 * len(x))), abs=1e-7
    )


@given(
    st.lists(st.integers(-50, 50), min_size=1, max_size=60),
    st.floats(0.1, 10), st.floats(-5, 5),
)  # fmt: skip
def test_the_dip_is_the_same_after_shifting_stretching_or_mirroring(values, scale, shift):
    x = np.array(values, dtype=float)
    dip = dip_statistic(x)
    assert dip_statistic(shift + scale * x) == pytest.approx(dip, abs=1e-9)
    assert dip_statistic(-x) == pytest.approx(dip, abs=1e-9)
    assert 1 / (2 * len(x)) - 1e-12 <= dip <= 0.25 + 1e-12 or len(x) == 1


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
    assert fit is not None
    assert fit.means == pytest.approx((0.3, 0.95), abs=0.01)
    assert fit.weights == pytest.approx((0.7, 0.3), abs=0.01)
    assert fit.sds == pytest.approx((0.03, 0.02), abs=0.01)
    assert fit.bic_gain > 100
    assert fit.separation > 10


def test_the_log_likelihood_is_that_of_the_fitted_density():
    x = np.random.default_rng(3).random(50)
    fit = fit_mixture(x)
    assert fit is not None
    density = sum(
        w * np.exp(-0.5 * ((x - m) / s) ** 2) / (s * np.sqrt(2 * np.pi))
        for w, m, s in zip(fit.weights, fit.means, fit.sds, strict=True)
    )
    assert fit.log_likelihood == pytest.approx(np.log(density).sum(), abs=0.05)


def test_one_gaussian_does_not_call_for_a_second_one():
    fit = fit_mixture(np.random.default_rng(4).normal(0.3, 0.03, 500))
    assert fit is not None
    assert fit.bic_gain < 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
def test_the_excess_over_the_random_curve_is_the_share_of_shared_features(share: float):
    rng = np.random.default_rng(6)
    k = int(share * 4000)
    rows = random_directions.unit_vectors(4000 - k, 64, rng)
    low = (rows @ random_directions.unit_vectors(256, 64, rng).T).max(axis=1)
    values = np.r_[low, np.full(k, 0.97)]
    found = shared_excess(values, random_directions.mcs_cdf(values, 64, [256]))
    assert found == pytest.approx(share, abs=0.04)
