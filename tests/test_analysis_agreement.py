from collections.abc import Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from analysis_study import directions, settings_of, unit, write_dictionary, write_study
from hypothesis import given
from hypothesis import strategies as st
from rounding import of_cosines

from sparse_dict.analysis import study
from sparse_dict.analysis.analyses.agreement import found_along
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.measures.across_seeds import match_pair
from sparse_dict.analysis.report.frequency import by_frequency
from sparse_dict.analysis.seeds import SeedPair, compare, estimate, shared_fraction
from sparse_dict.analysis.study import Entry


def test_the_same_dictionary_in_another_order_agrees_fully():
    rows, order = directions(30, 16, 0), np.random.default_rng(1).permutation(30)
    cosine, shared = match_pair((rows, rows), (rows[order], rows[order]))
    np.testing.assert_allclose(cosine, 1, rtol=0, atol=of_cosines(16))
    assert shared.all()


def test_pw_mcc_is_the_best_mean_cosine_over_all_one_to_one_matchings():
    first, second = directions(5, 3, 2), directions(5, 3, 3)
    cosines = first @ second.T
    best = max(cosines[np.arange(5), list(p)].mean() for p in permutations(range(5)))
    found = match_pair((first, first), (second, second))[0].mean()
    assert found == pytest.approx(best, abs=of_cosines(3))


def test_a_feature_is_shared_only_if_encoders_and_decoders_choose_the_same_close_partner():
    rows = np.eye(4, dtype=np.float32)
    swapped = rows[[1, 0, 2, 3]]
    far = unit(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1.2]]))
    # The encoders of features 0 and 1 are swapped; decoder 3 is at a cosine of about 0.57.
    _, shared = match_pair((rows, rows), (swapped, far))
    assert shared.tolist() == [False, False, True, False]


def test_all_pairs_of_seeds_are_compared_at_sizes_within_the_limit(tmp_path: Path):
    write_study(tmp_path, sizes=(16, 32), seeds=(0, 1, 2, 5))
    pairs = compare(study.load(tmp_path), match_limit=16)
    assert [(p.first.seed, p.second.seed) for p in pairs] == list(combinations((0, 1, 2, 5), 2))
    assert {p.first.size for p in pairs} == {16}


def test_of_many_seeds_ten_pairs_are_compared(tmp_path: Path):
    write_study(tmp_path, sizes=(8,), seeds=range(7))
    assert len(compare(study.load(tmp_path), match_limit=16)) == 10


def fake_pairs(rng: np.random.Generator, n_seeds: int, quality: float, noise: float):
    """Pairs of seeds whose PW-MCC is the sum of what either seed brings, and noise of the pair."""
    brings = rng.normal(0, quality, n_seeds)
    entries = [Entry(f"{seed}", "", 4, "l1", 0.1, seed, cast(Any, None)) for seed in range(n_seeds)]
    return [
        SeedPair(
            entries[a], entries[b], np.full(4, 0.5 + brings[a] + brings[b] + rng.normal(0, noise)),
            np.ones(4, bool), np.ones(4),
        )
        for a, b in combinations(range(n_seeds), 2)
    ]  # fmt: skip


def mean_pw_mcc(pairs: Sequence[SeedPair]) -> float:
    return float(np.mean([pair.pw_mcc for pair in pairs]))


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_over_seeds_hold_the_truth_though_pairs_have_seeds_in_common(n_seeds: int):
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        found = estimate(fake_pairs(rng, n_seeds, 0.05, 0.01), mean_pw_mcc)
        inside += found.low < 0.5 < found.high
    assert found.over == f"{n_seeds} seeds"
    assert 0.92 < inside / 400 < 0.98


def test_two_seeds_give_an_interval_over_features(tmp_path: Path):
    (pair,) = fake_pairs(np.random.default_rng(0), 2, 0.0, 0.0)
    shared = np.array([True, False, True, False])
    pair = SeedPair(pair.first, pair.second, pair.cosine, shared, pair.frequency)
    found = estimate([pair], shared_fraction)
    assert (found.value, found.over) == (0.5, "features (bootstrap)")
    assert found.low < 0.5 < found.high


def test_two_seeds_are_compared_once_and_share_what_was_put_into_both(tmp_path: Path):
    write_study(tmp_path, sizes=(64,), seeds=(0, 1), d=128, noise=0.01)
    (pair,) = compare(study.load(tmp_path), match_limit=100)
    assert pair.shared.sum() == int(0.75 * 64)
    assert pair.pw_mcc == pytest.approx(pair.cosine.mean())


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 1e-4, 3e-4, 0.01, 0.5, 1.0]), st.booleans()), min_size=1
    )
)
def test_frequency_bins_hold_every_feature_once_and_cover_its_frequency(features):
    frequency = np.array([f for f, _ in features])
    found = np.array([hit for _, hit in features])
    bins = by_frequency(frequency, found)
    assert sum(b.n for b in bins) == len(features)
    assert sum(b.found for b in bins) == found.sum()
    for b in bins:
        inside = (frequency >= b.low * (1 - 1e-9)) & (frequency < b.high * (1 - 1e-9))
        if b.high == 0:
            inside = frequency == 0
        elif b.high == 1:
            inside |= frequency == 1
        assert inside.sum() == b.n


def test_a_chain_ends_at_the_first_dictionary_that_lacks_the_feature(tmp_path: Path):
    eye = np.eye(16, dtype=np.float32)
    count = np.full(16, 3, np.int64)
    decoders = {3: eye[:3], 4: eye[[0, 1, 7, 8]], 5: eye[[0, 2, 9, 10, 11]]}
    for size, decoder in decoders.items():
        write_dictionary(tmp_path / str(size), decoder, count[:size])
    compared = Comparison(study.load(tmp_path), settings_of())
    assert compared.main is not None
    # Feature 0 is in both, 1 in the next only, 2 in the last only, which does not count.
    assert found_along(compared, compared.main).tolist() == [2, 1, 0]
