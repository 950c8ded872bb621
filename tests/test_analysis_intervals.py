import numpy as np
import pytest

from sparse_dict.analysis.measures.intervals import bootstrap, over_seeds


def test_the_bootstrap_of_a_mean_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 1, 400)
    estimate = bootstrap([values], lambda samples: float(samples[0].mean()))
    reach = 1.96 * values.std() / 20
    assert estimate.value == values.mean()
    assert estimate.low == pytest.approx(values.mean() - reach, abs=0.02)
    assert estimate.high == pytest.approx(values.mean() + reach, abs=0.02)


def test_the_interval_over_seeds_is_students():
    estimate = over_seeds([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.over) == (2.0, "3 seeds")
    assert estimate.high - estimate.value == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5)
