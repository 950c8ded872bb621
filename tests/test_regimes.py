import json

import numpy as np
import pandas as pd
import pytest
from analysis_study import write_study

from benchmarks import regimes
from sparse_dict.analysis import study
from sparse_dict.analysis.measures.effective_neurons import simpson_neurons
from sparse_dict.errors import UserError

L1S = (0.01, 0.03, 0.1)


def write(folder, linear, layer=2):
    """A study as `regimes` reads it: the manifest, the model's record and dictionaries."""
    (folder / "activations").mkdir(parents=True)
    measured = [{"layer": i, "std": 0.5, "linear": linear if i == 2 else 0.1} for i in range(3)]
    manifest = {"layer": layer, "site": "mlp_post", "pre_activations": measured}
    (folder / "activations" / "manifest.json").write_text(json.dumps(manifest))
    (folder / "lm").mkdir()
    (folder / "lm" / "lm.json").write_text(json.dumps({"losses": {"val_loss": 5.25}}))
    write_study(folder / "sae", l1s=L1S)


@pytest.fixture
def folder(tmp_path):
    for name, linear in (("bent", 0.4), ("straight", 0.95)):
        write(tmp_path / name, linear)
    return tmp_path


def test_each_dictionary_with_a_larger_one_has_its_row(folder):
    table = regimes.dictionaries(folder)
    assert len(table) == 2 * len(L1S) * 2  # of three sizes, the largest has no larger one
    assert list(dict.fromkeys(table["study"])) == ["straight", "bent"]  # the most linear first
    row = table[(table["study"] == "bent") & (table["size"] == 64) & (table["l1"] == 0.03)].iloc[0]
    assert (row["val_loss"], row["std"], row["linear"]) == (5.25, 0.5, 0.4)
    small, large = (
        next(e for e in study.load(folder / "bent" / "sae").entries if (e.size, e.l1) == key)
        for key in ((64, 0.03), (128, 0.03))
    )
    mcs = (small.decoder @ large.decoder.T).max(1)
    neurons = simpson_neurons(small.decoder)
    assert row["high"] == (mcs > 0.9).sum() > 5
    assert row["neurons_high"] == pytest.approx(neurons[mcs > 0.9].mean())
    assert row["neurons_low"] == pytest.approx(neurons[(mcs <= 0.9) & small.alive].mean())


def test_values_at_one_l0_are_interpolated_and_never_extrapolated():
    table = pd.DataFrame(
        {
            "study": "s", "val_loss": 5.0, "std": 1.0, "linear": 0.5, "size": 64,
            "l0": [16.0, 4.0, 1.0], "fvu": [0.1, 0.2, 0.4], "mmcs": 0.9, "high": [10, 20, 60],
            "dead": 0, "neurons_high": [40.0, 50.0, np.nan], "neurons_low": 70.0,
            "neurons_dead": np.nan,
        }
    )  # fmt: skip
    row = regimes.at_l0(table, 2.0).iloc[0]
    assert (row["fvu"], row["high"]) == (pytest.approx(0.3), pytest.approx(40))
    assert np.isnan(row["neurons_high"])  # below the lowest L0 at which it is known
    assert np.isnan(row["neurons_dead"])
    assert regimes.at_l0(table, 8.0)["neurons_high"].iloc[0] == pytest.approx(45)


def test_what_was_not_harvested_from_one_mlp_is_refused(tmp_path):
    write(tmp_path / "other", 0.5, layer=7)
    with pytest.raises(UserError, match="harvest again"):
        regimes.dictionaries(tmp_path)
