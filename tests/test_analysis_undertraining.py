from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, unit, write_dictionary, write_study

from sparse_dict.analysis.analyses import undertraining
from sparse_dict.analysis.claims import FAILS, HOLDS, OPEN, Claim
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report import page as report
from sparse_dict.sae.folder import write_snapshot

D = 32


def trained(folder: Path, known: dict[int, float], seeds=(0,)) -> Context:
    """Sizes 64 and 128; after `seen` rows, a share `known[seen]` of the features is shared."""
    truth = unit(np.random.default_rng(0).standard_normal((64, D)))
    for seed in seeds:
        for size in (64, 128):
            place = folder / f"sae.dict_size={size},seed={seed}"
            for seen, share in known.items():
                rows = np.random.default_rng([size, seed, seen]).standard_normal((size, D))
                rows[: int(share * 64)] = truth[: int(share * 64)]
                decoder = unit(rows)
                write_snapshot(place, decoder, seen)
            write_dictionary(place, decoder, np.ones(size, np.int64), seed=seed)
    return compared(folder)


def outcome(context: Context) -> Claim:
    (claim,) = undertraining.claims(context)
    return claim


def test_each_snapshot_is_compared_with_that_of_the_next_size_after_as_many_rows(tmp_path: Path):
    points = trained(tmp_path, {250: 0.0, 500: 0.25, 1000: 0.75}).trajectory.points
    assert points["seen"].tolist() == [250, 500, 1000]
    assert points["n_above"].tolist() == [0, 16, 48]
    assert points["mmcs"].iloc[0] == pytest.approx(points["random_mmcs"].iloc[0], abs=0.05)


def test_features_that_are_still_being_found_at_the_end_mean_too_short_a_training(tmp_path: Path):
    claim = outcome(trained(tmp_path, {500: 0.25, 1000: 0.75}))
    assert (claim.verdict, claim.ours) == (HOLDS, "25% at half, 75% at full training")
    assert claim.interval is not None
    assert claim.interval[0] < 0.5 < claim.interval[1]


def test_a_training_that_finds_nothing_new_in_its_second_half_was_long_enough(tmp_path: Path):
    assert outcome(trained(tmp_path, {500: 0.5, 1000: 0.5})).verdict == FAILS


def test_three_seeds_give_an_interval_over_seeds(tmp_path: Path):
    claim = outcome(trained(tmp_path, {500: 0.25, 1000: 0.5}, seeds=(0, 1, 2)))
    assert (claim.verdict, claim.over) == (HOLDS, "3 seeds")


@pytest.mark.parametrize("known", [{1000: 0.5}, {100: 0.2, 1000: 0.5}])
def test_without_a_snapshot_at_half_it_is_undecided(tmp_path: Path, known: dict[int, float]):
    claim = outcome(trained(tmp_path, known))
    assert claim.verdict == OPEN
    assert "no snapshots at half" in claim.ours


def test_without_snapshots_or_with_broken_ones_it_is_undecided(tmp_path: Path):
    write_study(tmp_path / "none", sizes=(16, 32))
    assert outcome(compared(tmp_path / "none")).verdict == OPEN
    broken = trained(tmp_path / "broken", {500: 0.25, 1000: 0.75})
    next((tmp_path / "broken").glob("*/snapshots/*500.safetensors")).write_bytes(b"no")
    assert "cannot be read" in outcome(broken).ours


def test_the_section_holds_a_figure_or_says_what_is_missing(tmp_path: Path):
    context = trained(tmp_path, {500: 0.25, 1000: 0.75}, seeds=(0, 1))
    with figures.style():
        section = undertraining.section(context)
    assert any(isinstance(block, report.Picture) for block in section.blocks)
    write_study(tmp_path / "none", sizes=(16, 32))
    (text,) = undertraining.section(compared(tmp_path / "none")).blocks
    assert "no snapshots at half" in str(text)
