"""Which features two sites share, on data where that is known."""

from pathlib import Path

import numpy as np
import pytest
from analysis_study import config_of, context_of, write_dictionary
from rounding import of_cosines
from sae_helpers import sae_config
from site_harvest import harvest_of

from sparse_dict.activations.store import Activations
from sparse_dict.analysis import frame
from sparse_dict.analysis.measured import exclusive
from sparse_dict.analysis.sections import crosscoders
from sparse_dict.sae import stage
from sparse_dict.sae.folder import read
from sparse_dict.sae.scaling import Scaling

D = 24
SITES = ("1/mlp_out", "2/mlp_out")


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def planted(n: int, gains: list[tuple[float, float]], seed: int = 0):
    """Rows of two sites, sums of the same sparse codes, and each feature's direction at both."""
    rng = np.random.default_rng(seed)
    directions = [unit(rng.standard_normal((len(gains), D))) for _ in SITES]
    parts = [g[:, None] * rows for g, rows in zip(np.transpose(gains), directions, strict=True)]
    codes = (rng.random((n, len(gains))) < 0.08) * rng.uniform(0.5, 1.5, (n, len(gains)))
    return {site: codes @ part for site, part in zip(SITES, parts, strict=True)}, parts, codes


def study_of(folder: Path, parts: np.ndarray, rows: dict[str, np.ndarray]):
    """A dictionary whose decoder rows are `parts`, on such rows; its encoder reads them well."""
    print_ = Activations.open(harvest_of(folder / "activations", rows)).fingerprint
    norms = np.linalg.norm(parts, axis=1, keepdims=True)
    decoder = (parts / norms).astype("f4")
    write_dictionary(
        folder / "sae" / "a", decoder, np.full(len(decoder), 9),
        encoder=np.linalg.pinv(decoder).T.astype("f4"), eval_rows=3000, activation="crosscoder",
        fingerprints={"activations": print_},
    )  # fmt: skip
    path = folder / "sae" / "a" / "metrics.json"
    text = path.read_text().replace(
        '"training":', '"activations": {"scaling": "none"}, "training":'
    )
    path.write_text(text)
    return context_of(config_of(folder, "crosscoders"))


def test_relative_norms_and_their_tests_tell_what_a_feature_is(tmp_path):
    gains = [(1, 1), (1, 1), (1, 0), (0, 1), (1, 0.8), (1, 1)]
    rows, (first, second), _ = planted(3000, gains)
    second = second.copy()
    second[4] = 0  # what L1 may have made of a shared feature: nothing is left of its second part
    both = np.concatenate([first, second], axis=1)
    # and of the last one, which is there twice
    twice = both[5] * np.repeat([[1, 0], [0, 1]], D, axis=1)
    context = study_of(tmp_path, np.concatenate([both[:5], twice]), rows)
    entry, pairs = context.study.entries[0], exclusive.neighbours(context)
    assert [*pairs] == ["1/mlp_out and 2/mlp_out"]
    x = context.evaluation_rows()
    tested = exclusive.tested(entry, x, np.ones(2 * D, "f4"), pairs)
    shares = [0.5, 0.5, 0, 1, 0, 0, 1]
    np.testing.assert_allclose(tested["relative"], shares, rtol=0, atol=of_cosines(2 * D))
    bar = exclusive.BARS["left_over"]
    only = tested["left_over"][2:].tolist()
    assert [left > bar for left in only] == [False, False, True, False, False]
    assert only[2] == pytest.approx(0.8, abs=0.1)
    assert (tested["left_over_chance"] < bar).all()
    assert (tested["twin"] > 0.95).tolist() == [False] * 5 + [True] * 2


def test_the_section_counts_shared_and_exclusive_features(tmp_path):
    gains = [(1, 1)] * 4 + [(1, 0)] * 3 + [(0, 1)] * 2 + [(1, 0.3)]
    rows, parts, _ = planted(3000, gains)
    context = study_of(tmp_path, np.concatenate(parts, axis=1), rows)
    assert crosscoders.ANALYSIS.applies(context)
    context.folder.mkdir(parents=True)
    frame.measure(context)
    (row,) = context.tables.others["crosscoders"].to_dict("records")
    assert [row[k] for k in exclusive.SORTS] == [3, 4, 2, 1]
    assert (row["alive"], row["exclusive"], row["left_over"], row["twins"]) == (10, 5, 0, 0)
    counted, doubtful = frame.shown(context, crosscoders.ANALYSIS).tables()
    assert "twins" in doubtful.frame
    assert "twins" not in counted.frame


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["crosscoder", "batch_topk_crosscoder"])
def test_planted_features_are_found_and_known_as_what_they_are(tmp_path, kind):
    """Of equal ones; a weak part is shrunk by L1, and by BatchTopK it is not."""
    gains = [(1, 1)] * 6 + [(1, 0)] * 4 + [(0, 1)] * 4 + [(1, 0.25)] * 2
    rows, parts, _ = planted(30_000, gains)
    rows[SITES[0]] = 4 * rows[SITES[0]]
    own = {"l1": 0.03} if kind == "crosscoder" else {"k": 1, "l1": 0.0}
    config = sae_config(
        activation=kind, widths=None, dict_size=32, lr=5e-3, init="aligned", **own,
        training={"n_activations": 200_000, "batch_size": 128, "eval_rows": 3000},
    )  # fmt: skip
    config.activations_dir = str(harvest_of(tmp_path / "a", rows))
    config.activations.scaling = "rms_by_site"
    stage.train_many([config], [tmp_path / "d"])
    trained = read(tmp_path / "d")
    scaling = Scaling.of(config.activations, Activations.open(tmp_path / "a"))
    W = trained.dictionary.W_dec / scaling.balance
    columns = slice(0, D), slice(D, 2 * D)
    norms = exclusive.norms(W, columns)
    share = norms[1] / norms.sum(0)
    cosines = [
        (norm > 0.1)[:, None] * (unit(W[:, own]) @ unit(np.where(part == 0, 1e-9, part)).T)
        for norm, own, part in zip(norms, columns, parts, strict=True)
    ]
    living = trained.fire_count > 30
    found = [np.flatnonzero(living & (cosine > 0.9)) for cosine in np.maximum(*cosines).T]
    assert sum(len(features) > 0 for features in found) >= 14
    assert all((share[features] < 0.1).all() for features in found[6:10])
    assert all((share[features] > 0.9).all() for features in found[10:14])
    shared = np.concatenate(found[:6])
    assert (abs(share[shared] - 0.5) < 0.25).all()
    weak, true = np.concatenate(found[14:]), 0.21  # .25 and 4, once both are divided by their RMS
    if kind == "crosscoder":
        assert share[weak].min() < true - 0.05
    else:
        assert share[weak] == pytest.approx(true, abs=0.03)
        assert (abs(share[shared] - 0.5) < 0.1).all()
