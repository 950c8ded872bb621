import json
from pathlib import Path

import numpy as np
import pytest
from analysis_study import directions, write_dictionary, write_study

from sparse_dict.analysis import study
from sparse_dict.errors import UserError

ONES = np.full(64, 1, np.int64)


def test_dictionaries_that_differ_in_size_alone_form_a_chain(tmp_path: Path):
    write_study(tmp_path, sizes=(64, 8, 16), l1s=(0.01, 0.1), seeds=(0, 1))
    write_study(tmp_path, sizes=(8, 16), l1s=(0.1,), extra={"tied": True}, prefix="tied,")
    loaded = study.load(tmp_path)
    assert loaded.left_out == ()
    assert loaded.families == ("tied=False", "tied=True")
    assert [len(chain.entries) for chain in loaded.chains] == [3, 3, 3, 3, 2]
    for chain in loaded.chains:
        sizes = [entry.size for entry in chain.entries]
        assert sizes == sorted(sizes)
        assert {(e.family, e.level, e.seed) for e in chain.entries} == {
            (chain.family, chain.level, chain.seed)
        }


def write_grid(folder: Path, name: str, grid: list[dict[str, float]], activation: str) -> None:
    """Sizes 8 and 16 at each point of a grid of settings."""
    for i, point in enumerate(grid):
        for size in (8, 16):
            write_dictionary(
                folder / f"{name}{i},{size}", directions(size, 4, i), ONES[:size],
                activation=activation, l1=point.get("l1", 0.0), sae={"k": 32, "l0": 0.0} | point,
            )  # fmt: skip


@pytest.mark.parametrize(
    ("activation", "grid", "axis", "levels", "setting"),
    [
        ("relu", [{"l1": 0.1}, {"l1": 0.01}], "l1", {0.1, 0.01}, "L1 0.01"),
        ("topk", [{"k": 4}, {"k": 8}], "k", {4.0, 8.0}, "k 4"),
        ("batch_topk", [{"k": 1024}], "k", {1024.0}, "k 1024"),
        ("topk", [{"l1": 0.1}, {"l1": 0.01}], "l1", {0.1, 0.01}, "L1 0.01"),
        ("jumprelu", [{"l0": 1e-3}, {"l0": 1e-2}], "l0", {1e-3, 1e-2}, "L0 penalty 0.001"),
    ],
)
def test_what_is_swept_is_what_makes_the_kind_sparse(
    tmp_path: Path, activation, grid, axis, levels, setting
):
    write_grid(tmp_path, "a", grid, activation)
    loaded = study.load(tmp_path)
    assert loaded.left_out == ()
    assert loaded.families == ("",)
    assert {entry.axis for entry in loaded.entries} == {axis}
    assert {chain.level for chain in loaded.chains} == levels
    assert loaded.chains[0].setting == setting
    assert all(len(chain.entries) == 2 for chain in loaded.chains)


def test_a_setting_beside_the_one_that_is_swept_tells_families_apart(tmp_path: Path):
    write_grid(tmp_path, "a", [{"k": k, "l1": l1} for k in (4, 8) for l1 in (0.0, 0.1)], "topk")
    loaded = study.load(tmp_path)
    assert loaded.families == ("l1=0.0", "l1=0.1")
    assert {entry.axis for entry in loaded.entries} == {"k"}


def test_kinds_that_are_made_sparse_in_different_ways_are_not_told_apart_by_that(tmp_path: Path):
    write_grid(tmp_path, "relu", [{"l1": 0.1}, {"l1": 0.01}], "relu")
    write_grid(tmp_path, "topk", [{"k": 4}, {"k": 8}], "topk")
    write_grid(tmp_path, "jump", [{"l0": 1e-3}], "jumprelu")
    loaded = study.load(tmp_path)
    assert set(loaded.families) == {"activation=relu", "activation=topk", "activation=jumprelu"}
    assert {(e.family, e.axis) for e in loaded.entries} == {
        ("activation=relu", "l1"), ("activation=topk", "k"), ("activation=jumprelu", "l0"),
    }  # fmt: skip


def test_of_equally_many_dictionaries_those_nearest_to_the_posts_come_first(tmp_path: Path):
    for kind in ({"activation": "batch_topk"}, {"l1_scaling": "dict_size"}, {"tied": True}, {}):
        prefix = f"{next(iter(kind.values()), 'post')},"
        write_study(tmp_path, sizes=(8, 16), extra=kind, prefix=prefix)
    first = study.load(tmp_path).families[0]
    assert first == "activation=relu, l1_scaling=none, tied=False"


def test_folders_are_found_one_and_two_levels_down_and_the_folder_itself(tmp_path: Path):
    write_dictionary(tmp_path / "a", directions(8, 4, 0), ONES[:8])
    write_dictionary(tmp_path / "grid" / "b", directions(16, 4, 0), ONES[:16])
    assert [e.name for e in study.load(tmp_path).entries] == ["a", "grid/b"]
    assert [e.name for e in study.load(tmp_path / "a").entries] == ["a"]


def test_settings_that_change_nothing_learned_do_not_split_a_family(tmp_path: Path):
    for size, log_every in ((8, 10), (16, 99)):
        folder = write_dictionary(tmp_path / str(size), directions(size, 4, 0), ONES[:size])
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics["config"]["training"]["log_every"] = log_every
        metrics["config"]["device"] = f"cuda:{size}"
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert len(study.load(tmp_path).chains) == 1


def test_broken_and_unfinished_dictionaries_are_left_out_by_name(tmp_path: Path):
    write_study(tmp_path, sizes=(8, 16))
    (tmp_path / "unfinished" / ".hydra").mkdir(parents=True)
    truncated = write_dictionary(tmp_path / "truncated", directions(8, 32, 0), ONES[:8])
    weights = truncated / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    no_json = write_dictionary(tmp_path / "no-json", directions(8, 32, 0), ONES[:8])
    (no_json / "metrics.json").write_text("{")
    no_config = write_dictionary(tmp_path / "no-config", directions(8, 32, 0), ONES[:8])
    (no_config / "metrics.json").write_text('{"dict_size": 8}')
    short = write_dictionary(tmp_path / "short", directions(8, 32, 0), ONES[:7])
    write_dictionary(tmp_path / "no-k", directions(8, 32, 0), ONES[:8], sae={"k": "many"})
    nan = directions(8, 32, 0)
    nan[0, 0] = np.nan
    write_dictionary(tmp_path / "nan", nan, ONES[:8])
    loaded = study.load(tmp_path)
    assert len(loaded.entries) == 2
    assert {item.name for item in loaded.left_out} == {
        "unfinished", "truncated", "no-json", "no-config", short.name, "nan", "no-k",
    }  # fmt: skip
    assert all(item.reason and "\n" not in item.reason for item in loaded.left_out)


@pytest.mark.parametrize(
    ("key", "value"),
    [("l1", True), ("n_activations", "x"), ("activation", "$\\frac$"), ("activation", "\ud800"),
     ("mse", float("nan"))],
)  # fmt: skip
def test_a_value_that_would_break_tables_or_figures_leaves_the_dictionary_out(
    tmp_path: Path, key: str, value: object
):
    write_study(tmp_path, sizes=(8, 16))
    folder = write_dictionary(tmp_path / "odd", directions(8, 32, 0), ONES[:8])
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {key: value}))
    (left,) = study.load(tmp_path).left_out
    assert left.name == "odd"
    assert key in left.reason


def test_dictionaries_of_other_activations_are_left_out_by_name(tmp_path: Path):
    write_study(tmp_path, sizes=(8, 16, 32))
    other = {"activations": "fedcba9876543210"}
    write_dictionary(tmp_path / "other", directions(8, 32, 0), ONES[:8], fingerprints=other)
    write_dictionary(tmp_path / "narrow", directions(8, 16, 0), ONES[:8])
    loaded = study.load(tmp_path)
    assert loaded.d_in == 32
    assert sorted(item.name for item in loaded.left_out) == ["narrow", "other"]
    assert "fedcba9876543210" in "".join(item.reason for item in loaded.left_out)


def test_a_repetition_is_left_out_and_names_the_first(tmp_path: Path):
    for name in ("a", "b"):
        write_dictionary(tmp_path / name, directions(8, 4, 0), ONES[:8])
    (item,) = study.load(tmp_path).left_out
    assert (item.name, item.reason) == ("b", "the same settings as a")


@pytest.mark.parametrize("make", [False, True])
def test_no_dictionary_at_all_is_told_in_one_line(tmp_path: Path, make: bool):
    folder = tmp_path / "sae"
    if make:
        (folder / "empty").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        study.load(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_if_every_dictionary_is_broken_the_first_reason_is_told(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "metrics.json").write_text("[]")
    with pytest.raises(UserError, match="not a JSON object"):
        study.load(tmp_path)


def test_frequency_and_alive_come_from_the_fire_counts(tmp_path: Path):
    count = np.array([0, 10_000, 50, 1], np.int64)
    write_dictionary(tmp_path / "a", directions(4, 8, 0), count)
    (entry,) = study.load(tmp_path).entries
    assert entry.alive.tolist() == [False, True, True, True]
    assert entry.frequency.tolist() == [0, 1, 0.005, 0.0001]


def test_a_key_of_one_kind_is_no_part_of_a_label_and_matryoshka_is_swept_over_k(tmp_path: Path):
    for k in (4, 8):
        own = {"relu": {}, "jumprelu": {"bandwidth": 0.01, "l0": k}, "matryoshka": {"k": k}}
        for kind, sae in own.items():
            write_dictionary(
                tmp_path / f"{kind}{k}", directions(8, 4, k), np.ones(8, np.int64),
                activation=kind, l1=0.01 * k if kind == "relu" else 0.0, sae=sae,
            )  # fmt: skip
    found = {(entry.family, entry.axis) for entry in study.load(tmp_path).entries}
    axes = {"relu": "l1", "jumprelu": "l0", "matryoshka": "k"}
    assert found == {(f"activation={kind}", axis) for kind, axis in axes.items()}
