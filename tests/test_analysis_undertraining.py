from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, unit, write_dictionary, write_study

from sparse_dict.analysis.analyses import undertraining
from sparse_dict.analysis.claims import FAILS, HOLDS, OPEN, Claim
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import saturation
from sparse_dict.analysis.measures.saturation import Saturation
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
    return undertraining.claims(context)[0]


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


def test_a_training_that_never_found_anything_says_nothing_on_its_length(tmp_path: Path):
    claims = undertraining.claims(trained(tmp_path, {500: 0.0, 1000: 0.0}))
    assert [claim.verdict for claim in claims] == [OPEN, OPEN]
    for claim in claims:
        assert claim.ours.startswith("cannot be decided: 0% at half, 0% at full training")


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


STEPS = [78, 156, 312, 625, 1250, 2500, 5000, 10_000]


def followed(plateau: float, half: float, n: int, steps=STEPS) -> np.ndarray:
    """Features found again after each of the steps, in the share of a curve with power 2."""
    share = plateau / (1 + (half / np.array(steps)) ** 2)
    return np.arange(n)[:, None] < np.round(share * n)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("plateau", "half"), [(0.6, 400.0), (0.9, 2000.0)])
def test_the_plateau_and_the_steps_to_it_are_those_of_the_true_curve(plateau, half, seeds):
    sizes = [followed(plateau, half, 2000), followed(plateau, half, 2000)]
    found = saturation.fit(STEPS, [sizes] * seeds)
    assert found is not None
    assert found.plateau == pytest.approx(plateau, abs=0.01)
    assert found.low - 0.01 <= plateau <= found.high + 0.01
    assert found.settled
    assert found.steps == pytest.approx(half * 19**0.5, rel=0.05)
    assert found.at(np.array([half])) == pytest.approx(plateau / 2, abs=0.01)


@pytest.mark.slow
def test_a_share_that_has_only_begun_to_rise_does_not_say_where_it_levels_off():
    found = saturation.fit(STEPS, [[followed(0.6, 40_000.0, 200)]])
    assert found is None or not found.settled


def test_without_enough_snapshots_or_anything_found_there_is_no_curve():
    rising = followed(0.6, 400.0, 100)
    assert saturation.fit(STEPS[:4], [[rising[:, :4]]]) is None
    assert saturation.fit(STEPS, [[np.zeros_like(rising)]]) is None


@pytest.mark.parametrize(
    ("now", "low", "high", "answer"),
    [
        (0.6, 0.7, 0.8, "no: the share is above"), (0.4, 0.55, 0.7, "yes: the plateau"),
        (0.4, 0.42, 0.48, "no: the plateau"), (0.4, 0.45, 0.6, "cannot be decided: the plateau"),
        (0.4, None, None, "cannot be decided: no curve"),
    ],
)  # fmt: skip
def test_more_training_changes_a_verdict_if_the_bar_lies_below_the_plateau(now, low, high, answer):
    fit = None if low is None else Saturation(0.5, 100, 2, low, high)
    assert undertraining.prospect(undertraining.Grown(512, now, fit), 0.5).startswith(answer)


def test_the_report_says_where_the_shares_lead_and_what_that_changes(tmp_path: Path):
    shares = {
        256 * step: float(followed(0.8, 400.0, 64)[:, i].mean()) for i, step in enumerate(STEPS)
    }
    context = trained(tmp_path, shares)
    with figures.style():
        section = undertraining.section(context)
    tables = {table.title: table.frame for table in section.tables()}
    leads = tables["Where the shares would level off"]
    assert leads["size"].tolist() == ["64", "mean over sizes"]
    assert leads["steps made"].tolist() == ["10,000"] * 2
    assert leads["plateau"].str.match(r"(79|80|81)% \[").all()
    (answer,) = tables["Would more training change a verdict?"].iloc[:, -1]
    assert answer == "no: the share is above the bar already"
    assert context.trajectory.points["steps"].tolist() == STEPS


def test_a_rate_that_is_lowered_at_the_end_is_named_as_a_reason_to_doubt(tmp_path: Path):
    context = trained(tmp_path, {500: 0.25, 1000: 0.75})
    for entry in context.study.entries:
        entry.metrics["config"]["optimizer"] = {"schedule": "linear"}
    with figures.style():
        section = undertraining.section(context)
    assert any("optimizer.schedule=linear" in str(block) for block in section.blocks)


@pytest.mark.parametrize(
    ("half", "full", "expected"),
    [(0.5, 0.9, FAILS), (0.5, 0.5, FAILS), (0.125, 0.25, OPEN)],
    ids=["both much", "neither", "too few"],
)
def test_growth_of_the_count_is_told_from_that_of_mmcs(tmp_path, half, full, expected):
    claim = undertraining.claims(trained(tmp_path, {500: half, 1000: full}))[1]
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
    claim = undertraining.claims(compared(tmp_path))[1]
    assert claim.verdict == HOLDS, claim
