import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_dict.analysis.measures import effective_neurons as neurons
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.sections.sparsity import draw


@given(d=st.integers(1, 300), k=st.integers(1, 300), scale=st.floats(1e-3, 1e3))
def test_a_feature_spread_evenly_over_k_neurons_has_k_effective_ones(d, k, scale):
    k = min(k, d)
    row = np.zeros((1, d))
    row[0, :k] = scale * np.where(np.arange(k) % 2, 1, -1)
    assert neurons.simpson_neurons(row)[0] == pytest.approx(k)
    assert neurons.entropy(row)[0] == pytest.approx(np.log(k), abs=1e-9)


def test_both_measures_equal_their_definitions_on_any_row():
    rows = np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    for row, simpson, entropy in zip(
        rows, neurons.simpson_neurons(rows), neurons.entropy(rows), strict=True
    ):
        p = [abs(float(w)) / sum(abs(float(v)) for v in row) for w in row]
        assert simpson == pytest.approx(1 / sum(x * x for x in p))
        assert entropy == pytest.approx(-sum(x * np.log(x) for x in p))


@pytest.mark.parametrize("d", [2, 7, 128])
def test_the_expectation_for_random_directions_agrees_with_simulation(d: int):
    rows = np.random.default_rng(1).standard_normal((40_000, d))
    assert neurons.simpson_neurons(rows).mean() == pytest.approx(
        neurons.random_simpson(d), rel=0.004
    )


def test_the_expectation_is_81_8_in_128_dimensions():
    assert neurons.random_simpson(128) == pytest.approx(81.85, abs=0.01)
    sd, entropy = neurons.random_spread(128)
    assert sd == pytest.approx(3.8, abs=0.2)
    assert entropy < np.log(128)


def test_a_row_of_zeros_has_no_effective_neurons():
    rows = np.zeros((1, 4))
    assert np.isnan(neurons.simpson_neurons(rows)[0])
    assert np.isnan(neurons.entropy(rows)[0])


def test_outliers_lie_beyond_the_outer_fences_most_extreme_first():
    values = np.r_[np.linspace(80, 84, 50), 30.0, 120.0, np.nan, 83.0]
    assert neurons.outliers(values).tolist() == [50, 51]
    assert len(neurons.outliers(np.array([1.0, 99.0]))) == 0


def test_effective_neurons_are_drawn_where_all_features_are_of_one_sort():
    known = pd.DataFrame({"size": 32, "neurons": np.linspace(5.0, 9.0, 32), "MCS": "above 0.9"})
    figure = draw(known, 16)
    figures.plt.close(figure)
    assert len(figure.axes[1].patches) > 0
