from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from analysis_study import (
    compared,
    directions,
    settings_of,
    unit,
    write_dictionary,
    write_study,
)
from hypothesis import given
from hypothesis import strategies as st
from rounding import of_cosines, rounding
from safetensors.numpy import load_file

from sparse_dict.analysis import frame, study
from sparse_dict.analysis.comparison import Comparison, Variant
from sparse_dict.analysis.measures import mcs
from sparse_dict.analysis.measures.mcs import match, max_cosine, mmcs, normalised
from sparse_dict.errors import UserError


def test_mmcs_equals_a_float64_computation_from_the_files_in_every_plain_variant(tmp_path: Path):
    write_study(tmp_path, sizes=(32, 64, 128, 256), l1s=(0.01, 0.03))
    context = compared(tmp_path)
    frame.measure(context)
    cells = context.comparison.table(context.tables.dictionaries)
    assert len(cells) == 3 * 2 * 6
    for row in cells.itertuples():
        folder = tmp_path / row.dictionary
        mcs, small_alive = [], load_file(folder / "features.safetensors")["fire_count"] > 0
        small = load_file(folder / "sae_weights.safetensors")["W_dec"].astype(np.float64)
        for size in row.partners.split():
            other = tmp_path / row.dictionary.replace(f"={row.dict_size},", f"={size},")
            large = load_file(other / "sae_weights.safetensors")["W_dec"].astype(np.float64)
            if row.features == "alive":
                large = large[load_file(other / "features.safetensors")["fire_count"] > 0]
            cosines = (small / np.linalg.norm(small, axis=1, keepdims=True)) @ (
                large / np.linalg.norm(large, axis=1, keepdims=True)
            ).T
            mcs.append(cosines.max(axis=1))
        expected = np.mean(mcs, axis=0)
        if row.features == "alive":
            expected = expected[small_alive]
        assert row.mmcs == pytest.approx(expected.mean(), abs=of_cosines(32))
        assert row.n_above == (expected > 0.9).sum()
        assert row.n == len(expected)


@given(
    n=st.integers(1, 40), m=st.integers(1, 40), d=st.integers(1, 8),
    block=st.integers(1, 50), seed=st.integers(0, 99),
)  # fmt: skip
def test_blocks_of_any_size_give_the_maximum_of_the_whole_matrix(n, m, d, block, seed):
    rows, others = directions(n, d, seed), directions(m, d, seed + 100)
    expected = (rows.astype(np.float64) @ others.T.astype(np.float64)).max(axis=1)
    found = max_cosine(rows, others, block)
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding(8))


@given(n=st.integers(1, 5), extra=st.integers(0, 2), seed=st.integers(0, 99))
def test_one_to_one_matching_equals_trying_all_assignments(n, extra, seed):
    rows, others = directions(n, 4, seed), directions(n + extra, 4, seed + 100)
    cosines = rows @ others.T
    best = max(
        cosines[np.arange(n), list(chosen)].sum() for chosen in permutations(range(n + extra), n)
    )
    partners, values = match(rows, others)
    assert values.sum() == pytest.approx(best, abs=rounding(5 * 4, 5))
    assert len(set(partners.tolist())) == n


def test_cosines_are_signed_so_that_an_opposite_feature_is_not_found():
    row = np.array([[1.0, 0.0]], np.float32)
    assert max_cosine(row, -row, 8)[0] == -1


def test_mmcs_is_the_mean_over_the_smaller_dictionary_whatever_the_norms():
    smaller = np.array([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]], np.float32)
    larger = np.array([[3.0, 0.0], [3.0, 3.0], [-1.0, 0.0], [0.1, 0.0]], np.float32)
    # A row of zeros has similarity zero with everything.
    assert mmcs(smaller, larger) == pytest.approx((1 + np.sqrt(0.5)) / 3, abs=of_cosines(2))
    assert mmcs(larger, smaller) == pytest.approx((2 + np.sqrt(0.5)) / 4, abs=of_cosines(2))
    assert np.isnan(mmcs(smaller[:0], larger))


def test_only_the_direction_of_a_row_counts():
    rows = directions(6, 5, 1)
    scaled = rows * np.array([[1e-3], [1], [7], [1e4], [2], [3]], np.float32)
    np.testing.assert_allclose(normalised(scaled), rows, rtol=0, atol=of_cosines(5))


def pair_of(folder: Path, small, large, matching: str, features: str = "all") -> np.ndarray:
    """MCS of the features of `small` with those of `large`, each rows and which of them fired."""
    for name, (rows, alive) in {"a": small, "b": large}.items():
        write_dictionary(folder / name, rows, np.array(alive, np.int64), l1=len(rows) / 100)
    comparison = Comparison(study.load(folder), settings_of(block_rows=2))
    entries = {entry.name: entry for entry in comparison.study.entries}
    return comparison.matched(entries["a"], entries["b"], matching, features)[1]


@pytest.mark.parametrize("matching", ["max", "hungarian"])
def test_alive_only_leaves_out_dead_features_on_both_sides(tmp_path: Path, matching: str):
    rows = np.eye(3, dtype=np.float32)
    both = (rows[:2], [1, 0]), (rows, [0, 1, 1])
    assert pair_of(tmp_path, *both, matching).tolist() == [1, 1]
    alive = pair_of(tmp_path, *both, matching, "alive")
    assert alive[0] == 0
    assert np.isnan(alive[1])
    without_partner = (rows[:2], [1, 1]), (rows, [0, 0, 0])
    assert np.isnan(pair_of(tmp_path, *without_partner, matching, "alive")).all()


def test_one_to_one_matching_shares_a_partner_that_two_features_want(tmp_path: Path):
    twice = unit(np.array([[1.0, 0.0, 0], [1.0, 0.1, 0]])), [1, 1]
    both = twice, (np.eye(3, dtype=np.float32), [1, 1, 1])
    assert pair_of(tmp_path, *both, "max").min() > 0.99
    assert pair_of(tmp_path, *both, "hungarian").min() < 0.2


def test_a_matching_that_cannot_fit_in_memory_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(mcs, "MAX_PAIRS", 8)
    with pytest.raises(UserError, match=r"comparison\.matching=max"):
        match(directions(3, 4, 0), directions(3, 4, 1))


def test_next_two_and_all_larger_average_over_the_dictionaries_there_are(tmp_path: Path):
    write_study(tmp_path, sizes=(8, 16, 32, 64))
    compared = Comparison(study.load(tmp_path), settings_of())
    first, second, third, _ = compared.study.entries
    sizes = {
        against: [len(compared.partners(entry, against)) for entry in (first, second, third)]
        for against in ("next", "next_two", "all_larger")
    }
    assert sizes == {"next": [1, 1, 1], "next_two": [2, 2, 1], "all_larger": [3, 2, 1]}
    partners = compared.partners(first, "all_larger")
    one = [compared.matched(first, partner, "max", "all")[1] for partner in partners]
    found = compared.mcs(first, Variant("max", "all_larger", "all"))
    np.testing.assert_allclose(found, np.mean(one, axis=0), rtol=0, atol=rounding(3))


@pytest.mark.parametrize(
    ("max_fvu", "level", "why"),
    [
        (0.25, 0.03, "the sparsest (lowest mean L0)"),
        (0.6, 0.3, "the sparsest (lowest mean L0)"),
        (0.05, 0.03, "the sparsest that explains 80% of what the best of them does"),
    ],
)
def test_the_main_chain_is_the_sparsest_of_a_low_fvu_among_the_longest_whatever_its_mmcs(
    tmp_path: Path, max_fvu: float, level: float, why: str
):
    write_study(tmp_path, l1s=(0.003, 0.03, 0.3), seeds=(1, 0))  # FVU .08, .2, .5
    decoder = directions(16, 32, 5)
    for size in (8, 16):  # the same features twice: MMCS 1, but fewer sizes
        count = np.full(size, 5, np.int64)
        write_dictionary(tmp_path / f"short{size}", decoder[:size], count, l1=1.0, l0=0.1, fvu=0.01)
    compared = Comparison(study.load(tmp_path), settings_of(max_fvu=max_fvu))
    main = compared.main
    assert main is not None
    assert (main.level, main.seed) == (level, 0)
    assert why in compared.rule
    assert [entry.size for entry in main.entries] == [32, 64, 128]
