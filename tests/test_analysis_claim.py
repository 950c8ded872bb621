"""The engine of claims: what is judged, over what, and what a study lacks."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import hydra
import numpy as np
import pytest
from analysis_study import directions, unit, write_dictionary

import sparse_dict
from sparse_dict.analysis import frame, sections
from sparse_dict.analysis.claim import (
    FAILS,
    HOLDS,
    OPEN,
    SEVERAL_SEEDS,
    Claim,
    Found,
    Lies,
    Need,
    Words,
    both,
    either,
    judge,
    mean_of_means,
    some_sizes,
)
from sparse_dict.analysis.measures.intervals import Estimate, over_seeds
from sparse_dict.analysis.tables import About, Tables
from sparse_dict.config import CONF_DIR
from sparse_dict.errors import UserError
from sparse_dict.launch.jobs import typed

SHARE = Claim(
    "share", lambda f: f["found"], Lies(0.5),
    words=Words("Most features are found again", "Share of features found again", "1", "most"),
)  # fmt: skip


def study(folder: Path, shared: float, seeds: Sequence[int] = (0,), **metrics: float) -> Tables:
    """Sizes 64, 128 and 256 that share a part of the smallest one's features; the rest random."""
    n = int(64 * shared)
    for seed in seeds:
        for size in (64, 128, 256):
            others = directions(size - n, 64, 1000 * seed + size)
            rows = np.concatenate([directions(n, 64, 1), others]) if n else others
            count = np.full(size, 7, np.int64)
            write_dictionary(folder / "sae" / f"{size},{seed}", rows, count, seed=seed, **metrics)
    return sparse_dict.open_study(folder)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.2, 0.3, HOLDS), (0.0, 0.05, FAILS), (0.05, 0.2, OPEN), (np.nan, np.nan, OPEN)],
)
def test_an_interval_must_lie_on_one_side_of_the_bar(low, high, expected) -> None:
    assert Lies(0.1)(Estimate(0.1, low, high, "features")) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.05, 0.05, HOLDS), (0.15, 0.2, FAILS), (-0.2, -0.15, FAILS), (0.05, 0.2, OPEN)],
)
def test_between_two_bars_it_fails_beyond_either(low, high, expected) -> None:
    assert Lies(-0.1, 0.1)(Estimate(0.0, low, high, "features")) == expected


def test_the_number_is_the_mean_over_sizes_of_the_means_and_counts_stand_beside_it(
    tmp_path: Path,
) -> None:
    found = judge(SHARE, study(tmp_path, 0.5))
    assert found.ours == "38% (32 of 64, 32 of 128)"  # (1/2 + 1/4) / 2
    assert found.over == "features (bootstrap)"
    assert found.verdict == FAILS
    assert found.agrees is False
    assert found.rule.startswith("Share of features found again: holds if the 95 % interval lies")


def test_three_seeds_give_the_interval_of_their_three_numbers(tmp_path: Path) -> None:
    of = study(tmp_path, 0.75, (0, 1, 2))
    found = judge(SHARE, of)
    expected = over_seeds(
        [part.groupby("size")["found"].mean().mean() for _, part in of.main.groupby("seed")]
    )
    assert found.over == "3 seeds"
    assert found.interval == pytest.approx((expected.low, expected.high))
    assert found.ours.endswith("in 3 seeds)")


def test_two_seeds_are_no_interval_and_the_lowest_is_judged(tmp_path: Path) -> None:
    assert set(study(tmp_path, 0.5, (3, 5)).main["seed"]) == {3}


@pytest.mark.parametrize(("fvu", "why"), [(1.0, "with an FVU of 1 or more"), (0.1, "")])
def test_nothing_is_decided_on_dictionaries_that_explain_nothing(
    tmp_path: Path, fvu: float, why: str
) -> None:
    of = study(tmp_path, 1.0, fvu=fvu)
    found = judge(SHARE, of)
    assert found.verdict == (OPEN if why else HOLDS)
    assert why in of.useless()
    assert found.ours.startswith("cannot be decided: 3 of 3 dictionaries" if why else "75%")


def test_beside_the_number_stands_that_of_features_that_are_alive(tmp_path: Path) -> None:
    rows = directions(32, 32, 1)
    for size, alive in ((16, 8), (32, 32)):
        count = np.zeros(size, np.int64)
        count[:alive] = 5
        write_dictionary(tmp_path / "sae" / str(size), rows[:size], count)
    of = sparse_dict.open_study(tmp_path)
    assert judge(SHARE, of).ours == "100% (16 of 16); of those ever active 100% (8 of 8)"
    dead = replace(SHARE, values=lambda f: ~f["alive"], rule=Lies(0.4), living=False)
    assert judge(dead, of).ours == "50% (8 of 16)"


def test_what_a_study_lacks_is_said_with_the_command_that_adds_it(tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    of = study(tmp_path / "named", 0.5)
    for needs, command in (
        ((some_sizes(4),), "python train_sae.py -m name=named sae.dict_size=64,128,256,512"),
        ((some_sizes(3), SEVERAL_SEEDS), "python train_sae.py -m name=named seed=0,1,2"),
    ):
        claim = replace(SHARE, needs=needs)
        found = judge(claim, of)
        assert (found.verdict, found.command) == (OPEN, command)
        assert found.ours == f"needs {found.needs}"


def test_too_few_values_are_no_verdict(tmp_path: Path) -> None:
    found = judge(replace(SHARE, fewest=100, sizes=2), study(tmp_path, 0.5))
    assert (found.verdict, found.ours) == (OPEN, Words.few)


@pytest.mark.parametrize(
    ("other", "of_both", "of_either"),
    [(1.0, HOLDS, HOLDS), (0.5, OPEN, HOLDS), (0.0, FAILS, HOLDS)],
)
def test_a_second_number_must_pass_as_well_or_be_enough(
    tmp_path: Path, other: float, of_both: str, of_either: str
) -> None:
    of = study(tmp_path, 1.0)
    for joined, expected in ((both, of_both), (either, of_either)):
        numbers = partial(lambda other, sizes: [mean_of_means(sizes), other], other)
        claim = replace(SHARE, number=numbers, rule=Lies(0.5, n=2, joined=joined))
        assert judge(claim, of).verdict == expected
        assert judge(claim, of).interval == judge(SHARE, of).interval


def test_a_claim_of_another_form_judges_itself(tmp_path: Path) -> None:
    def absent(_of: Tables) -> Found:
        raise UserError("the text is not there")

    of = study(tmp_path, 0.5)
    own = Claim("own", judge=lambda of: Found("yes", HOLDS), words=Words("t", "w"))
    found = judge(own, of)
    assert (found.verdict, found.ours, found.rule, found.says) == (HOLDS, "yes", "w", None)
    found = judge(replace(own, judge=absent), of)
    assert (found.verdict, found.ours) == (OPEN, "the text is not there")


PAIRS = Claim(
    "pairs", lambda p: p["same"], Lies(0.5), of="main_pairs", needs=(SEVERAL_SEEDS,),
    words=Words("Most features are shared", "Share of features that another seed has"),
)  # fmt: skip


def seeded(folder: Path, noise: Sequence[float], seeds: Sequence[int]) -> Tables:
    for size in (64, 128):
        truth = directions(size, 64, size)
        for seed in seeds:
            rng = np.random.default_rng([size, seed])
            shift = np.resize(noise, size)[:, None] * rng.standard_normal((size, 64)) / 8
            count = np.ones(size, np.int64)
            write_dictionary(
                folder / "sae" / f"{size},{seed}", unit(truth + shift), count, seed=seed
            )
    return sparse_dict.open_study(folder)


@pytest.mark.parametrize(
    ("seeds", "over"), [((0, 1), "features (bootstrap)"), ((0, 1, 2), "3 seeds")]
)
@pytest.mark.parametrize(
    ("noise", "expected"), [([0.1], HOLDS), ([3.0], FAILS), ([0.1, 3.0], OPEN)]
)
def test_pairs_are_judged_over_seeds_or_their_features(
    tmp_path: Path, noise, expected, seeds, over
) -> None:
    found = judge(PAIRS, seeded(tmp_path, noise, seeds))
    assert (found.verdict, found.over, found.agrees) == (expected, over, None)


def test_the_jackknife_leaves_out_one_seed_at_a_time(tmp_path: Path) -> None:
    of = seeded(tmp_path, [0.5, 1.0], (0, 1, 2))
    shares = of.main_pairs.groupby(["size", "seed", "other_seed"])["same"].mean().unstack(0)
    value = shares.mean().mean()
    without = [shares.loc[pair].mean() for pair in ((1, 2), (0, 2), (0, 1))]
    expected = over_seeds([3 * value - 2 * part for part in without])
    assert judge(PAIRS, of).interval == pytest.approx((expected.low, expected.high))


def about(given: list[str]) -> About:
    return About("a study", "", "", "", 1, "", given, {}, {}, [])


def needs() -> dict[str, Need]:
    """All that a section's module or one of its claims names, and that an analysis is on."""
    found = [frame.switched_on("effects")]
    for path in Path(sections.__path__[0]).glob("[a-z]*.py"):
        module = import_module(f"{sections.__name__}.{path.stem}")
        found += [value for value in vars(module).values() if isinstance(value, Need)]
        found += [need for claim in getattr(module, "CLAIMS", ()) for need in claim.every_need]
    return {need.command: need for need in found}


@pytest.mark.parametrize("need", needs().values(), ids=needs())
def test_the_command_that_adds_what_a_study_lacks_is_one_that_its_script_takes(
    need: Need,
) -> None:
    given = ["name=a study", "training.n_activations=400000"]
    python, script, *arguments = shlex.split(need.told(about(given)))
    overrides = [
        re.sub("=([^[,]*),.*", r"=\1", argument) for argument in arguments if argument != "-m"
    ]
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        typed(hydra.compose(script.removesuffix(".py"), overrides))
    assert python == "python"


def test_what_a_command_sets_itself_is_not_given_twice() -> None:
    told = SEVERAL_SEEDS.told(about(["name=x", "sae.dict_size=128", "seed=3"]))
    assert told == "python train_sae.py -m name=x sae.dict_size=128 seed=0,1,2"
