"""The second null: rows that share nothing but their mean and covariance."""

from pathlib import Path

import numpy as np
import pytest
from analysis_study import directions, settings_of, unit, write_dictionary
from rounding import rounding

from sparse_dict.analysis import study
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.measures.gaussian_rows import Law, mcs
from sparse_dict.analysis.measures.random_directions import max_mean

D = 24


def test_a_law_has_the_mean_and_the_covariance_of_its_rows():
    rows = np.random.default_rng(0).standard_normal((10, D)) + np.arange(D)
    law = Law.of(rows)
    np.testing.assert_allclose(law.mean, rows.mean(0))
    np.testing.assert_allclose(law.root.T @ law.root, np.cov(rows.T, bias=True), atol=1e-12)
    drawn = Law(20_000, law.mean, law.root).draw(np.random.default_rng(1))
    along = unit(law.mean[None])[0]
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, rtol=rounding(D))
    assert (drawn @ along).mean() > 0.95  # the rows point where their mean does


def test_rows_all_around_reach_what_random_directions_reach():
    small, large = (Law.of(directions(n, D, n)) for n in (4000, 5000))
    assert mcs(small, [large], 512).mean() == pytest.approx(max_mean(D, 5000), abs=0.005)


def test_rows_in_few_dimensions_reach_what_random_ones_reach_in_so_few():
    rows = np.zeros((4000, D), np.float32)
    rows[:, :6] = directions(4000, 6, 0)
    law = Law.of(rows)
    one, two = Law(64, law.mean, law.root), Law(128, law.mean, law.root)
    found = mcs(one, [two, two], 512)
    assert len(found) == 2048
    assert found.mean() == pytest.approx(max_mean(6, 128), abs=0.01)
    assert found.mean() > max_mean(D, 128) + 0.2
    np.testing.assert_array_equal(found, mcs(one, [two, two], 512))  # drawn from one seed


def test_it_stands_beside_random_directions_and_counts_who_is_alive(tmp_path: Path):
    common = np.ones(D) / np.sqrt(D)
    for size in (32, 64, 128):
        alive = np.arange(size) < size // 2
        rows = directions(size, D, size) + 2 * alive[:, None] * common
        write_dictionary(tmp_path / str(size), unit(rows), alive * 9)
    compared = Comparison(study.load(tmp_path), settings_of())
    first = compared.study.entries[0]
    living = compared.numbers(first, Variant("max", "next", "alive"), True)["gaussian_mmcs"]
    every = compared.numbers(first, gaussian=True)
    assert every["random_mmcs"] + 0.1 < every["gaussian_mmcs"] < living
