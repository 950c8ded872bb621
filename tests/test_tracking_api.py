"""The examples of docs/api.md, run on a study made in seconds."""

import json
import re
from pathlib import Path
from typing import Any

import fault_study
import numpy as np
import pytest
import torch
from analysis_study import write_study
from rounding import assert_rounded, of_cosines

import sparse_dict
from sparse_dict.sae.folder import Dictionary

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


def test_public_functions_take_what_a_notebook_has_and_say_what_they_do_not_take(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(here)
    study = sparse_dict.load_study("outputs/demo")
    assert len(study.entries) == len(list(Path("outputs/demo/sae").iterdir()))
    assert "\n" not in repr(study.entries[0])
    activations = sparse_dict.Activations.open("outputs/demo/activations")
    sparse_dict.load_lm("outputs/demo/lm")
    trained = sparse_dict.load_dictionary(str(study.entries[0].trained.folder))
    dictionary, x = trained.dictionary, activations.read(0, 50)
    codes = dictionary.encode(x)
    for rows in (torch.from_numpy(x), x.astype("f8"), torch.from_numpy(x).requires_grad_()):
        np.testing.assert_array_equal(dictionary.encode(rows), codes)
    decoder = torch.from_numpy(dictionary.W_dec)
    assert_rounded(sparse_dict.max_cosine(7 * decoder, dictionary.W_dec), np.ones(64, "f4"), 16)
    for call, said in {
        lambda: dictionary.encode(x[0]): r"activations must be of the shape \(rows, 16\), not",
        lambda: dictionary.decode(x): r"codes must be of the shape \(rows, 64\), not \(50, 16\)",
        lambda: dictionary.encode(np.ones((2, 16), int)): "floating-point numbers, not int64",
        lambda: sparse_dict.mmcs(x, x[:, :3]): r"the others must be of the shape \(rows, 16\)",
        lambda: sparse_dict.load_dictionary("outputs/demo"): "holds no finished dictionary",
        lambda: sparse_dict.load_study("outputs/demo/lm"): "holds no finished dictionary",
        lambda: sparse_dict.open_study("outputs"): "outputs/sae is not a folder",
    }.items():
        with pytest.raises(sparse_dict.UserError, match=said):
            call()


@pytest.mark.parametrize("more", [{}, {"threshold": 0.3}, {"k": 3}, {"W_skip": True}])
def test_a_dictionary_as_a_module_of_torch_computes_the_same(more: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x, W_enc, W_dec, W_skip, b_enc, b_dec = (
        rng.normal(size=shape).astype("f4")
        for shape in ((20, 6), (6, 9), (9, 6), (6, 6), (9,), (6,))
    )
    dictionary = Dictionary(W_enc, b_enc, W_dec, b_dec, k=more.get("k"))
    dictionary.W_skip = W_skip if "W_skip" in more else None
    if "threshold" in more:
        dictionary = dictionary.with_threshold(more["threshold"])
    module, rows = dictionary.to_torch(), torch.from_numpy(x)
    assert_rounded(module.encode(rows).detach().numpy(), dictionary.encode(x), 6)
    assert_rounded(module(rows[:, None])[:, 0].detach().numpy(), dictionary.reconstruct(x), 15)
    module(rows).square().sum().backward()
    assert module.W_enc.grad.abs().sum() > 0


def test_every_public_name_is_on_the_page_and_resolves() -> None:
    text = PAGE.read_text()
    assert {*sparse_dict.__all__} < {*dir(sparse_dict)}
    for name in sparse_dict.__all__:
        assert f"sparse_dict.{name}" in text
        assert callable(getattr(sparse_dict, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        sparse_dict.nothing  # noqa: B018
