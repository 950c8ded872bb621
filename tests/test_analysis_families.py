from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, write_study

from sparse_dict.analysis import frame
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import Block
from sparse_dict.analysis.sections import families


def kinds(folder: Path, seeds=(0, 1)) -> Context:
    for activation in ("relu", "topk"):
        write_study(
            folder, sizes=(16, 32), l1s=(0.01, 0.03, 0.1) if activation == "relu" else (0.03,),
            seeds=seeds, prefix=f"sae={activation},", extra={"activation": activation},
        )  # fmt: skip
    context = compared(folder, "families", match_limit=99)
    frame.measure(context)
    return context


def blocks(context: Context) -> list[Block]:
    with figures.style():
        return [*families.show(context)]


def test_kinds_are_named_by_their_architecture_and_taken_at_the_l1_of_the_rule(tmp_path: Path):
    context = kinds(tmp_path)
    known, pairs = families.at_level(context.tables)
    assert {*known["kind"]} == {"ReLU", "TopK"}
    table = families.at_equal_size(known, pairs).set_index(["kind", "size"])
    assert {*table.loc["ReLU", "sparsity"]} == {"L1 0.03"}
    own = pairs[(pairs["kind"] == "ReLU") & (pairs["size"] == 16)]
    assert table.at[("ReLU", 16), families.PANELS["same"]] == own["same"].mean()
    entries = [
        e
        for e in context.study.entries
        if (e.size, e.l1, e.family) == (16, 0.03, own["family"].iloc[0])
    ]
    means = [context.comparison.numbers(entry)["mmcs"] for entry in entries]
    assert table.at[("ReLU", 16), families.PANELS["mmcs"]] == pytest.approx(np.mean(means))
    assert np.isnan(table.at[("ReLU", 32), families.PANELS["mmcs"]])


def test_kinds_are_compared_where_there_are_several_and_seeds_where_there_are(tmp_path: Path):
    _picture, shares, *_ = blocks(kinds(tmp_path / "two"))
    assert "ReLU: " in shares
    assert "TopK: " in shares
    assert "one seed" in blocks(kinds(tmp_path / "both", seeds=(0,)))[1]
    write_study(tmp_path / "one", sizes=(16, 32))
    one = compared(tmp_path / "one", "families")
    frame.measure(one)
    assert blocks(one) == []
