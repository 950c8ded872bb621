import itertools
import math
import tracemalloc
from collections import Counter
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from damage import edited, truncate
from hypothesis import given
from hypothesis import strategies as st
from rounding import rounding

from sparse_dict.activations import store
from sparse_dict.activations.store import Activations, Moments
from sparse_dict.activations.writer import ShardWriter, Shuffle
from sparse_dict.errors import UserError
from sparse_dict.storage import files

INPUTS = {"model": "a", "tokenizer": "b", "corpus": "c"}
D_IN = 5


def harvest_rows(n, d_in=D_IN):
    rows = np.random.default_rng(0).normal(size=(n, d_in)).astype(np.float32)
    origins = np.stack([np.arange(n) // 7, np.arange(n) % 7, np.arange(n)], 1).astype(np.int32)
    return rows, origins


def write(folder, n=100, shard_rows=30, dtype="float32", chunk=16, seed=0, stop_after=None):
    rows, origins = harvest_rows(n)
    writer = ShardWriter(folder, n, D_IN, shard_rows, dtype, seed)
    for start in range(0, n, chunk):
        if stop_after is not None and start >= stop_after:
            return rows
        writer.add(rows[start : start + chunk], origins[start : start + chunk])
    writer.finish({"layer": 2, "site": "mlp_post"}, INPUTS)
    return rows


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def test_every_row_is_stored_once_beside_its_origin(tmp_path):
    rows = write(tmp_path)
    found = Activations.open(tmp_path)
    assert (found.rows, found.d_in) == (100, D_IN)
    assert [len(shard) for shard in found.shards] == [30, 30, 30, 10]
    origins = found.origins(0, 100)
    assert sorted(origins[:, 2]) == list(range(100))
    assert (found.read(0, 100) == rows[origins[:, 2]]).all()
    assert (origins[:, 0] == origins[:, 2] // 7).all()
    assert (origins[:, 1] == origins[:, 2] % 7).all()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["manifest.json"]
        + [f"{kind}-0000{i}.npy" for kind in ("shard", "origin") for i in range(4)]
    )


def test_mean_and_rms_are_those_of_the_stored_rows(tmp_path):
    write(tmp_path, dtype="float16")
    found = Activations.open(tmp_path)
    rows = found.read(0, 100).astype(np.float64)
    bar = rounding(100, np.abs(rows).max(), np.float64)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=0, atol=bar)
    assert found.rms == pytest.approx(math.sqrt((rows**2).mean()), rel=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_reads_cross_the_borders_of_shards(tmp_path, dtype):
    write(tmp_path, dtype=dtype)
    found = Activations.open(tmp_path)
    whole = np.concatenate([np.load(shard.path) for shard in found.shards]).astype(np.float32)
    for start, stop in [(0, 100), (29, 31), (25, 95), (30, 60), (99, 100), (40, 40)]:
        read = found.read(start, stop)
        assert read.dtype == np.float32
        assert (read == whole[start:stop]).all()
        out = np.full((stop - start, D_IN), np.nan, np.float32)
        found.read_into(start, out)
        assert (out == whole[start:stop]).all()
    for start, stop in [(-1, 3), (90, 101)]:
        with pytest.raises(IndexError):
            found.read(start, stop)


@pytest.mark.parametrize(
    ("n", "length", "shard_rows", "cards"),
    [(20_000, 100, 6_000, 1 << 16), (20_000, 100, 700, 900), (50_001, 1_000, 4_000, 1_024)],
)
def test_neighbours_share_a_document_no_more_often_than_chance(
    tmp_path, monkeypatch, n, length, shard_rows, cards
):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    monkeypatch.setattr("sparse_dict.activations.writer.Shuffle", partial(Shuffle, cards=cards))
    origins = np.zeros((n, 3), np.int32)
    origins[:, 0] = np.arange(n) // length
    origins[:, 2] = np.arange(n)
    writer = ShardWriter(tmp_path, n, 1, shard_rows, "float16", seed=1)
    for start in range(0, n, 512):
        part = origins[start : start + 512]
        writer.add(np.zeros((len(part), 1), np.float32), part)
    writer.finish({}, INPUTS)
    document, _, row = Activations.open(tmp_path).origins(0, n).T
    assert (np.sort(row) == np.arange(n)).all()
    for step in (1, 2, 3):  # as many pairs are of one document as random pairs would be
        together = (document[step:] == document[:-step]).sum()
        expected = (length - 1) / (n - 1) * (n - step)
        assert abs(together - expected) < 4 * math.sqrt(expected)
    halves = np.bincount(document[: n // 2], minlength=-(-n // length))  # far rows mix as well
    whole = np.bincount(document) == length
    assert abs(halves[whole] - length / 2).max() < 5 * math.sqrt(length / 4)
    # Nor does a row's place tell of its place in the text: the rank correlation is chance.
    assert abs(np.corrcoef(row, np.arange(n))[0, 1]) < 4 / math.sqrt(n)


def test_an_order_dealt_in_pieces_gives_all_permutations_alike():
    times = 1200
    seen: Counter = Counter()
    for seed in range(times):
        shuffle = Shuffle(4, 2, seed, cards=3)
        shards = np.concatenate([shuffle.deal(0, 1), shuffle.deal(1, 4)])
        rows = [np.flatnonzero(shards == i)[shuffle.order(i)] for i in range(2)]
        seen[tuple(np.concatenate(rows).tolist())] += 1
    chi_square = sum((seen[p] - times / 24) ** 2 / (times / 24) for p in permutations(range(4)))
    assert chi_square < 49.7  # 0.1 % for 23 degrees of freedom


@given(
    rows=st.integers(1, 300), shard_rows=st.integers(1, 90), cards=st.integers(1, 400),
    cuts=st.lists(st.integers(0, 300), max_size=4),
)  # fmt: skip
def test_who_deals_which_part_does_not_matter(rows, shard_rows, cards, cuts):
    whole = Shuffle(rows, shard_rows, 7, cards).deal(0, rows)
    bounds = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [
        Shuffle(rows, shard_rows, 7, cards).deal(start, stop)
        for start, stop in itertools.pairwise(bounds)
    ]
    assert (np.concatenate(parts) == whole).all()
    sizes = np.bincount(whole, minlength=-(-rows // shard_rows))
    assert (sizes == Shuffle(rows, shard_rows, 7).sizes).all()


def test_peak_memory_does_not_grow_with_the_number_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)
    rows, origins = np.ones((1_000, 32), np.float16), np.zeros((1_000, 3), np.int32)

    def peak(n):
        tracemalloc.start()
        writer = ShardWriter(tmp_path / str(n), n, 32, 20_000, "float16", 0)
        for _ in range(n // len(rows)):
            writer.add(rows, origins)
        writer.finish({}, INPUTS)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    Moments(2).add(rows[:, :2])  # imports torch, which tracing would slow down
    small, large = peak(150_000), peak(450_000)
    assert large < 1.2 * small
    assert large < 0.2 * 450_000 * (32 * 2 + 12)


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write(tmp_path / name, seed=seed)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert (
        contents(tmp_path / "a")["shard-00000.npy"] != contents(tmp_path / "c")["shard-00000.npy"]
    )


@pytest.mark.parametrize("when", ["while adding", "while finishing"])
def test_an_interrupted_harvest_is_incomplete_and_its_repetition_the_same(
    tmp_path, monkeypatch, when
):
    write(tmp_path / "whole")
    folder = tmp_path / "broken"
    if when == "while adding":
        write(folder, stop_after=64)
    else:
        with monkeypatch.context() as patch:

            def save_two(self, name, *rest, save=ShardWriter._save):
                if name == "shard-00002.npy":
                    raise KeyboardInterrupt
                return save(self, name, *rest)

            patch.setattr(ShardWriter, "_save", save_two)
            with pytest.raises(KeyboardInterrupt):
                write(folder)
    assert not (folder / "manifest.json").exists()
    with pytest.raises(UserError, match="incomplete: the harvest was interrupted"):
        Activations.open(folder)
    write(folder)
    assert contents(folder) == contents(tmp_path / "whole")


def test_starting_afresh_removes_what_a_kill_left_and_no_other_file(tmp_path):
    for name in ("mine.npy", "harvest.log"):
        (tmp_path / name).touch()
    write(tmp_path, stop_after=32)
    write(tmp_path)
    assert not (tmp_path / "partial").exists()
    assert {"mine.npy", "harvest.log", "manifest.json"} < {path.name for path in tmp_path.iterdir()}


def test_a_writer_that_lacks_rows_does_not_finish(tmp_path):
    rows, origins = harvest_rows(10)
    writer = ShardWriter(tmp_path, 11, D_IN, 4, "float32", 0)
    writer.add(rows, origins)
    with pytest.raises(ValueError, match="1 of 11 rows are missing"):
        writer.finish({}, INPUTS)


def test_overflow_and_non_finite_values_are_told_apart(tmp_path):
    rows, origins = harvest_rows(4)
    rows[2, 1] = 1e5
    with pytest.raises(UserError, match=r"does not fit float16.*harvest.dtype=float32"):
        ShardWriter(tmp_path / "a", 4, D_IN, 4, "float16", 0).add(rows, origins)
    ShardWriter(tmp_path / "b", 4, D_IN, 4, "float32", 0).add(rows, origins)
    rows[0, 0] = np.nan
    with pytest.raises(UserError, match="not finite"):
        ShardWriter(tmp_path / "c", 4, D_IN, 4, "float16", 0).add(rows, origins)
    writer = ShardWriter(tmp_path / "d", 4, D_IN, 4, "float16", 0)
    with np.errstate(over="ignore"):
        rounded = rows.astype(np.float16)
    with pytest.raises(UserError, match="not finite"):
        writer.add(rounded, origins)
    rounded[0, 0] = 0
    with pytest.raises(UserError, match="does not fit float16"):
        writer.add(rounded, origins)


def saved(array):
    return lambda path: np.save(path, array, allow_pickle=True)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("shard-00001.npy", Path.unlink, "shard-00001.npy does not exist"),
        ("origin-00001.npy", Path.unlink, "origin-00001.npy does not exist"),
        ("shard-00002.npy", truncate, "shard-00002.npy is truncated"),
        ("shard-00000.npy", saved(np.zeros((30, D_IN))), "float64 .* its manifest says float32"),
        ("shard-00000.npy", saved(np.zeros((31, D_IN), "f")), r"\(31, 5\), its manifest says"),
        ("shard-00000.npy", saved(np.array([[{}]])), "not an array of numbers"),
        ("manifest.json", truncate, "cannot be read as JSON"),
        ("manifest.json", edited(shards="abc"), "malformed"),
        ("manifest.json", edited(d_in=6), "has changed since it was written"),
        ("manifest.json", edited(rms=float("nan")), "rms is nan"),
        ("manifest.json", edited(format_version=9), "is of format version 9, and 1 is read here"),
        (
            "manifest.json",
            edited("shards", 0, file="../shard-00000.npy"),
            "not the name of an npy file beside it",
        ),
        ("manifest.json", edited("shards", 0, rows="30"), "rows is '30', not a valid integer"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, file, damage, message):
    write(tmp_path)
    damage(tmp_path / file)
    with pytest.raises(UserError, match=message):
        Activations.open(tmp_path)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Activations.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no \.npy files"):
        Activations.open(tmp_path)


@pytest.mark.parametrize("name", ["origin-00001.npy", "manifest.json"])
def test_verify_finds_a_change_that_open_does_not(tmp_path, name):
    write(tmp_path)
    Activations.open(tmp_path).verify()
    path = tmp_path / name
    if name == "manifest.json":
        files.write_json(path, files.read_json(path) | {"rms": 0.5})
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(UserError, match=f"{name} has changed since it was written"):
        Activations.open(tmp_path).verify()


def foreign(folder, **arrays):
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def test_wide_arrays_are_summed_in_memory_that_is_bounded_by_bytes(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(3000, 64)).astype(np.float32)
    found = Activations.open(foreign(tmp_path, a=rows))
    whole = found.mean, found.rms, found.fingerprint
    largest = []
    add = store.Moments.add
    monkeypatch.setattr(store.Moments, "add", lambda s, r: (largest.append(r.size), add(s, r)))
    monkeypatch.setattr(store, "SCAN_VALUES", 640)
    found = Activations.open(tmp_path)
    np.testing.assert_allclose(found.mean, whole[0], rtol=1e-12)
    assert found.rms == pytest.approx(whole[1], rel=1e-12)
    assert found.fingerprint == whole[2]
    assert max(largest) == 640


def test_foreign_arrays_are_read_in_the_order_of_their_names(tmp_path):
    rng = np.random.default_rng(0)
    b = rng.normal(size=(7, 3)).astype(np.float16)
    a = rng.normal(size=(4, 3))
    c = np.asfortranarray(rng.normal(size=(5, 3)).astype(">f4"))
    found = Activations.open(foreign(tmp_path, b=b, a=a, c=c))
    rows = np.concatenate([x.astype(np.float32) for x in (a, b, c)])
    assert (found.rows, found.d_in) == (16, 3)
    assert (found.read(2, 13) == rows[2:13]).all()
    assert found.origins(0, 16) is None
    np.testing.assert_allclose(found.mean, rows.astype(float).mean(0))
    assert found.rms == pytest.approx(math.sqrt((rows.astype(float) ** 2).mean()))


def test_the_fingerprint_of_foreign_arrays_follows_their_contents_and_names(tmp_path):
    a = np.ones((4, 3), np.float32)
    prints = set()
    for i, (name, array) in enumerate({"a": a, "b": a, "c": a * 2, "d": a.reshape(6, 2)}.items()):
        (tmp_path / str(i)).mkdir()
        prints.add(Activations.open(foreign(tmp_path / str(i), **{name: array})).fingerprint)
    again = Activations.open(foreign(tmp_path / "0", a=a)).fingerprint
    assert len(prints) == 4
    assert again in prints


def test_foreign_arrays_that_do_not_fit_are_named(tmp_path):
    cases = {
        "flat": (dict(a=np.zeros(5, np.float32)), r"a\.npy is float32 \(5,\)"),
        "ints": (dict(a=np.zeros((5, 2), int)), r"a\.npy is int64"),
        "widths": (dict(a=np.zeros((5, 2)), b=np.zeros((5, 3))), r"b\.npy is 3 wide, a\.npy is 2"),
        "nothing": (dict(a=np.zeros((0, 2))), "without a single value"),
        "no width": (dict(a=np.zeros((3, 0))), "without a single value"),
    }
    for name, (arrays, message) in cases.items():
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=message):
            Activations.open(foreign(tmp_path / name, **arrays))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_a_foreign_value_that_is_no_finite_float32_is_located(tmp_path, monkeypatch, value):
    monkeypatch.setattr(store, "SCAN_ROWS", 4)
    bad = np.zeros((11, 2))
    bad[6, 1] = value
    found = Activations.open(foreign(tmp_path, a=np.zeros((5, 2)), b=bad))
    with pytest.raises(UserError, match=r"b\.npy row 6"):
        _ = found.rms


def test_the_own_fingerprint_follows_the_inputs(tmp_path):
    prints = set()
    for name, inputs in (("a", INPUTS), ("b", INPUTS | {"model": "x"})):
        writer = ShardWriter(tmp_path / name, 4, D_IN, 4, "float32", 0)
        writer.add(*harvest_rows(4))
        writer.finish({}, inputs)
        prints.add(Activations.open(tmp_path / name).fingerprint)
    assert len(prints) == 2
    assert files.read_json(tmp_path / "b" / "manifest.json")["fingerprints"]["model"] == "x"
