from pathlib import Path

import numpy as np
import pytest
from analysis_study import compared, write_study

from sparse_dict.analysis.analyses import families
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import figures


def kinds(folder: Path, seeds=(0, 1)) -> Context:
    for activation in ("relu", "topk"):
        write_study(
            folder, sizes=(16, 32), l1s=(0.01, 0.03, 0.1) if activation == "relu" else (0.03,),
            seeds=seeds, prefix=f"sae={activation},", extra={"activation": activation},
        )  # fmt: skip
    return compared(folder, match_limit=99)


def text_of(context: Context) -> str:
    with figures.style():
        section = families.section(context)
    assert section is not None
    return " ".join(block for block in section.blocks if isinstance(block, str))


def test_kinds_are_named_by_their_architecture_and_taken_at_the_l1_of_the_rule(tmp_path: Path):
    context = kinds(tmp_path)
    both, pairs = context.comparison, context.seed_pairs
    assert set(families.kinds(both.study).values()) == {"ReLU", "TopK"}
    frame = families.table(both, pairs)
    assert frame[frame["kind"] == "ReLU"]["sparsity"].unique().tolist() == ["L1 0.03"]
    relu = frame[(frame["kind"] == "ReLU") & (frame["dict_size"] == 16)]
    entry = next(e for e in both.study.entries if (e.size, e.l1) == (16, 0.03))
    (pair,) = [p for p in pairs if p.first is entry]
    assert relu["shared_fraction"].dropna().tolist() == [pair.shared.mean()]
    assert relu["mmcs_next"].dropna().iloc[0] == pytest.approx(both.counted(entry).mean())
    assert np.isnan(frame[frame["dict_size"] == 32]["mmcs_next"]).all()


def test_the_section_compares_kinds_and_their_shares(tmp_path: Path):
    text = text_of(kinds(tmp_path))
    assert "ReLU: " in text
    assert "TopK: " in text
    assert "twice the work" not in text


def test_one_seed_or_one_kind_leaves_out_what_cannot_be_compared(tmp_path: Path):
    assert "one seed" in text_of(kinds(tmp_path / "both", seeds=(0,)))
    write_study(tmp_path / "one", sizes=(16, 32))
    assert families.section(compared(tmp_path / "one")) is None
