"""What is said of dictionaries that explain nothing, and how a report and a log begin and end."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from analysis_study import (
    compared,
    config_of,
    directions,
    settings_of,
    write_dictionary,
    write_study,
)
from test_analysis_claims import Verdicts, assess

from sparse_dict.analysis import frame, stage
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN
from sparse_dict.analysis.report import summary
from sparse_dict.analysis.tables import Tables


def measured(folder: Path) -> Tables:
    context = compared(folder)
    frame.measure(context)
    return context.tables


def write(folder: Path, sizes=(32, 64, 128), fvu=0.1, fires=9, rows=None, l1=0.03) -> None:
    """Dictionaries whose features are all found again in the larger ones."""
    truth = directions(max(sizes), 64, 0)
    for size in sizes:
        decoder = truth[:size] if rows is None else np.tile(rows, (size, 1))
        count = np.full(size, fires, np.int64)
        write_dictionary(folder / f"{size},{l1}", decoder, count, fvu=fvu, l1=l1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"fires": 0, "fvu": 2.115}, "3 dead"),
        ({"fires": 0, "fvu": 0.999}, "3 dead"),
        ({"fvu": 1.0}, "3 with an FVU of 1 or more"),
        ({"rows": directions(1, 64, 0)}, "3 whose features are all the same"),
    ],
    ids=["dead", "dead, but for the mean", "untrained", "without variance"],
)
def test_dictionaries_that_explain_nothing_decide_no_claim(tmp_path: Path, fault, reason: str):
    write(tmp_path / "well")
    assert Verdicts(tmp_path / "well")["mmcs_above_random"].verdict == HOLDS
    write(tmp_path / "not", **fault)
    found = assess(tmp_path / "not")
    assert {claim.verdict for claim in found.values()} == {OPEN}
    ours = found["mmcs_above_random"].ours
    assert ours.startswith(f"cannot be decided: 3 of 3 dictionaries explain nothing ({reason}); MM")
    alarm = summary.alarm(measured(tmp_path / "not"))
    assert alarm is not None
    assert alarm.startswith(f"3 of 3 dictionaries explain nothing ({reason}): ")
    assert alarm.endswith("Train new ones with a lower L1.")


def test_one_that_is_dead_at_the_chosen_level_takes_the_claims_on_that_level(tmp_path: Path):
    write(tmp_path, sizes=(32, 64))
    write(tmp_path, sizes=(128,), fires=0, fvu=1.2)
    found = Verdicts(tmp_path)
    assert found["share_above_threshold"].verdict == OPEN
    assert "1 of 3 dictionaries at L1 0.03 explain nothing (1 dead)" in found["bimodal"].ours


def test_a_level_at_which_all_is_dead_does_not_spoil_the_one_that_is_shown(tmp_path: Path):
    write(tmp_path)
    write(tmp_path, fires=0, fvu=2.1, l1=0.3)
    assert Verdicts(tmp_path)["mmcs_above_random"].verdict == HOLDS
    assert summary.alarm(measured(tmp_path)) is None


def test_the_best_l1_of_a_size_is_none_at_which_its_dictionary_explains_nothing(tmp_path: Path):
    """Without the faults the middle L1 is the best of all three sizes, and the ridge vertical."""
    write_study(tmp_path, sizes=(32, 64, 128, 256), l1s=(0.01, 0.03, 0.1), d=64)
    assert Verdicts(tmp_path)["ridge_vertical"].verdict == HOLDS
    for path in tmp_path.glob("*l1=0.03*/metrics.json"):
        metrics = json.loads(path.read_text())
        path.write_text(json.dumps(metrics | {"fvu": 1.5}))
    assert Verdicts(tmp_path)["ridge_vertical"].verdict == OPEN


def test_random_dictionaries_that_do_reconstruct_still_fail(tmp_path: Path):
    for size in (32, 64, 128):
        write_dictionary(tmp_path / str(size), directions(size, 64, size), np.full(size, 9))
    assert Verdicts(tmp_path)["share_above_threshold"].verdict == FAILS


def test_the_log_ends_and_the_report_begins_with_what_was_trained_found_and_left_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    write_study(tmp_path / "sae", sizes=(16, 32, 64), l1s=(0.01, 0.03), seeds=(0, 1))
    (tmp_path / "analysis").mkdir()
    with caplog.at_level(logging.INFO):
        stage.run(config_of(tmp_path, "claims", "heatmap", comparison=settings_of()))
    *_, trained, found, simple, unsaid, path = caplog.messages
    assert trained == (
        "12 sparse dictionaries of 16 to 64 features (L1 0.01 to 0.03; 2 seeds) learned in "
        "1,000,000 visits to rows of 32 values."
    )
    claims = json.loads((tmp_path / "analysis" / "claims.json").read_text())["claims"]
    n = [sum(c["verdict"] == verdict for c in claims) for verdict in (HOLDS, FAILS, OPEN)]
    assert found.startswith("At L1 0.03, where 24% of the variance is left unexplained by ")
    agree = [sum(c["agrees"] is outcome for c in claims) for outcome in (True, False)]
    assert f"of {len(claims)} claims {n[0]} hold and {n[1]} do not; " in found
    assert found.endswith(
        f"{agree[0]} of these verdicts agree with the post or paper that makes the claim, "
        f"{agree[1]} do not."
    )
    assert agree[0] > 0
    assert simple.endswith("was not measured: baselines is off.")
    assert unsaid.startswith(f"{n[2]} claims stay undecided, ")
    assert path == f"to open in a browser: {tmp_path / 'analysis' / 'report.html'}"
    page = (tmp_path / "analysis" / "report.html").read_text()
    assert f'<p class="lead">{trained} At L1 0.03' in page
    assert page.index(trained) < page.index("<h2>")
    assert 'class="alarm"' not in page
    told = [m.removeprefix("analyze, ") for m in caplog.messages if m.startswith("analyze, ")]
    assert told[0] == "0 of 100 %: measuring dictionaries"
    assert told[1].endswith(" of 100 %: heatmap")
    assert told[2:] == ["100 of 100 %: the report"]


def test_a_study_of_dead_dictionaries_says_so_in_red_before_all_else(tmp_path: Path):
    write(tmp_path / "sae", fires=0, fvu=2.115)
    stage.run(config_of(tmp_path, "claims", "heatmap"))
    page = (tmp_path / "analysis" / "report.html").read_text()
    line = '<p class="alarm">3 of 3 dictionaries explain nothing (3 dead): '
    assert page.count(line) == 1
    assert page.index(line) < page.index('<p class="lead">')
    assert "Nothing was found: 3 of 3 dictionaries explain nothing" in page
