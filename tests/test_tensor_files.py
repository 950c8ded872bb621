"""Files of arrays: whole, alone in their folder, and known when they have changed."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from sparse_dict.errors import UserError
from sparse_dict.storage import tensor_files

ARRAYS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros(0, np.int64)}


def test_arrays_come_back_and_nothing_else_is_left_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor_files.write(path, {**ARRAYS, "t": ARRAYS["b"].T})
    found = load_file(path)
    assert found.keys() == {"a", "b", "t"}
    np.testing.assert_array_equal(found["t"], ARRAYS["b"].T)
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o044 == 0o044  # safetensors itself would let nobody else read it


def test_a_process_killed_while_it_writes_leaves_no_name_that_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    names = []

    def sync(_handle: int) -> None:
        names.extend(path.name for path in tmp_path.iterdir())
        raise Killed

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(Killed):
        tensor_files.write_checkpoint(tmp_path / "x.safetensors", ARRAYS, {})
    assert names == [".x.safetensors.tmp"]


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".x.safetensors.tmp").symlink_to(tmp_path / "mine")
    tensor_files.write(tmp_path / "x.safetensors", ARRAYS)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "x.safetensors").is_symlink()


def test_a_checkpoint_comes_back_with_its_record(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensor_files.write_checkpoint(path, ARRAYS, {"step": 3, "loss": float("inf")})
    assert tensor_files.read_record(path, dict[str, float]) == {"step": 3, "loss": float("inf")}
    found = tensor_files.read_checkpoint(path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("where", ["array", "record"])
def test_a_checkpoint_that_has_changed_is_not_gone_on_from(tmp_path: Path, where: str) -> None:
    path = tmp_path / "x.safetensors"
    tensor_files.write_checkpoint(path, ARRAYS, {"step": 3})
    data = bytearray(path.read_bytes())
    if where == "array":
        data[-1] ^= 1
    else:
        data = data.replace(json.dumps(json.dumps({"step": 3}))[1:-1].encode(), b'{\\"step\\": 4}')
    assert bytes(data) != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.safetensors is damaged .*has changed.*delete it"):
        tensor_files.read_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"x" * 100, None])
def test_what_is_no_checkpoint_is_named(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "x.safetensors"
    if data is None:
        tensor_files.write(path, ARRAYS)  # without a record
    else:
        path.write_bytes(data)
    for read in (lambda path: tensor_files.read_record(path, dict), tensor_files.read_checkpoint):
        with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
            read(path)
