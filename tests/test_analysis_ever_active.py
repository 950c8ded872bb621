"""Features that were never active and yet are found again: both numbers are told."""

from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, directions, write_dictionary

from sparse_dict.analysis import frame, tracked
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import figures, mcs_histograms, summary
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.sections import histograms

ALL, ALIVE = 40, 30  # features that all sizes have, and how many of them were ever active


@pytest.fixture
def context(tmp_path: Path) -> Context:
    truth = directions(ALL, 64, 0)
    for size in (64, 128, 256):
        fired = np.ones(size, np.int64)
        fired[ALIVE:ALL] = 0
        decoder = np.concatenate([truth, directions(size - ALL, 64, size)])
        write_dictionary(tmp_path / str(size), decoder, fired)
    context = compared(tmp_path, "histograms")
    frame.measure(context)
    return context


def test_the_first_sentences_and_tracking_tell_both_numbers(context: Context):
    found = summary.sentences(context)[1]
    assert "80 of 192 features, 60 of the 172 ever active, are found again" in found
    values = tracked.summary(context)
    for size in (64, 128):
        assert (values[f"n_above/{size}"], values[f"n_above_alive/{size}"]) == (ALL, ALIVE)
    assert "n_above/256" not in values


def test_the_pictures_of_the_first_page_and_their_table_tell_both_numbers(context: Context):
    main = context.comparison.main
    assert main is not None
    with figures.style():
        comparison = context.comparison
        title = mcs_histograms.titled(comparison, main.entries[0], comparison.shown, True)
        (table,) = [block for block in histograms.show(context) if isinstance(block, Table)]
    assert title.endswith("40 (30 alive)")
    assert table.frame[["of", "above 0.9"]].values.tolist() == [["all", ALL], ["alive", ALIVE]] * 2
