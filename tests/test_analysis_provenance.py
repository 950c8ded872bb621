import json

import numpy as np
import pytest
from analysis_study import unit, write_dictionary
from test_analysis_loss_recovered import D, base, config  # noqa: F401

import sparse_dict
from sparse_dict.analysis import study
from sparse_dict.analysis.report import overview, provenance
from sparse_dict.analysis.report import page as report
from sparse_dict.storage import files


def told(base, tmp_path, **changes):  # noqa: F811
    """The paragraph with a changed manifest, whose fingerprint is the recorded one."""
    manifest = files.read_json(base / "activations" / "manifest.json") | changes
    (tmp_path / "activations").mkdir(exist_ok=True)
    (tmp_path / "activations" / "manifest.json").write_text(json.dumps(manifest))
    changed = config(base, activations_dir=str(tmp_path / "activations"), name="s")
    return provenance.paragraph(changed, study.load(base / "sae"))


def test_text_model_and_size_are_told(base, tmp_path):  # noqa: F811
    text = told(base, tmp_path)
    assert f"{D} neurons: the hidden layer of the MLP (site mlp_post) of layer" in text
    assert "a language model of ours (" in text
    assert "was 1 text file (the validation part)" in text
    assert "documents" in text
    assert "1,600 of its positions were kept; their RMS is " in text


def test_other_sites_models_and_toys_are_not_called_neurons_of_ours(base, tmp_path):  # noqa: F811
    text = told(base, tmp_path, site="resid_post")
    assert "values (site resid_post)" in text
    ends = {"2/mlp_post": [0, 6], "3/resid_post": [6, 12]}
    sites = [{"site": site, "columns": c, "rms": 1.0} for site, c in ends.items()]
    assert "of 2 sites side by side (2/mlp_post, 3/resid_post)" in told(base, tmp_path, sites=sites)
    hub = {"lm": {"name_or_path": "gpt2"}, "harvest": {}}
    assert "the Hugging Face model gpt2" in told(base, tmp_path, config=hub)
    data = {"n_features": 128, "n_active": 5.0, "correlated": False}
    text = told(base, tmp_path, site="toy", config={"data": data})
    assert "sums of 128 known random directions" in text
    assert "5 active on average, independent" in text


def test_a_model_and_a_text_that_are_gone_are_said_to_be(base, tmp_path):  # noqa: F811
    text = told(base, tmp_path, fingerprints={
        "activations": study.load(base / "sae").entries[0].metrics["fingerprints"]["activations"],
        "model": "another",
    })  # fmt: skip
    assert "no longer where it was" in text


def test_arrays_from_elsewhere_are_said_to_be(tmp_path):
    rows = unit(np.random.default_rng(0).standard_normal((8, 4)))
    write_dictionary(tmp_path / "sae" / "a", rows, np.ones(8, np.int64))
    loaded = study.load(tmp_path / "sae")
    tables = sparse_dict.open_study(tmp_path)
    section = overview.section(loaded, config(tmp_path, name="s"), tables)
    assert "rows of 4 values whose origin is not known here" in section.blocks[1]
    assert "neurons" not in section.blocks[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": "many", "layer": [], "rms": "x", "corpus": 3},
        {"site": {"a": 1}, "corpus": {"kind": "files", "files": "no"}, "config": None},
        {"sites": [1, None], "corpus": {"kind": "hub", "path": 7}, "config": {"harvest": []}},
        {"rms": 10**400, "rows": -1, "config": {"lm": 5, "harvest": {"split": {}}}},
        {"site": "toy", "config": {"data": {"n_features": "x", "n_active": None}}},
    ],
)
def test_whatever_a_record_holds_makes_a_paragraph(base, tmp_path, changes):  # noqa: F811
    assert told(base, tmp_path, **changes).startswith("The activations are ")


def test_what_a_record_names_is_escaped_and_bounded(base, tmp_path):  # noqa: F811
    name = "<script>alert(1)</script>" + "x" * 500
    text = told(base, tmp_path, config={"lm": {"name_or_path": name}, "harvest": {}})
    assert len(text) < 600
    page = report.render("t", "s", [report.Section("a", [text])])
    assert "<script>alert" not in page
