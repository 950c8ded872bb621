"""Kinds of dictionaries compared where their L0 is the same."""

from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
import pytest
from analysis_study import compared, directions, unit, write_dictionary

from sparse_dict.analysis import frame
from sparse_dict.analysis.claim import groups_of, samples
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measured import equal_l0
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.sections import families

N, D_IN = 20, 24
LEVELS = {0.01: 16.0, 0.02: 8.0, 0.04: 4.0}  # L1 and what L0 it gives


def write(folder: Path, kind: str, own: dict, shared: dict[float, int], seeds, **by_level) -> None:
    """Dictionaries that have `shared` features in common with other seeds, by L1.

    `by_level` are metrics as functions of log2 L0.
    """
    for l1, l0 in (by_level.pop("levels", None) or LEVELS).items():
        for seed in seeds:
            n = shared[l1] if isinstance(shared, dict) else shared
            own_rows = directions(N - n, D_IN, crc32(f"{kind} {l1} {seed}".encode()))
            rows = np.concatenate([directions(n, D_IN, 5), own_rows])
            write_dictionary(
                folder / f"{kind},{l1},{seed}", unit(rows), np.ones(N, np.int64), l1=l1, seed=seed,
                l0=l0, sae=own, **{name: of(np.log2(l0)) for name, of in by_level.items()},
            )  # fmt: skip


def study(folder: Path, seeds=(0, 1, 2)) -> Context:
    """Guided dictionaries share four features more, with an FVU .03 higher, at half the L0."""
    plain, guided = ({"guide": g, "encoder_norm": False} for g in ("none", "penalty"))
    write(folder, "plain", plain, {0.01: 4, 0.02: 8, 0.04: 12}, seeds, fvu=lambda x: 0.4 - x / 20)
    half = {l1: l0 / 2 for l1, l0 in LEVELS.items()}
    more = {0.01: 12, 0.02: 16, 0.04: 20}  # what plain has at that L0, and four more
    write(
        folder, "guided", guided, more, seeds, levels=half, fvu=lambda x: 0.43 - x / 20
    )  # fmt: skip
    write(folder, "far", guided | {"encoder_norm": True}, 10, seeds, levels={0.01: 99.0})
    return measured(folder)


def measured(folder: Path) -> Context:
    context = compared(folder, "families", max_fvu=0.26)
    frame.measure(context)
    return context


def numbers(context: Context) -> pd.DataFrame:
    with figures.style():
        blocks = [*families.show(context)]
    assert "encoder_norm=True" in blocks[3].caption.split("Without levels")[1]
    return context.tables.others["equal_l0"].set_index(["kind", "measure"])


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0, 1)])
def test_kinds_are_read_off_at_the_l0_of_the_plain_kind(tmp_path: Path, seeds):
    frame = numbers(study(tmp_path, seeds))
    assert {kind for kind, _ in frame.index} == {"plain", "guide=penalty"}
    assert frame["l0"].unique() == [8.0]  # the sparsest plain level with an FVU of at most .26
    shared, fvu = (frame.loc["guide=penalty", name] for name in ("shared", "fvu"))
    assert frame.loc["plain", "shared"]["value"] == pytest.approx(8 / N)
    assert shared["value"] == pytest.approx(12 / N)
    assert shared["change"] == pytest.approx(4 / N)
    assert fvu["change"] == pytest.approx(0.03)
    assert shared["change_low"] <= shared["change"] <= shared["change_high"]
    if len(seeds) > 2:  # every seed says the same
        assert fvu["change_low"] == pytest.approx(fvu["change_high"]) == pytest.approx(0.03)
    else:  # features do not say how the FVU of another seed would differ
        assert np.isnan(fvu["change_low"])
        assert shared["change_low"] < shared["change_high"]
    assert (frame.loc["plain"]["change"] == 0).all()


def test_between_levels_values_are_read_off_along_the_logarithm_and_not_beyond(tmp_path: Path):
    pairs = study(tmp_path).tables.seed_pairs
    plain = pairs[pairs["family"].str.endswith("guide=none")]
    family = plain["family"].iloc[0]
    values = plain.assign(fvu=0.4 - np.log2(plain["l0"]) / 20)[["l0", "fvu"]]
    groups = groups_of(samples(plain, values, equal_l0.GROUP))

    def fvu(l0: float) -> float:
        return equal_l0.read_off(family, l0, groups)

    for l0 in (4.0, 5.0, 8.0, 11.0, 16.0):
        assert fvu(l0) == pytest.approx(0.4 - np.log2(l0) / 20)
    assert fvu(16.5) == pytest.approx(fvu(16.0))  # the same L0 within 5 %
    assert np.isnan(fvu(3.7))
    assert np.isnan(fvu(17.0))


def test_one_level_of_each_kind_gives_no_comparison_unless_their_l0_is_the_same(tmp_path: Path):
    for kind, l0 in (("none", 8.0), ("select", 8.2), ("penalty", 9.0)):
        sae = {"guide": kind}
        write(tmp_path, kind, sae, 9, (0, 1), levels={0.02: l0}, fvu=lambda _: 0.2)
    found = measured(tmp_path).tables.others["equal_l0"]
    assert set(found["kind"]) == {"plain", "guide=select"}
