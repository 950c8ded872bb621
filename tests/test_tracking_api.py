"""The examples of docs/api.md, run on a study made in seconds."""

import json
import re
from pathlib import Path
from typing import Any

import fault_study
import numpy as np
import pytest
from analysis_study import write_study
from rounding import assert_rounded, of_cosines

import sparse_dict

PAGE = fault_study.ROOT / "docs" / "api.md"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the study outputs/demo: model, activations, and dictionaries as wide."""
    folder = tmp_path_factory.mktemp("api")
    base = folder / "outputs" / "demo"
    base.mkdir(parents=True)
    fault_study.write_corpus(base.parent / "text.jsonl")
    for name in ("train_lm", "harvest"):
        fault_study.call(name, base)()
    write_study(base / "sae", sizes=(64, 128, 256), l1s=(1.28, 2.56), seeds=(0, 1), d=16)
    for path in base.glob("sae/*/cfg.json"):  # as those trained on that harvest have it
        path.write_text(json.dumps({"metadata": {"hook_name": "blocks.1.mlp.hook_post"}}))
    return folder


def test_the_examples_run_and_do_what_they_say(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    names: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 14
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["decoder"].shape == (128, 16)
    assert names["trained"].site == sparse_dict.Site("mlp_post", layer=1)
    assert names["x"].shape == names["restored"].shape == (500, 16)
    assert names["mcs"].shape == (128,)
    cosines = names["decoder"] @ names["larger"].dictionary.W_dec.T
    assert names["mmcs"] == pytest.approx(cosines.max(axis=1).mean(), abs=of_cosines(16))
    assert [chain.level for chain in names["loaded"].chains] == [1.28, 1.28, 2.56, 2.56]
    features = names["features"]
    of_largest = features[features["dictionary"] == names["largest"]].set_index("feature")
    assert (of_largest.loc[names["everywhere"], "recurs"] == 1).all()
    assert len(names["everywhere"]) == (of_largest["recurs"] == 1).sum() > 0
    assert len(names["rare_finds"]) == 10
    assert (names["rare_finds"]["frequency"].diff().dropna() <= 0).all()
    assert set(names["axes"].index) == {"found again", "not"}
    assert names["pivot"].shape == (2, 2)
    assert len(names["names"]) == 3
    assert names["verdict"].interval is not None
    assert names["hidden"].shape == (1, names["tokens"].shape[1], 16)
    expected = np.maximum(names["hidden"][0].numpy() @ names["dictionary"].W_enc, 0)
    assert_rounded(names["codes"], expected, 16)
    assert names["strongest"].shape == (names["tokens"].shape[1],)


def test_every_public_name_is_on_the_page_and_resolves() -> None:
    text = PAGE.read_text()
    for name in sparse_dict.__all__:
        assert f"sparse_dict.{name}" in text
        assert callable(getattr(sparse_dict, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sparse_dict.nothing  # noqa: B018
