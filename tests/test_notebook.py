"""A feature in a notebook, from the file that the analysis writes."""

import json
import re
import sys

import pytest

from sparse_dict.errors import UserError
from sparse_dict.tools.notebook import show_feature

EVIL = "</script><img src=x onerror=alert(1)><!--"


@pytest.fixture
def study(tmp_path):
    feature = {
        "index": 3, "largest": 2.0, "dictionary": 0,
        "top": [[[0, 1, 2], [0, 255, 51], 1], [[2, 2], [10, 204], 1]], "spread": [[[1], [102], 0]],
    }  # fmt: skip
    dead = {"index": 4, "largest": 0.0, "dictionary": 0, "top": [], "spread": []}
    neuron = {**feature, "index": 5, "dictionary": 1}
    data = {
        "scale": 255,
        "vocabulary": [EVIL, " two", "⏎"],
        "dictionaries": [
            {"name": "l1=0.1", "size": 256, "label": "256 features, <b>"},
            {"name": "neuron", "size": None, "label": "Neurons"},
        ],
        "features": [feature, dead, neuron],
    }
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "features.json").write_text(json.dumps(data))
    return tmp_path


def test_a_feature_is_shown_with_its_activations_and_no_token_is_markup(study):
    pytest.importorskip("circuitsvis")
    shown = show_feature(study, "256/3", contexts=1)
    page = shown._repr_html_()
    assert "256 features, &lt;b&gt;: 3, at most 2" in page
    props = json.loads(re.search(r"ColoredTokens,\s*(\{.*\})\s*\)\s*</script>$", page.strip())[1])
    evil = "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&lt;!--"
    assert props["tokens"] == ["2  ", evil, " two", "⏎", "\n", "0.8  ", " two"]
    assert props["values"] == pytest.approx([0, 0, 2, 0.4, 0, 0, 0.8])
    assert (props["minValue"], props["maxValue"]) == (-2, 2)
    assert "onerror=alert(1)>" not in page
    assert "unpkg.com" not in page.rpartition("CircuitsVis.render")[2]
    assert "Neurons: 5" in show_feature(study, "neuron/5").html
    assert show_feature(str(study), "l1=0.1/3", contexts=1).html.startswith("<p><b>256")


def test_a_feature_that_is_never_active_says_so(study):
    pytest.importorskip("circuitsvis")
    assert "Not active" in show_feature(study, "256/4").html


@pytest.mark.parametrize("name", ["256/5", "512/3", "neuron/3", "3", ""])
def test_a_feature_that_is_not_saved_names_the_command_that_saves_it(study, name):
    with pytest.raises(UserError, match=r"analyze\.py contexts\.features="):
        show_feature(study, name)


def test_a_study_without_saved_contexts_says_what_writes_them(tmp_path):
    with pytest.raises(UserError, match=r"analysis=\[contexts\]"):
        show_feature(tmp_path, "256/3")


def test_without_circuitsvis_the_extra_is_named(study, monkeypatch):
    monkeypatch.setitem(sys.modules, "circuitsvis.tokens", None)
    with pytest.raises(UserError, match=r"'\.\[notebook\]'"):
        show_feature(study, "256/3")
