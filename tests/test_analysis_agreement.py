from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, directions, unit, write_dictionary, write_study
from rounding import of_cosines

from sparse_dict.analysis import frame, study
from sparse_dict.analysis.claim import Sample, estimates, mean_of_means
from sparse_dict.analysis.measured.three_tables import matched_pairs
from sparse_dict.analysis.measures.two_dictionaries import match_features


def test_the_same_dictionary_in_another_order_agrees_fully():
    rows, order = directions(30, 16, 0), np.random.default_rng(1).permutation(30)
    found = match_features((rows, rows), (rows[order], rows[order]))
    cosine, shared = found.cosine, found.same
    np.testing.assert_allclose(cosine, 1, rtol=0, atol=of_cosines(16))
    assert shared.all()


def test_pw_mcc_is_the_best_mean_cosine_over_all_one_to_one_matchings():
    first, second = directions(5, 3, 2), directions(5, 3, 3)
    cosines = first @ second.T
    best = max(cosines[np.arange(5), list(p)].mean() for p in permutations(range(5)))
    found = match_features((first, first), (second, second)).pw_mcc
    assert found == pytest.approx(best, abs=of_cosines(3))


def test_a_feature_is_shared_only_if_encoders_and_decoders_choose_the_same_close_partner():
    rows = np.eye(4, dtype=np.float32)
    swapped = rows[[1, 0, 2, 3]]
    far = unit(np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1.2]]))
    # The encoders of features 0 and 1 are swapped; decoder 3 is at a cosine of about 0.57.
    shared = match_features((rows, rows), (swapped, far)).same
    assert shared.tolist() == [False, False, True, False]


def test_all_pairs_of_seeds_are_compared_at_sizes_within_the_limit(tmp_path: Path):
    write_study(tmp_path, sizes=(16, 32), seeds=(0, 1, 2, 5))
    loaded = study.load(tmp_path)
    named = {entry.name: entry for entry in loaded.entries}
    pairs = matched_pairs([loaded], 16)[["first", "second"]].drop_duplicates()
    found = [(named[a], named[b]) for a, b in pairs.itertuples(index=False)]
    assert [(a.seed, b.seed) for a, b in found] == list(combinations((0, 1, 2, 5), 2))
    assert {a.size for a, _ in found} == {16}


def test_of_many_seeds_ten_pairs_are_compared(tmp_path: Path):
    write_study(tmp_path, sizes=(8,), seeds=range(7))
    pairs = matched_pairs([study.load(tmp_path)], 16)
    assert len(pairs[["first", "second"]].drop_duplicates()) == 10


def fake_pairs(rng: np.random.Generator, n_seeds: int, quality: float, noise: float):
    """Pairs of seeds whose PW-MCC is the sum of what either seed brings, and noise of the pair."""
    brings = rng.normal(0, quality, n_seeds)
    return [
        Sample(4, frozenset((a, b)), np.full(4, 0.5 + brings[a] + brings[b] + rng.normal(0, noise)))
        for a, b in combinations(range(n_seeds), 2)
    ]


@pytest.mark.parametrize("n_seeds", [3, 5])
def test_intervals_over_seeds_hold_the_truth_though_pairs_have_seeds_in_common(n_seeds: int):
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        found = estimates(fake_pairs(rng, n_seeds, 0.05, 0.01), mean_of_means)[0]
        inside += found.low < 0.5 < found.high
    assert found.over == f"{n_seeds} seeds"
    assert 0.92 < inside / 400 < 0.98


def test_two_seeds_are_compared_once_and_share_what_was_put_into_both(tmp_path: Path):
    write_study(tmp_path, sizes=(64,), seeds=(0, 1), d=128, noise=0.01)
    pairs = matched_pairs([study.load(tmp_path)], 100)
    assert len(pairs) == 64
    assert pairs["same"].sum() == int(0.75 * 64)


def test_a_chain_ends_at_the_first_dictionary_that_lacks_the_feature(tmp_path: Path):
    eye = np.eye(16, dtype=np.float32)
    count = np.full(16, 3, np.int64)
    decoders = {3: eye[:3], 4: eye[[0, 1, 7, 8]], 5: eye[[0, 2, 9, 10, 11]]}
    for size, decoder in decoders.items():
        write_dictionary(tmp_path / str(size), decoder, count[:size])
    context = compared(tmp_path, "agreement")
    frame.measure(context)
    first = context.tables.main[context.tables.main["size"] == 3]
    # Feature 0 is in both, 1 in the next only, 2 in the last only, which does not count.
    assert first["run"].tolist() == [2, 1, 0]
