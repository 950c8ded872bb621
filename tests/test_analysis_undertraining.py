from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_study import unit, write_dictionary, write_study
from test_analysis_similarity import settings_of

from sparse_dict.analysis import claims, study
from sparse_dict.analysis.analyses import undertraining
from sparse_dict.analysis.claims import FAILS, HOLDS, OPEN
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report import page as report
from sparse_dict.sae.folder import write_snapshot

D = 32


def trained(folder: Path, known: dict[int, float], seeds=(0,)) -> Comparison:
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
    return Comparison(study.load(folder), settings_of())


def outcome(compared: Comparison) -> claims.Claim:
    (claim,) = undertraining.claims(compared, undertraining.follow(compared))
    return claim


def test_each_snapshot_is_compared_with_that_of_the_next_size_after_as_many_rows(tmp_path: Path):
    points = undertraining.follow(trained(tmp_path, {250: 0.0, 500: 0.25, 1000: 0.75})).points
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
def test_without_a_snapshot_at_half_it_cannot_be_told(tmp_path: Path, known: dict[int, float]):
    claim = outcome(trained(tmp_path, known))
    assert claim.verdict == OPEN
    assert "no snapshots at half" in claim.ours


def test_without_snapshots_or_with_broken_ones_it_cannot_be_told(tmp_path: Path):
    write_study(tmp_path / "none", sizes=(16, 32))
    assert outcome(Comparison(study.load(tmp_path / "none"), settings_of())).verdict == OPEN
    compared = trained(tmp_path / "broken", {500: 0.25, 1000: 0.75})
    next((tmp_path / "broken").glob("*/snapshots/*500.safetensors")).write_bytes(b"no")
    assert "cannot be read" in outcome(compared).ours


def test_the_section_holds_a_figure_or_says_what_is_missing(tmp_path: Path):
    def draw(key: str, figure: Any, title: str, caption: str) -> report.Picture:
        figures.plt.close(figure)
        return report.Picture(key, title, caption, b"")

    compared = trained(tmp_path, {500: 0.25, 1000: 0.75}, seeds=(0, 1))
    with figures.style():
        told = undertraining.section(compared, undertraining.follow(compared), draw)
    assert any(isinstance(block, report.Picture) for block in told.blocks)
    missing = undertraining.Trajectory(missing="the reason")
    untold = undertraining.section(compared, missing, draw)
    assert untold.blocks == ["This cannot be told here: the reason."]
