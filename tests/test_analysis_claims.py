import json
from pathlib import Path

import numpy as np
import pytest
from analysis_study import write_dictionary, write_study
from test_analysis_similarity import directions, settings_of

from sparse_dict.analysis import analyses, claims, ridge, seeds, study
from sparse_dict.analysis.claims import FAILS, HOLDS, UNTOLD, verdict
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.intervals import Estimate


def assess(folder: Path, **changes: object) -> dict[str, claims.Claim]:
    compared = Comparison(study.load(folder), settings_of(**changes))
    pairs = seeds.compare(compared.study, 2048)
    found = analyses.assess(compared, ridge.fit(compared.cells()), pairs, None)
    assert len({claim.key for claim in found}) == len(found)
    json.dumps([claim.as_json() for claim in found], allow_nan=False)
    assert len(claims.table(found)) == len(found)
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
    assert found["interior_l1"].ours == "k was swept, not L1"
    assert found["ridge_vertical"].verdict == UNTOLD
    main = Comparison(study.load(tmp_path), settings_of()).main
    told = claims.section(list(found.values()), main).blocks
    assert any("it is k that was varied" in block for block in told if isinstance(block, str))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.2, 0.3, HOLDS), (0.0, 0.05, FAILS), (0.05, 0.2, UNTOLD), (np.nan, np.nan, UNTOLD)],
)
def test_a_verdict_needs_the_whole_interval_on_one_side_of_the_bar(low, high, expected):
    assert verdict(Estimate(0.1, low, high, "features"), 0.1) == expected


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
    assert found["ridge_diagonal"].verdict == UNTOLD
    assert found["relu_steadier_than_topk"].verdict == UNTOLD
    # 75 % of the smallest dictionary's features are true ones, and all of these are found.
    assert found["found_along_chain"].ours == "100% (24 of 24)"


def test_a_ridge_that_moves_with_the_size_is_told_from_one_that_does_not(tmp_path: Path):
    grid = tuple(10 ** np.arange(-2.75, -0.2, 0.25))
    for scaling in ("none", "dict_size"):
        write_study(
            tmp_path, sizes=(32, 64, 128, 256), l1s=grid, noise=0.02, d=64,
            extra={"l1_scaling": scaling}, prefix=f"{scaling},",
        )  # fmt: skip
    found = assess(tmp_path)
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
    assert found["neurons_high_vs_low"].verdict == UNTOLD
    assert not {HOLDS} & {c.verdict for key, c in found.items() if key != "low_hump_random"}


def test_what_a_single_dictionary_cannot_tell_is_said_so(tmp_path: Path):
    write_dictionary(tmp_path / "only", directions(8, 4, 0), np.full(8, 1, np.int64))
    found = assess(tmp_path)
    assert {claim.verdict for claim in found.values()} == {UNTOLD}
    assert all(claim.ours for claim in found.values())


def test_a_study_without_alive_features_is_no_error(tmp_path: Path):
    for size in (8, 16):
        write_dictionary(tmp_path / str(size), directions(size, 4, 0), np.zeros(size, np.int64))
    assert {c.verdict for c in assess(tmp_path, features="alive").values()} == {UNTOLD}


def test_relu_and_topk_are_compared_at_the_same_size_and_sparsity(tmp_path: Path):
    write_study(tmp_path, sizes=(64,), seeds=(0, 1), noise=0.01, d=64)
    write_study(
        tmp_path, sizes=(64,), seeds=(0, 1), noise=0.3, d=64,
        extra={"activation": "topk"}, prefix="topk,",
    )  # fmt: skip
    assert assess(tmp_path)["relu_steadier_than_topk"].verdict == HOLDS


def test_analyses_that_are_off_leave_their_claims_open(tmp_path: Path):
    write_study(tmp_path, sizes=(16, 32))
    compared = Comparison(study.load(tmp_path), settings_of())
    found = analyses.assess(compared, None, None, None)
    off = [claim for claim in found if claim.ours.endswith(" is off")]
    assert len(off) == 7
    assert {claim.verdict for claim in off} == {UNTOLD}
