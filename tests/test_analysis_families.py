from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_study import write_study
from test_analysis_similarity import settings_of

from sparse_dict.analysis import study
from sparse_dict.analysis.analyses import families, seeds
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report import page as report


def compared(folder: Path, seeds=(0, 1)) -> Comparison:
    for activation in ("relu", "topk"):
        write_study(
            folder, sizes=(16, 32), l1s=(0.01, 0.03, 0.1) if activation == "relu" else (0.03,),
            seeds=seeds, prefix=f"sae={activation},", extra={"activation": activation},
        )  # fmt: skip
    return Comparison(study.load(folder), settings_of())


def draw(key: str, figure: Any, title: str, caption: str) -> report.Picture:
    figure.canvas.draw()
    figures.plt.close(figure)
    return report.Picture(key, title, caption, b"")


def test_kinds_are_named_by_their_architecture_and_taken_at_their_best_l1(tmp_path: Path):
    both = compared(tmp_path)
    assert set(families.names(both.study).values()) == {"ReLU", "TopK"}
    pairs = seeds.compare(both.study, 99)
    frame = families.table(both, pairs)
    assert frame[frame["kind"] == "ReLU"]["sparsity"].unique().tolist() == ["L1 0.03"]
    relu = frame[(frame["kind"] == "ReLU") & (frame["dict_size"] == 16)]
    entry = next(e for e in both.study.entries if (e.size, e.l1) == (16, 0.03))
    (pair,) = [p for p in pairs if p.first is entry]
    assert relu["shared_fraction"].dropna().tolist() == [pair.shared.mean()]
    assert relu["mmcs_next"].dropna().iloc[0] == pytest.approx(both.counted(entry).mean())
    assert np.isnan(frame[frame["dict_size"] == 32]["mmcs_next"]).all()


def test_the_section_compares_kinds_and_tells_their_shares(tmp_path: Path):
    both = compared(tmp_path)
    pairs = seeds.compare(both.study, 99)
    with figures.style():
        told = families.section(both, pairs, draw)
    assert told is not None
    text = " ".join(block for block in told.blocks if isinstance(block, str))
    assert "ReLU: " in text
    assert "TopK: " in text
    assert "twice the work" not in text


def test_one_seed_or_one_kind_leaves_out_what_cannot_be_compared(tmp_path: Path):
    both = compared(tmp_path / "both", seeds=(0,))
    with figures.style():
        told = families.section(both, [], draw)
    assert told is not None
    assert any("one seed" in block for block in told.blocks if isinstance(block, str))
    write_study(tmp_path / "one", sizes=(16, 32))
    one = Comparison(study.load(tmp_path / "one"), settings_of())
    assert families.section(one, [], draw) is None
