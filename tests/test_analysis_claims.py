import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_study import compared, directions, grown, unit, write_dictionary, write_study
from safetensors.numpy import save_file

from sparse_dict.analysis import frame
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, Judged, judge
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.sections import claims, ridge, seeds
from sparse_dict.config import ANALYSES, NoSettings

Array = Callable[[np.random.Generator, int], Any]


def judged(context: Context) -> list[Judged]:
    frame.measure(context)
    return [claim for analysis in frame.load() for claim in frame.verdicts(context, analysis)]


class Verdicts(dict[str, Judged]):
    """The claims of a study: those of an analysis are judged when one of them is asked for."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder, self.changes = folder, changes

    def __missing__(self, key: str) -> Judged:
        (analysis,) = (a for a in frame.load() if key in {claim.key for claim in a.claims})
        context = compared(self.folder, analysis.name, **self.changes)
        frame.measure(context)
        self.update({claim.key: claim for claim in frame.verdicts(context, analysis)})
        return self[key]


def assess(folder: Path, **changes: object) -> dict[str, Judged]:
    """All claims of a study, judged at once."""
    chosen = {name for name in ANALYSES if ANALYSES[name] is NoSettings} - {"undertraining"}
    found = judged(compared(folder, *chosen, **changes))
    assert len({claim.key for claim in found}) == len(found)
    json.dumps([claim.as_json() for claim in found], allow_nan=False)
    lacking = [name for _, names in claims.lacking(found) for name in names]
    assert len(claims.table(found)) + len(lacking) == len(found)
    return {claim.key: claim for claim in found}


def test_a_sweep_over_k_says_so_and_leaves_the_claims_on_l1_open(tmp_path: Path):
    for k in (2, 4, 8):
        for size in (16, 32, 64):
            write_dictionary(
                tmp_path / f"{k},{size}", directions(64, 16, k)[:size], np.ones(size, np.int64),
                activation="topk", l1=0.0, sae={"k": k},
            )  # fmt: skip
    found = assess(tmp_path)
    assert found["mmcs_above_random"].verdict == HOLDS
    assert found["interior_l1"].needs == "three L1 values, each with all sizes"
    assert found["ridge_vertical"].verdict == OPEN
    context = compared(tmp_path)
    context.claims = list(found.values())
    blocks = list(claims.show(context))
    assert any("it is k that was varied" in block for block in blocks if isinstance(block, str))


def test_a_study_with_shared_features_confirms_what_was_put_into_it(tmp_path: Path):
    grid = (0.003, 0.01, 0.03, 0.1, 0.3)
    write_study(tmp_path, sizes=(32, 64, 128, 256), l1s=grid, seeds=(0, 1, 2), d=64, noise=0.02)
    found = assess(tmp_path)
    for key in (
        "mmcs_above_random", "bimodal", "low_hump_random", "share_above_threshold",
        "interior_l1", "ridge_vertical", "found_along_chain", "shared_falls_with_size",
    ):  # fmt: skip
        assert found[key].verdict == HOLDS, found[key]
    assert found["mmcs_above_random"].over == "3 seeds"
    assert found["ridge_diagonal"].verdict == OPEN
    assert found["relu_steadier_than_topk"].verdict == OPEN
    # 75 % of the smallest dictionary's features are true ones, and all of these are found.
    assert found["found_along_chain"].ours == (
        "100% (72 of 72 in 3 seeds); of those ever active the same"
    )


def test_a_ridge_that_moves_with_the_size_is_told_from_one_that_does_not(tmp_path: Path):
    grid = tuple(10 ** np.arange(-2.75, -0.2, 0.25))
    for scaling in ("none", "dict_size"):
        write_study(
            tmp_path, sizes=(32, 64, 128, 256), l1s=grid, noise=0.02, d=64,
            extra={"l1_scaling": scaling}, prefix=f"{scaling},",
        )  # fmt: skip
    found = Verdicts(tmp_path)
    assert found["ridge_vertical"].verdict == HOLDS
    assert found["ridge_diagonal"].verdict == HOLDS


def test_random_dictionaries_confirm_nothing(tmp_path: Path):
    for size in (32, 64, 128):
        count = np.full(size, 9, np.int64)
        write_dictionary(tmp_path / str(size), directions(size, 64, size), count)
    found = assess(tmp_path)
    assert found["mmcs_above_random"].verdict == FAILS
    assert found["share_above_threshold"].verdict == FAILS
    assert found["bimodal"].verdict == FAILS
    assert found["neurons_high_vs_low"].verdict == OPEN
    assert found["low_hump_random"].verdict == OPEN  # one hump is no lower one
    assert HOLDS not in {claim.verdict for claim in found.values()}


def test_a_single_dictionary_leaves_every_claim_undecided(tmp_path: Path):
    write_dictionary(tmp_path / "only", directions(8, 4, 0), np.full(8, 1, np.int64))
    found = assess(tmp_path)
    assert {claim.verdict for claim in found.values()} == {OPEN}
    assert all(claim.ours for claim in found.values())


def test_a_study_without_alive_features_is_no_error(tmp_path: Path):
    for size in (8, 16):
        write_dictionary(tmp_path / str(size), directions(size, 16, 0), np.zeros(size, np.int64))
    assert {c.verdict for c in assess(tmp_path, features="alive").values()} == {OPEN}


def test_relu_and_topk_are_compared_at_the_same_size_and_sparsity(tmp_path: Path):
    write_study(tmp_path, sizes=(64,), seeds=(0, 1), noise=0.01, d=64)
    write_study(
        tmp_path, sizes=(64,), seeds=(0, 1), noise=0.3, d=64,
        extra={"activation": "topk"}, prefix="topk,",
    )  # fmt: skip
    assert Verdicts(tmp_path)["relu_steadier_than_topk"].verdict == HOLDS


def test_analyses_that_are_off_leave_their_claims_undecided(tmp_path: Path):
    write_study(tmp_path, sizes=(16, 32))
    off = judged(compared(tmp_path))
    assert {claim.verdict for claim in off} == {OPEN}
    # Those on the truth are not made of activations of a language model.
    statements = {a.name: a.claims for a in frame.load() if a.name != "truth"}
    named = [claim.ours.removesuffix(" is off") for claim in off]
    assert named == [name for name, texts in statements.items() for _ in texts]
    for name, texts in statements.items():
        if texts and ANALYSES[name] is NoSettings:
            found = judged(compared(tmp_path, name))
            assert [claim.key for claim in found] == [claim.key for claim in off]
            assert sum(not claim.ours.endswith(" is off") for claim in found) == len(texts)


def seeded(folder: Path, noise: dict[int, list[float]], seeds: Sequence[int], **extra: Any) -> None:
    """Dictionaries by size that share directions but for noise, one value a feature; rare first."""
    for size, spread in noise.items():
        truth = directions(size, 64, size)
        count = np.arange(1, size + 1, dtype=np.int64)
        for seed in seeds:
            rng = np.random.default_rng([size, seed, len(str(extra))])
            shift = np.resize(spread, size)[:, None] * rng.standard_normal((size, 64)) / 8
            name = f"{size},{seed},{len(list(folder.glob('*')))}"
            write_dictionary(folder / name, unit(truth + shift), count, seed=seed, **extra)


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2)])
@pytest.mark.parametrize(("first", "last", "expected"), [(3, 0.1, HOLDS), (0.1, 3, FAILS)])
def test_frequent_features_are_shared_more_or_less_than_rare_ones(
    tmp_path: Path, first: float, last: float, expected: str, seeds
):
    seeded(tmp_path, {n: [first] * (n // 2) + [last] * (n // 2) for n in (64, 128)}, seeds)
    assert Verdicts(tmp_path)["shared_rises_with_frequency"].verdict == expected


def test_frequency_is_not_mistaken_for_size(tmp_path: Path):
    """All of the small dictionary is shared and fires often; within each size nothing differs."""
    seeded(tmp_path, {64: [0.1], 128: [3.0]}, (0, 1))
    for size, often in ((64, 5000), (128, 1)):
        for folder in tmp_path.glob(f"{size},*"):
            save_file(
                {"fire_count": np.full(size, often, np.int64)}, folder / "features.safetensors"
            )
    assert Verdicts(tmp_path)["shared_rises_with_frequency"].verdict != HOLDS


@pytest.mark.parametrize("seeds", [(0, 1), (0, 1, 2)])
@pytest.mark.parametrize(
    ("relu", "topk", "steadier", "higher"), [(0.1, 3, HOLDS, FAILS), (3, 0.1, FAILS, HOLDS)]
)
def test_relu_and_topk_are_ordered_by_shares_and_by_pw_mcc(
    tmp_path: Path, relu: float, topk: float, steadier: str, higher: str, seeds
):
    seeded(tmp_path, {64: [relu]}, seeds)
    seeded(tmp_path, {64: [topk]}, seeds, activation="topk", sae={"k": 4})
    # What the rule leaves aside: tied ones, those trained in pairs, BatchTopK.
    seeded(tmp_path, {64: [topk]}, seeds, tied=True)
    seeded(tmp_path, {64: [topk]}, seeds, sae={"strategy": "freeze_perturb"})
    seeded(tmp_path, {64: [relu]}, seeds, activation="batch_topk", sae={"k": 4})
    found = Verdicts(tmp_path)
    assert found["relu_steadier_than_topk"].verdict == steadier
    assert found["topk_higher_pw_mcc"].verdict == higher
    assert "; BatchTopK: " in found["topk_higher_pw_mcc"].ours
    over = "3 seeds" if len(seeds) == 3 else "features (bootstrap)"
    assert found["relu_steadier_than_topk"].over == over


def test_batch_topk_alone_gives_no_verdict_on_topk(tmp_path: Path):
    seeded(tmp_path, {64: [0.1]}, (0, 1))
    seeded(tmp_path, {64: [3.0]}, (0, 1), activation="batch_topk", sae={"k": 4})
    found = Verdicts(tmp_path)["relu_steadier_than_topk"]
    assert found.verdict == OPEN
    assert "; BatchTopK: 100% against 0%" in found.ours


def test_a_kind_that_is_matched_several_times_makes_no_interval_narrower(tmp_path: Path):
    seeded(tmp_path, {64: [0.1]}, (0, 1))
    seeded(tmp_path, {64: [0.1, 3.0]}, (0, 1), activation="topk", sae={"k": 4})
    once = Verdicts(tmp_path)["relu_steadier_than_topk"].interval
    originals = list(tmp_path.glob("64,*"))
    for l1 in (0.031, 0.032, 0.033):
        for path in originals:
            metrics = json.loads((path / "metrics.json").read_text())
            if metrics["activation"] == "relu":
                copy = tmp_path / f"{path.name}L1{l1}"
                shutil.copytree(path, copy)
                metrics["l1"] = metrics["config"]["sae"]["l1"] = l1
                (copy / "metrics.json").write_text(json.dumps(metrics))
    again = Verdicts(tmp_path)["relu_steadier_than_topk"].interval
    assert once is not None
    assert again is not None
    # All spread is TopK's one pair; four copies of it taken for independent would halve it.
    assert again[1] - again[0] == pytest.approx(once[1] - once[0], rel=0.15)


def test_sizes_too_large_to_match_are_named_in_the_claims(tmp_path: Path):
    seeded(tmp_path, {32: [0.1], 64: [0.1], 128: [0.1]}, (0, 1))
    found = Verdicts(tmp_path, match_limit=64)
    assert found["shared_across_seeds"].ours == "100% (100% at 32, 100% at 64)"
    found = Verdicts(tmp_path, match_limit=8)
    needs = "needs several seeds of sizes up to comparison.match_limit"
    assert found["shared_falls_with_size"].ours == needs
    context = compared(tmp_path, "agreement", match_limit=64)
    frame.measure(context)
    assert any("not compared: size 128" in str(block) for block in seeds.show(context))


def neurons(folder: Path, found: Array, others: Array, sizes=(64, 128)) -> None:
    """Dictionaries whose first half is the same in all, with rows as `found`, then as `others`."""
    for size in sizes:
        rest = others(np.random.default_rng(size), size - 32)
        rows = np.concatenate([found(np.random.default_rng(0), 32), rest])
        write_dictionary(folder / str(size), unit(rows), np.ones(size, np.int64))


def dense(rng: np.random.Generator, n: int) -> Any:
    return np.sign(rng.standard_normal((n, 64))) * rng.uniform(0.7, 1.3, (n, 64))


def normal(rng: np.random.Generator, n: int) -> Any:
    return rng.standard_normal((n, 64))


def sparse(rng: np.random.Generator, n: int) -> Any:
    return rng.standard_normal((n, 64)) * (rng.random((n, 64)) < 0.3) + 1e-3


@pytest.mark.parametrize(
    ("found", "others", "against_random", "against_low"),
    [(dense, normal, HOLDS, HOLDS), (sparse, normal, FAILS, FAILS), (sparse, sparse, FAILS, OPEN)],
)
def test_effective_neurons_are_judged_in_both_directions(
    tmp_path: Path, found, others, against_random: str, against_low: str
):
    neurons(tmp_path, found, others)
    claims = Verdicts(tmp_path)
    assert claims["neurons_high_vs_random"].verdict == against_random
    assert claims["neurons_high_vs_low"].verdict == against_low


def test_features_as_spread_as_random_ones_are_no_sparser(tmp_path: Path):
    """Three hundred of them: the interval is then narrower than the margin, and around zero."""
    for size in (300, 600):
        rows = np.concatenate([directions(300, 64, 0), directions(size - 300 + 8, 64, size)])
        write_dictionary(tmp_path / str(size + 8), rows, np.ones(size + 8, np.int64))
    claim = Verdicts(tmp_path)["neurons_high_vs_random"]
    assert claim.interval is not None
    assert claim.interval[0] < 0 < claim.interval[1]
    assert claim.verdict == HOLDS


@pytest.mark.parametrize(("lone", "expected"), [(0, FAILS), (2, HOLDS), (15, OPEN), (90, FAILS)])
def test_a_few_features_on_one_neuron_are_outliers_and_many_are_not(
    tmp_path: Path, lone: int, expected: str
):
    rows = directions(300, 64, 0)
    rows[:lone] = unit(np.eye(64)[np.arange(lone) % 64] + 0.2 * rows[:lone])
    for size in (308, 608):
        more = directions(size - 300, 64, size)
        write_dictionary(
            tmp_path / str(size), np.concatenate([rows, more]), np.ones(size, np.int64)
        )
    claim = Verdicts(tmp_path)["neuron_outliers"]
    assert (claim.verdict, claim.ours) == (expected, f"{lone} of 300 features above the threshold")


@pytest.mark.parametrize(("dead", "expected"), [(1.0, HOLDS), (0.5, OPEN), (0.0, FAILS)])
def test_the_lower_hump_is_made_of_dead_features_or_not(tmp_path: Path, dead: float, expected: str):
    grown(tmp_path, {128: 64, 256: 128, 512: 128}, dead=dead)
    claim = Verdicts(tmp_path)["low_hump_dead"]
    assert claim.verdict == expected
    assert claim.ours.startswith(f"{dead:.0%} never active")
    alive = Verdicts(tmp_path, features="alive")["low_hump_dead"]
    assert alive.verdict == OPEN


def test_a_verdict_agrees_with_a_paper_that_says_the_same_be_it_that_a_claim_does_not_hold(
    tmp_path: Path,
):
    seeded(tmp_path / "alike", {64: [0.1]}, (0, 1))
    seeded(tmp_path / "apart", {64: [9.0]}, (0, 1))
    for name, held, agrees, shown in (("alike", HOLDS, False, "no"), ("apart", FAILS, True, "yes")):
        found = Verdicts(tmp_path / name)
        claim = found["shared_across_seeds"]
        assert (claim.verdict, claim.agrees, claim.as_json()["agrees"]) == (held, agrees, agrees)
        assert found["found_along_chain"].agrees is None
        column = claims.table([claim, replace(claim, verdict=OPEN)])["agrees with its source"]
        assert column.tolist() == [shown, "-"]


def test_what_is_found_in_most_larger_dictionaries_is_not_found_in_every_one(tmp_path: Path):
    """Of 100 features that the next size has, the largest has 70."""
    truth = directions(100, 64, 0)
    for size, known in ((100, 100), (120, 100), (140, 70)):
        rows = np.concatenate([truth[:known], directions(size - known, 64, size)])
        write_dictionary(tmp_path / str(size), rows, np.ones(size, np.int64))
    claim = Verdicts(tmp_path)["found_along_chain"]
    assert (claim.verdict, claim.ours) == (FAILS, "70% (70 of 100)")


def test_one_histogram_with_one_hump_is_enough_against_two_humps_in_every_one(tmp_path: Path):
    grown(tmp_path, {96: 0, 128: 64, 256: 128, 512: 128})
    claim = Verdicts(tmp_path)["bimodal"]
    assert claim.ours.startswith("2 of 3 sizes")
    assert claim.verdict == FAILS


def test_dictionaries_too_small_for_the_dip_test_leave_bimodality_open(tmp_path: Path):
    write_study(tmp_path, sizes=(8, 16, 32))
    claim = Verdicts(tmp_path)["bimodal"]
    assert (claim.verdict, "too few" in claim.ours) == (OPEN, True)


def test_one_broad_hump_has_no_lower_one(tmp_path: Path):
    """Cosines spread evenly from .3 to 1: two Gaussians fit better than one, without a dip."""
    rows = directions(200, 256, 0)
    cosine = np.linspace(0.3, 1, 200)[:, None]
    away = np.random.default_rng(1).standard_normal((200, 256))
    away = unit(away - (away * rows).sum(axis=1, keepdims=True) * rows)
    near = cosine * rows + np.sqrt(1 - cosine**2) * away
    write_dictionary(tmp_path / "small", rows, np.ones(200, np.int64))
    more = np.concatenate([near, directions(8, 256, 2)])
    write_dictionary(tmp_path / "large", unit(more), np.ones(208, np.int64))
    found = Verdicts(tmp_path)
    assert (found["bimodal"].verdict, found["low_hump_random"].verdict) == (FAILS, OPEN)


def test_the_value_beside_an_interval_over_seeds_is_the_mean_over_seeds(tmp_path: Path):
    write_study(tmp_path, sizes=(32, 64), seeds=(0, 1, 2), d=64)
    comparison = compared(tmp_path).comparison
    chains = comparison.study.chains
    mean = np.mean([comparison.numbers(chain.entries[0])["mmcs"] for chain in chains])
    assert f"MMCS {mean:.3f}" in Verdicts(tmp_path)["mmcs_above_random"].ours
    counts = [comparison.mcs(chain.entries[0]) > 0.9 for chain in chains]
    shown = f"({np.sum(counts)} of {np.size(counts)} in 3 seeds)"
    assert shown in Verdicts(tmp_path)["share_above_threshold"].ours


def test_the_slope_is_that_of_the_main_kind_which_is_named(tmp_path: Path):
    grid = tuple(10 ** np.arange(-2.75, -0.2, 0.25))
    sizes = (32, 64, 128, 256)
    write_study(tmp_path, sizes=sizes, l1s=grid, noise=0.02, d=64)
    write_study(
        tmp_path, sizes=sizes, l1s=grid[1:-1], noise=0.02, d=64, prefix="a",
        extra={"tied": True, "activation": "jumprelu"},
    )  # fmt: skip
    context = compared(tmp_path, "ridge")
    frame.measure(context)
    vertical, study = ridge.CLAIMS[0], context.tables
    ridges = study.others["ridges"]
    assert ridges["family"].tolist() == list(context.study.families)
    assert judge(vertical, study).ours.endswith(f"({study.about.family})")
    study.others["ridges"] = ridges[::-1]
    assert judge(vertical, study).ours.endswith(f"({ridges['family'].iloc[-1]})")
