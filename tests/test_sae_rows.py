"""Dictionaries that see other rows, and what their agreement is due to."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from analysis_study import EVAL_ROWS, compared, directions, unit, write_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import of_cosines
from sae_helpers import sae_config, sparse_rows

from sparse_dict.analysis import frame
from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, judge
from sparse_dict.analysis.measured import split_halves
from sparse_dict.analysis.sections import rows as section
from sparse_dict.analysis.study import rows as rows_of
from sparse_dict.analysis.tables import BOTH
from sparse_dict.errors import UserError
from sparse_dict.sae import rows as module
from sparse_dict.sae import stage
from sparse_dict.sae.rows import Rows

D_IN = 16
INITIAL, DATA = "initial values", "data"  # as the section names what differs


class Numbered:
    """Activations whose rows are their own numbers."""

    def __init__(self, rows: int) -> None:
        self.rows, self.d_in, self.folder = rows, 1, Path("numbered")

    def read_into(self, start: int, out: np.ndarray) -> None:
        assert 0 <= start <= start + len(out) <= self.rows
        out[:] = np.arange(start, start + len(out))[:, None]


def selected(rows: int, batch: int, which: str, seed: int = 0, part: int = 7) -> np.ndarray:
    training = replace(
        sae_config().training, eval_rows=5, batch_size=batch, rows=which, rows_seed=seed
    )
    chosen = Rows(Numbered(rows + 5), training)
    out = np.empty((chosen.rows, 1))
    for start in range(0, chosen.rows, part):
        chosen.read_into(start, out[start : start + part])
    return out[:, 0].astype(int)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 10)


@settings(max_examples=60)
@given(
    batch=st.integers(1, 16),
    blocks=st.integers(2, 9),
    rest=st.integers(0, 9),
    seed=st.integers(0, 3),
    part=st.integers(1, 50),
)
def test_halves_are_disjoint_and_equal_and_a_bootstrap_is_as_long_as_the_data(
    batch, blocks, rest, seed, part
):
    block = -(-10 // batch) * batch
    rows = blocks * block + rest
    assert selected(rows, batch, "all", seed, part).tolist() == list(range(rows))
    a, b = (selected(rows, batch, half, seed, part) for half in ("half_a", "half_b"))
    assert len(a) == len(b) == blocks // 2 * block
    assert not set(a) & set(b)
    drawn = selected(rows, batch, "bootstrap", seed, part)
    assert len(drawn) == rows // block * block
    for seen in (a, b, drawn):
        whole = seen.reshape(-1, block)
        assert (np.diff(whole, axis=1) == 1).all()
        assert (whole[:, 0] % block == 0).all()


def test_another_seed_is_another_split_and_another_sample():
    for which in ("half_a", "bootstrap"):
        assert selected(400, 10, which, 0).tolist() != selected(400, 10, which, 1).tolist()


def test_too_few_rows_for_two_blocks_are_one_line():
    for which in ("half_a", "half_b", "bootstrap"):
        with pytest.raises(UserError, match=r"too few for blocks of"):
            selected(19, 10, which)


def test_a_half_in_company_is_trained_as_if_there_were_no_other_rows(tmp_path: Path):
    rows = sparse_rows(40 * 50 + 20, D_IN).numpy()
    (tmp_path / "whole").mkdir()
    (tmp_path / "half").mkdir()
    np.save(tmp_path / "whole/x.npy", rows)
    training = {"batch_size": 50, "eval_rows": 20, "n_activations": 3000}
    whole = replace(
        sae_config(training=training), activations_dir=str(tmp_path / "whole"),
        study_dir=str(tmp_path), activations=replace(sae_config().activations, scaling="none"),
    )  # fmt: skip
    half = replace(whole, training=replace(whole.training, rows="half_b", rows_seed=3))
    seen = selected(2000, 50, "half_b", 3)
    np.save(tmp_path / "half/x.npy", np.concatenate([rows[seen], rows[-20:]]))
    alone = replace(whole, activations_dir=str(tmp_path / "half"))
    stage.train_many([whole, half], [tmp_path / "sae/whole", tmp_path / "sae/half"])
    stage.train_many([alone], [tmp_path / "other/alone"])
    weights = [
        (tmp_path / path / "sae_weights.safetensors").read_bytes()
        for path in ("sae/half", "other/alone", "sae/whole")
    ]
    assert weights[0] == weights[1] != weights[2]
    metrics = json.loads((tmp_path / "sae/half/metrics.json").read_text())
    assert metrics["trained_together"] == 2


def write(folder: Path, seed: int, rows: str, decoder: np.ndarray, rows_seed: int = 0) -> None:
    sae = asdict(sae_config(dict_size=len(decoder)).sae)
    fired = np.full(len(decoder), EVAL_ROWS // 10)
    path = write_dictionary(folder, unit(decoder), fired, seed=seed, sae=sae) / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["config"]["training"] |= {"rows": rows, "rows_seed": rows_seed}
    metrics["config"]["tracking"] = {"label": folder.name}  # a multirun gives each job its own
    path.write_text(json.dumps(metrics))


def planted(tmp_path: Path, of_seed: int, of_rows: int) -> dict[str, float]:
    """Agreement of dictionaries with features of their seed, of their rows, and their very own."""
    n, d = 40, 32
    for seed in range(3):
        for number, half in enumerate(("half_a", "half_b")):
            parts = [
                directions(of_seed, d, 100 + seed),
                directions(of_rows, d, 200 + number),
                directions(n - of_seed - of_rows, d, 300 + 10 * seed + number),
            ]
            write(tmp_path / f"{seed}{half}", seed, half, np.concatenate(parts))
    context = compared(tmp_path, "rows")
    frame.measure(context)
    table = context.tables.others["rows"].set_index("differs")
    assert table["pairs"].to_dict() == {INITIAL: 6, DATA: 3, BOTH: 6}
    assert table.at[DATA, "pw_mcc_at_step_0"] == pytest.approx(1, abs=of_cosines(32))
    assert table.at[INITIAL, "pw_mcc_at_step_0"] < 0.6
    assert len([*section.show(context)]) == 2
    assert judge(section.CLAIMS[0], context.tables).verdict == FAILS
    sides = split_halves._sides(context)  # the largest group is that of both halves
    assert [[entry.seed for entry in side] for side in sides] == [[0, 1, 2], [2, 1, 0]]
    assert [{rows_of(entry)[0] for entry in side} for side in sides] == [{"half_a"}, {"half_b"}]
    return table["shared_fraction"].to_dict()


@pytest.mark.parametrize(("of_seed", "of_rows"), [(30, 0), (0, 30), (20, 10)])
def test_agreement_is_put_down_to_what_two_dictionaries_have_in_common(
    tmp_path: Path, of_seed: int, of_rows: int
):
    shared = planted(tmp_path, of_seed, of_rows)
    assert shared[DATA] == pytest.approx(of_seed / 40, abs=0.03)  # the seed is what they share
    assert shared[INITIAL] == pytest.approx(of_rows / 40, abs=0.03)
    assert shared[BOTH] == pytest.approx(0, abs=0.03)


def test_rows_that_overlap_are_not_compared_and_bootstraps_are(tmp_path: Path):
    decoder = directions(20, 32, 0)
    write(tmp_path / "all", 0, "all", decoder)
    write(tmp_path / "a", 1, "half_a", decoder)
    write(tmp_path / "other split", 1, "half_b", decoder, rows_seed=1)
    context = compared(tmp_path, "rows")
    frame.measure(context)
    assert context.tables.pairs.empty
    assert not [*section.show(context)]
    assert judge(section.CLAIMS[0], context.tables).verdict == OPEN
    write(tmp_path / "boot 0", 0, "bootstrap", decoder)
    write(tmp_path / "boot 1", 2, "bootstrap", decoder, rows_seed=1)
    context = compared(tmp_path, "rows")
    frame.measure(context)
    assert context.tables.pairs["differ"].tolist() == [BOTH] * 20
    assert judge(section.CLAIMS[0], context.tables).verdict == HOLDS
