import subprocess
import sys

import pytest
import torch

from sparse_dict.errors import UserError
from sparse_dict.machine import runtime

# Page faults of ten large temporaries, with or without `allocator`.
PROGRAM = """
import resource, sys
from sparse_dict.machine import runtime
if sys.argv[1] == "set" and not runtime.allocator():
    sys.exit("the allocator took no settings")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(64 << 20)[::4096] = bytes(16384)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_the_allocator_reuses_large_blocks():
    faults = {
        mode: int(subprocess.run([sys.executable, "-c", PROGRAM, mode],
                                 capture_output=True, check=True).stdout)
        for mode in ("set", "default")
    }  # fmt: skip
    assert faults["set"] < faults["default"] / 2


def test_auto_takes_what_there_is():
    assert runtime.device("auto").type in ("cuda", "cpu")
    assert runtime.device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu", "mps", "", "cuda:-1", "meta", "cpu:7"])
def test_a_device_that_means_nothing_is_a_user_error(name):
    with pytest.raises(UserError, match="device"):
        runtime.device(name)


def test_a_device_that_is_not_there_is_a_user_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="not available here"):
        runtime.check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert runtime.device("cuda:1").index == 1
    assert runtime.device("auto").type == "cuda"
    with pytest.raises(UserError, match="not available here"):
        runtime.device("cuda:2")
