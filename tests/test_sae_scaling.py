"""Centring, scaling by site, and what a record keeps of them."""

import numpy as np
import pytest
import torch
from sae_helpers import sae_config, sparse_rows

from sparse_dict.activations.store import Activations
from sparse_dict.activations.writer import ShardWriter
from sparse_dict.config import ActivationsConfig, identity
from sparse_dict.errors import UserError
from sparse_dict.sae import stage
from sparse_dict.sae.folder import read
from sparse_dict.sae.scaling import Scaling, decided
from sparse_dict.sae.schedule import hyper

AS_NEW = ActivationsConfig(scaling="rms_by_site", centering="auto")


def harvested(folder, rows, sites=()):
    """A harvest of `rows`, whose sites are as wide as `sites` says."""
    writer = ShardWriter(folder, len(rows), rows.shape[1], len(rows), "float32", 0)
    writer.add(rows, np.zeros((len(rows), 3), np.int32))
    stops = np.cumsum(sites).tolist()
    places = [
        {"site": str(i), "columns": [stop - width, stop]}
        for i, (width, stop) in enumerate(zip(sites, stops, strict=True))
    ]
    writer.finish({"sites": places} if sites else {"site": "x"}, {})
    return Activations.open(folder)


def test_the_mean_is_taken_away_where_it_is_large_against_the_spread(tmp_path):
    rows = sparse_rows(500, 16).numpy()
    rows -= rows.mean(0)
    small, large = (harvested(tmp_path / f"{m}", rows + np.float32(m)) for m in (0.3, 0.8))
    spread = np.sqrt((rows**2).mean())
    assert small.mean_to_spread == pytest.approx(0.3 / spread, rel=1e-4)
    assert large.mean_to_spread == pytest.approx(0.8 / spread, rel=1e-4)
    assert decided(AS_NEW, small) == ActivationsConfig("rms", "none")
    assert decided(AS_NEW, large) == ActivationsConfig("rms", "mean")


def test_the_ratio_that_older_harvests_have_is_no_part_of_what_identifies_them(tmp_path):
    written = harvested(tmp_path, sparse_rows(100, 16).numpy())
    written.manifest["mean_to_spread"] = 0.3
    written.verify()


@pytest.mark.parametrize("centering", ["none", "mean"])
def test_sites_side_by_side_are_seen_alike(tmp_path, centering):
    rows = sparse_rows(500, 16).numpy() * np.repeat(np.float32([100, 1]), [4, 12]) + 2
    opened = harvested(tmp_path, rows, (4, 12))
    scaling = Scaling.of(ActivationsConfig("rms_by_site", centering), opened)
    seen = (rows - scaling.mean) / scaling.scale
    for part in (seen[:, :4], seen[:, 4:]):
        assert np.sqrt((part**2).mean()) == pytest.approx(1, rel=1e-4)
    assert decided(ActivationsConfig("rms_by_site", centering), opened).scaling == "rms_by_site"


def test_a_site_that_never_varies_is_refused(tmp_path):
    rows = sparse_rows(100, 16).numpy()
    rows[:, 12:] = 3
    opened = harvested(tmp_path, rows, (12, 4))
    with pytest.raises(UserError, match="all rows are the same"):
        Scaling.of(ActivationsConfig("rms_by_site"), opened)


def test_a_centred_dictionary_of_two_sites_is_right_on_raw_rows(tmp_path):
    """Its numbers are those that its folder gives on raw rows, and its record says how it was."""
    rows = sparse_rows(4000, 16).numpy() * np.repeat(np.float32([50, 1]), [4, 12]) + 3
    opened = harvested(tmp_path / "a", rows, (4, 12))
    config = sae_config(training={"n_activations": 40_000, "eval_rows": 500}, lr=5e-3)
    config.activations = ActivationsConfig("rms_by_site", "mean")
    config.activations_dir = str(tmp_path / "a")
    (metrics,) = stage.train_many([config], [tmp_path / "d"])
    trained = read(tmp_path / "d")
    x = opened.read(3500, 4000)
    d = trained.dictionary
    scale = Scaling.of(config.activations, opened).scale
    codes = d.encode(x)
    error = (((d.decode(codes) - x) / scale) ** 2).mean()
    assert metrics["mse"] == pytest.approx(error, rel=1e-3)
    assert metrics["l0"] == pytest.approx((codes > 0).sum(1).mean(), rel=1e-3)
    assert metrics["fvu"] < 0.5
    assert metrics["fvu"] == pytest.approx(error / (x / scale).var(0).mean(), rel=0.1)
    assert metrics["record"]["config"]["activations"] == {
        "scaling": "rms_by_site", "centering": "mean",
    }  # fmt: skip


def test_an_l1_divided_by_the_width_is_the_older_one_to_the_bit(tmp_path):
    np.save(tmp_path / "x.npy", sparse_rows(2000, 16).numpy())
    found = []
    for l1, scaling in ((2e-2, "none"), (0.32, "d_in")):
        config = sae_config(l1=l1, l1_scaling=scaling)
        config.activations_dir = str(tmp_path)
        stage.train_many([config], [tmp_path / scaling])
        found.append(read(tmp_path / scaling))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        old, new = (getattr(trained.dictionary, name) for trained in found)
        np.testing.assert_array_equal(old, new)
    assert hyper(sae_config(l1=2.56, l1_scaling="d_in"), 1, 128).numbers["l1"] == 2e-2


def test_a_record_without_centering_is_one_of_a_study_that_did_not_centre(tmp_path):
    opened = harvested(tmp_path, sparse_rows(100, 16).numpy())
    config = sae_config()
    config.activations = decided(AS_NEW, opened)
    new = identity.record(config)
    old = identity.record(sae_config())
    del old["activations"]["centering"]
    assert identity.differences(old, new, config) == []
    config.activations = ActivationsConfig("rms", "mean")
    (difference,) = identity.differences(old, identity.record(config), config)
    assert difference == "activations.centering is 'none' there, 'mean' now"


def test_a_feature_that_fired_early_in_a_short_training_counts_as_inactive(tmp_path):
    """In a training shorter than the window, which would otherwise reach back to its start."""
    from sparse_dict.sae.state import State

    config = sae_config(training={"n_activations": 1000, "dead_window": 1_000_000})
    state = State.initial(config, 16, 16, torch.device("cpu"))
    state.last_fired[:] = 1000
    state.last_fired[:3] = 400
    assert int(state.inactive(1000).sum()) == 3
