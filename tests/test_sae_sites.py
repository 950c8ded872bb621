"""One dictionary a site: columns of a harvest of several sites."""

from dataclasses import replace

import numpy as np
import pytest
from sae_helpers import sae_config, sparse_rows
from site_harvest import harvest_of

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError
from sparse_dict.sae import folder, stage
from sparse_dict.storage.files import read_json

WIDTHS = {"1/resid_mid": 8, "2/mlp_post": 24, "2/mlp_out": 9}


@pytest.fixture
def rows() -> dict[str, np.ndarray]:
    found = {s: sparse_rows(3000, d, i).numpy() for i, (s, d) in enumerate(WIDTHS.items())}
    found["2/mlp_post"] = 7 * found["2/mlp_post"] + 20  # which is centred, and the others are not
    return found


def results(path) -> dict[str, object]:
    """What must be equal bit for bit, but for what is named by the site."""
    names = (folder.WEIGHTS, folder.FEATURES, folder.CONFIG)
    history = [line.rsplit(",", 1)[0] for line in (path / folder.HISTORY).read_text().splitlines()]
    kept = ("fvu", "mse", "l0", "l1_norm", "dead", "activations_scale")
    metrics = read_json(path / folder.METRICS)
    snapshots = [p.read_bytes() for p in folder.snapshot_paths(path)]
    return {
        **{name: (path / name).read_bytes() for name in names},
        "history": history, "snapshots": snapshots, **{key: metrics[key] for key in kept},
        "view": metrics["record"]["config"]["activations"],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["relu", "gated"])
def test_a_site_of_several_gives_the_bits_of_a_harvest_of_it_alone(tmp_path, rows, kind):
    together = harvest_of(tmp_path / "all", rows)
    config = sae_config(activation=kind)
    config.activations.scaling, config.activations.centering = "rms_by_site", "auto"
    jobs = [replace(config, sae=replace(config.sae, site=site)) for site in WIDTHS]
    for job in jobs:
        job.activations_dir = str(together)
    found = stage.train_many(jobs, [tmp_path / "several" / str(i) for i in range(3)])
    assert [m["trained_together"] for m in found] == [3, 3, 3]
    assert [m["record"]["config"]["activations"]["centering"] for m in found] == [
        "none", "mean", "none",
    ]  # fmt: skip
    for i, (site, part) in enumerate(rows.items()):
        alone = replace(config, activations_dir=str(harvest_of(tmp_path / str(i), {site: part})))
        stage.train_many([alone], [tmp_path / "alone" / str(i)])
        assert results(tmp_path / "several" / str(i)) == results(tmp_path / "alone" / str(i))


def test_a_site_s_columns_are_those_of_a_harvest_of_it_alone(tmp_path, rows):
    together = Activations.open(harvest_of(tmp_path / "all", rows))
    for i, (site, part) in enumerate(rows.items()):
        alone = Activations.open(harvest_of(tmp_path / str(i), {site: part}))
        seen = together.at(site)
        assert (seen.d_in, seen.rms, seen.mean_to_spread) == (
            alone.d_in, alone.rms, alone.mean_to_spread,
        )  # fmt: skip
        np.testing.assert_array_equal(seen.mean, alone.mean)
        np.testing.assert_array_equal(seen.read(700, 2500), alone.read(700, 2500))
        assert alone.at(site) is alone
    assert together.at(None) is together


def test_a_site_that_is_not_there_is_named(tmp_path, rows):
    config = sae_config(site="3/mlp_post")
    config.activations_dir = str(harvest_of(tmp_path / "all", rows))
    with pytest.raises(UserError, match=r"sae\.site=3/mlp_post is not in .*2/mlp_post, 2/mlp_out"):
        stage.check(config, tmp_path / "sae" / "a")
    alone = Activations.open(harvest_of(tmp_path / "one", {"2/mlp_post": rows["2/mlp_post"]}))
    with pytest.raises(UserError, match="which holds 2/mlp_post"):
        alone.at("2/mlp_pre")


def test_a_record_without_a_site_is_one_of_a_study_that_saw_all_columns(tmp_path, rows):
    config = sae_config()
    config.activations_dir = str(harvest_of(tmp_path / "all", rows))
    stage.train_many([config], [tmp_path / "sae"])
    path = tmp_path / "sae" / folder.METRICS
    metrics = read_json(path)
    for key in ("site", "target", "skip"):
        del metrics["record"]["config"]["sae"][key]
    folder.write_json(path, metrics)
    (again,) = stage.train_many([config], [tmp_path / "sae"])
    assert again["fvu"] == metrics["fvu"]
    (other,) = stage.train_many(
        [replace(config, sae=replace(config.sae, site="2/mlp_post"))], [tmp_path / "sae"]
    )
    assert "sae.site is None there, '2/mlp_post' now" in str(other)
