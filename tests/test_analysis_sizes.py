"""What larger dictionaries add, in studies whose numbers of shared features are known."""

from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, directions, grown, unit, write_dictionary, write_study

from sparse_dict.analysis import frame
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, Judged, judge
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.mcs import distinct
from sparse_dict.analysis.sections import sizes


def judged(context: Context) -> dict[str, Judged]:
    frame.measure(context)
    return {claim.key: judge(claim, context.tables) for claim in sizes.CLAIMS}


def test_each_sort_of_feature_is_counted_at_each_size(tmp_path: Path):
    context = grown(tmp_path, {64: 40, 128: 50, 256: 50}, dead=0.5)
    frame.measure(context)
    table = sizes.counts(context.tables)
    assert table["above 0.9"].tolist() == table["one to one"].tolist() == [40, 50]
    assert table["without an analogue"].tolist() == pytest.approx([24, 78], abs=4)
    assert table["of these never active"].tolist() == pytest.approx([12, 39], abs=3)
    titles = [getattr(block, "title", "") for block in sizes.show(context)]
    assert "MMCS and numbers of features by size" in titles


@pytest.mark.parametrize(
    ("shared", "dead", "expected"),
    [
        (
            {512: 400, 1024: 450, 2048: 600, 4096: 700}, 0.5,
            {"more_than_dimensions": HOLDS, "nearly_identical_at_512": HOLDS,
             "no_analogue_at_2048": HOLDS, "no_analogue_dead_at_2048": HOLDS,
             "more_similar_at_2048": HOLDS, "similar_grow_slower": HOLDS},
        ),
        (
            {512: 100, 1024: 300, 2048: 1500, 4096: 1500}, 0.0,
            {"nearly_identical_at_512": FAILS, "no_analogue_at_2048": FAILS,
             "no_analogue_dead_at_2048": FAILS, "more_similar_at_2048": HOLDS,
             "similar_grow_slower": FAILS},
        ),
        (
            {512: 256, 1024: 30, 2048: 40, 4096: 40}, 0.0,
            {"more_than_dimensions": FAILS, "nearly_identical_at_512": FAILS,
             "more_similar_at_2048": OPEN},
        ),
    ],
    ids=["the post's", "all goes on", "nothing found"],
)  # fmt: skip
def test_the_posts_sizes_are_judged_by_what_was_put_into_them(
    tmp_path: Path, shared: dict[int, int], dead: float, expected: dict[str, str]
):
    found = judged(grown(tmp_path, shared, dead=dead))
    assert {key: found[key].verdict for key in expected} == expected


def test_features_that_share_a_partner_do_not_exceed_the_dimensions(tmp_path: Path):
    """Forty rows near four directions are all above the threshold, and count as four."""
    few = directions(4, 16, 0)
    for size in (64, 128):
        noise = 0.02 * np.random.default_rng(size).standard_normal((40, 16))
        copies = few[np.arange(40) % 4] if size == 64 else few
        rows = np.concatenate([unit(copies + noise[: len(copies)]), directions(size, 16, size)])
        write_dictionary(tmp_path / str(size), rows[:size], np.ones(size, np.int64))
    context = compared(tmp_path)
    claim = judged(context)["more_than_dimensions"]
    assert claim.ours.startswith("0.25 times")
    assert claim.verdict == FAILS
    first, second = context.study.entries
    assert (context.comparison.matched(first, second, "max", "all")[1] > 0.9).sum() == 40


@pytest.mark.parametrize(
    ("shares", "level", "falls"),
    [
        ((0.2, 0.6, 0.6, 0.6), HOLDS, FAILS),
        ((0.2, 0.4, 0.6, 0.8), FAILS, FAILS),  # rises to the end
        ((0.8, 0.6, 0.4, 0.2), FAILS, HOLDS),
        ((0.6, 0.6, 0.6, 0.3), FAILS, HOLDS),
    ],
)
def test_mmcs_that_rises_stays_level_or_falls_is_told_apart(
    tmp_path: Path, shares: tuple[float, ...], level: str, falls: str
):
    shared = {
        size: int(share * size) for size, share in zip((32, 64, 128, 256), shares, strict=True)
    }
    found = judged(grown(tmp_path, {**shared, 512: 512}, seeds=range(6)))
    assert found["mmcs_rises_then_level"].over == "6 seeds"
    verdicts = [found[key].verdict for key in ("mmcs_rises_then_level", "mmcs_falls_with_size")]
    assert verdicts == [level, falls]


def test_sizes_that_a_study_lacks_are_named(tmp_path: Path):
    write_study(tmp_path, sizes=(16, 32), d=32)
    found = judged(compared(tmp_path))
    assert {claim.verdict for claim in found.values()} == {OPEN}
    assert {key: claim.needs for key, claim in found.items()} == {
        "more_than_dimensions": "dictionaries wider than the activations, and larger ones",
        "mmcs_rises_then_level": "4 dictionary sizes",
        "mmcs_falls_with_size": "3 dictionary sizes",
        "nearly_identical_at_512": "size 512 and a larger one",
        "no_analogue_at_2048": "size 2048 and a larger one",
        "no_analogue_dead_at_2048": "size 2048 and a larger one",
        "more_similar_at_2048": "size 512 and 2048 and a larger one",
        "similar_grow_slower": "4 dictionary sizes",
    }


def test_rows_that_want_the_same_partner_share_it_by_another_one_if_there_is():
    others = unit(np.array([[1.0, 0.0, 0.0], [1.0, 0.3, 0.0], [0.0, 0.0, 1.0]]))
    rows = unit(np.array([[1.0, 0.05, 0], [1.0, 0.1, 0], [1.0, 0.15, 0], [0, 0, 1.0], [0, 1.0, 0]]))
    assert distinct(rows, others, 0.9, block_rows=2).sum() == 3
    assert distinct(rows, others, 0.9)[3:].tolist() == [True, False]
    assert not distinct(rows[4:], others, 0.9).any()


@pytest.mark.parametrize(("d", "m"), [(16, 64), (128, 4096)])
def test_the_quantile_of_random_maxima_is_the_inverse_of_their_law(d: int, m: int):
    bar = random_directions.max_quantile(0.99, d, m)
    assert random_directions.max_cdf(bar, d, m) == pytest.approx(0.99, abs=1e-9)
