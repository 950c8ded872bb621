from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, unit, write_dictionary, write_study

from sparse_dict.analysis import frame
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, Judged
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report import page as report
from sparse_dict.analysis.sections import undertraining
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
    return measured(folder)


def measured(folder: Path) -> Context:
    context = compared(folder, "undertraining")
    frame.measure(context)
    return context


def judged(context: Context) -> list[Judged]:
    return frame.verdicts(context, undertraining.ANALYSIS)


def outcome(context: Context) -> Judged:
    return judged(context)[0]


def shown(context: Context) -> list[report.Block]:
    with figures.style():
        section = frame.shown(context, undertraining.ANALYSIS)
    assert section is not None
    return section.blocks


def test_each_snapshot_is_compared_with_that_of_the_next_size_after_as_many_rows(tmp_path: Path):
    study = trained(tmp_path, {250: 0.0, 500: 0.25, 1000: 0.75}).tables
    points = study.others["snapshots"]
    assert points["seen"].tolist() == [250, 500, 1000]
    assert points["n_above"].tolist() == [0, 16, 48]
    assert points["mmcs"].iloc[0] == pytest.approx(points["random_mmcs"].iloc[0], abs=0.05)
    assert points["steps"].tolist() == [250 / 256, 500 / 256, 1000 / 256]
    assert study.main["half_mcs"].mean() == pytest.approx(points["mmcs"].iloc[1], rel=1e-6)
    assert study.main["next_mcs"].mean() == pytest.approx(points["mmcs"].iloc[2], rel=1e-6)
    ends = undertraining.ends(points)
    assert ends[["seen", "share_above"]].values.tolist() == [[500, 0.25], [1000, 0.75]]


def test_features_that_are_still_being_found_at_the_end_mean_too_short_a_training(tmp_path: Path):
    claim = outcome(trained(tmp_path, {500: 0.25, 1000: 0.75}))
    assert (claim.verdict, claim.ours) == (HOLDS, "25% at half, 75% at full training")
    assert claim.interval is not None
    assert claim.interval[0] < 0.5 < claim.interval[1]


def test_a_training_that_finds_nothing_new_in_its_second_half_was_long_enough(tmp_path: Path):
    assert outcome(trained(tmp_path, {500: 0.5, 1000: 0.5})).verdict == FAILS


def test_a_training_that_never_found_anything_says_nothing_on_its_length(tmp_path: Path):
    claims = judged(trained(tmp_path, {500: 0.0, 1000: 0.0}))
    assert [claim.verdict for claim in claims] == [OPEN, OPEN]
    assert claims[0].ours == "0% at half, 0% at full training"


@pytest.mark.parametrize(("half", "full", "expected"), [(4, 4, OPEN), (1, 6, HOLDS)])
def test_below_a_tenth_found_again_nothing_has_levelled_off(tmp_path, half, full, expected):
    claim = outcome(trained(tmp_path, {500: half / 64, 1000: full / 64}))
    assert claim.verdict == expected


def test_three_seeds_give_an_interval_over_seeds(tmp_path: Path):
    claim = outcome(trained(tmp_path, {500: 0.25, 1000: 0.5}, seeds=(0, 1, 2)))
    assert (claim.verdict, claim.over) == (HOLDS, "3 seeds")


@pytest.mark.parametrize("known", [{1000: 0.5}, {100: 0.2, 1000: 0.5}])
def test_without_a_snapshot_at_half_it_is_undecided(tmp_path: Path, known: dict[int, float]):
    claim = outcome(trained(tmp_path, known))
    assert claim.verdict == OPEN
    assert claim.needs.startswith("snapshots at half")


def test_without_snapshots_or_with_broken_ones_it_is_undecided(tmp_path: Path):
    write_study(tmp_path / "none", sizes=(16, 32))
    assert outcome(measured(tmp_path / "none")).verdict == OPEN
    trained(tmp_path / "broken", {500: 0.25, 1000: 0.75})
    next((tmp_path / "broken").glob("*/snapshots/*500.safetensors")).write_bytes(b"no")
    assert "cannot be read" in outcome(measured(tmp_path / "broken")).ours


def test_the_section_holds_a_figure_or_says_what_is_missing(tmp_path: Path):
    context = trained(tmp_path / "some", {500: 0.25, 1000: 0.75}, seeds=(0, 1))
    assert any(isinstance(block, report.Picture) for block in shown(context))
    write_study(tmp_path / "none", sizes=(16, 32))
    assert "snapshots at half" in str(shown(measured(tmp_path / "none"))[-1])


def test_a_rate_that_is_lowered_at_the_end_is_named_as_a_reason_to_doubt(tmp_path: Path):
    context = trained(tmp_path, {500: 0.25, 1000: 0.75})
    for entry in context.study.entries:
        entry.metrics["config"]["optimizer"] = {"schedule": "linear"}
    assert any("optimizer.schedule=linear" in str(block) for block in shown(context))


@pytest.mark.parametrize(
    ("half", "full", "expected"),
    [(0.5, 0.9, FAILS), (0.5, 0.5, FAILS), (0.125, 0.25, OPEN)],
    ids=["both much", "neither", "too few"],
)
def test_growth_of_the_count_is_told_from_that_of_mmcs(tmp_path, half, full, expected):
    claim = judged(trained(tmp_path, {500: half, 1000: full}))[1]
    assert (claim.key, claim.verdict) == ("training_raises_count", expected)


def test_features_that_cross_the_threshold_raise_the_count_and_hardly_mmcs(tmp_path: Path):
    """Of 500 features, 200 more come from a cosine of .88 to one of .95 in the second half."""
    rows = np.random.default_rng(0).standard_normal((500, D))
    away = np.random.default_rng(1).standard_normal((500, D))
    rows = unit(rows)
    away = unit(away - (away * rows).sum(axis=1, keepdims=True) * rows)
    for seen, above in ((500, 200), (1000, 400)):
        cosine = np.where(np.arange(500) < above, 0.95, 0.88)[:, None]
        near = cosine * rows + np.sqrt(1 - cosine**2) * away
        more = np.concatenate([near, np.random.default_rng(2).standard_normal((8, D))])
        for name, decoder in (("small", rows), ("large", unit(more))):
            write_snapshot(tmp_path / name, decoder, seen)
            write_dictionary(tmp_path / name, decoder, np.ones(len(decoder), np.int64))
    claim = judged(measured(tmp_path))[1]
    assert claim.verdict == HOLDS, claim
