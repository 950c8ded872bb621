"""Harvests of the same tokens read as one."""

import numpy as np
import pytest
from rounding import rounding
from sae_helpers import sae_config, sparse_rows
from site_harvest import harvest_of

from sparse_dict.activations.side_by_side import open_all
from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError
from sparse_dict.sae import folder, stage
from sparse_dict.storage.files import read_json


@pytest.fixture
def both(tmp_path):
    """One harvest of one site, and one of two of the same tokens."""
    one = harvest_of(tmp_path / "first" / "activations", {"2/mlp_post": 5 * sparse_rows(900, 8)})
    parts = {"1/mlp_out": sparse_rows(900, 6, 1), "2/mlp_out": sparse_rows(900, 10, 2)}
    return one, harvest_of(tmp_path / "second" / "activations", parts)


def test_rows_and_moments_are_those_of_both(both):
    one, two = map(Activations.open, both)
    joined = open_all(*both)
    assert (joined.d_in, joined.rows) == (24, 900)
    rows = np.concatenate([one.read(100, 800), two.read(100, 800)], axis=1)
    np.testing.assert_array_equal(joined.read(100, 800), rows)
    every = joined.read(0, 900).astype(float)
    bar = rounding(900, np.abs(every).max(), np.float64)
    np.testing.assert_allclose(joined.mean, every.mean(0), rtol=0, atol=bar)
    assert joined.rms == pytest.approx(np.sqrt((every**2).mean()))
    assert [(columns, round(rms, 4)) for columns, rms in joined.sites] == [
        (slice(0, 8), round(one.rms, 4)),
        *((slice(c.start + 8, c.stop + 8), round(rms, 4)) for c, rms in two.sites),
    ]
    assert [place["site"] for place in joined.manifest["sites"]] == [
        "first: 2/mlp_post", "second: 1/mlp_out", "second: 2/mlp_out",
    ]  # fmt: skip
    assert joined.fingerprint not in (one.fingerprint, two.fingerprint)
    assert joined.fingerprint == open_all(*both).fingerprint
    joined.verify()
    assert open_all(both[0]).fingerprint == one.fingerprint


def test_harvests_of_other_tokens_are_refused(both, tmp_path):
    shorter = harvest_of(tmp_path / "shorter", {"2/mlp_post": sparse_rows(800, 8)})
    with pytest.raises(UserError, match=r"900 rows, .* 800"):
        open_all(both[0], shorter)
    other = harvest_of(tmp_path / "other", {"2/mlp_post": sparse_rows(900, 8)}, seed=1)
    with pytest.raises(UserError, match="is of other text"):
        open_all(both[0], other)
    (tmp_path / "foreign").mkdir()
    np.save(tmp_path / "foreign" / "x.npy", sparse_rows(900, 8).numpy())
    with pytest.raises(UserError, match="foreign does not say where its rows come from"):
        open_all(both[0], tmp_path / "foreign")


@pytest.mark.parametrize("kind", ["crosscoder", "batch_topk_crosscoder"])
def test_a_crosscoder_of_both_is_right_on_raw_rows(both, tmp_path, kind):
    config = sae_config(activation=kind, widths=None, lr=5e-3, training={"n_activations": 20_000})
    config.activations_dir = [str(path) for path in both]
    config.activations.scaling = "rms_by_site"
    stage.check(config, tmp_path / "sae" / "a")
    (metrics,) = stage.train_many([config], [tmp_path / "sae" / "a"])
    assert metrics["record"]["config"]["sae"]["widths"] == [8, 6, 10]
    assert stage.train_many([config], [tmp_path / "sae" / "a"]) == [metrics]
    d, joined = folder.read(tmp_path / "sae" / "a").dictionary, open_all(*both)
    x = joined.read(900 - config.training.eval_rows, 900)
    assert metrics["l0"] == pytest.approx((d.encode(x) > 0).sum(1).mean(), rel=1e-3)
    scale = np.concatenate([np.full(c.stop - c.start, rms) for c, rms in joined.sites])
    error = (((d.reconstruct(x) - x) / scale) ** 2).mean()
    assert metrics["mse"] == pytest.approx(error, rel=1e-3)
    assert read_json(tmp_path / "sae" / "a" / "cfg.json")["metadata"] == {"hook_name": "unknown"}


def test_a_crosscoder_of_one_site_is_refused(both, tmp_path):
    config = sae_config(activation="crosscoder", widths=None)
    config.activations_dir = str(both[0])
    with pytest.raises(UserError, match="needs two sites"):
        stage.check(config, tmp_path / "sae" / "a")
    with pytest.raises(UserError, match="takes all sites"):
        sae_config(activation="crosscoder", site="2/mlp_post")
