"""Ctrl-C while C computes."""

import signal
import subprocess
import sys

import numpy as np
import pytest

from sparse_dict.machine import interrupt

LONG = """
import numpy as np
from scipy.optimize import linear_sum_assignment
from sparse_dict.machine import interrupt
matrix = np.random.default_rng(0).standard_normal((2500, 2500))
print("begun", flush=True)
interrupt.during(lambda: {call})
print("done", flush=True)
"""


@pytest.mark.parametrize(
    "call", ["np.linalg.eigh(matrix)", "linear_sum_assignment(matrix @ matrix)"]
)
def test_ctrl_c_ends_a_process_whose_c_code_would_compute_on(call: str):
    process = subprocess.Popen(
        [sys.executable, "-c", LONG.format(call=call)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (output, "KeyboardInterrupt" in errors) == ("", True)
    assert process.returncode != 0


def test_what_a_call_gives_or_raises_comes_back():
    assert interrupt.during(lambda: 3) == 3
    with pytest.raises(np.linalg.LinAlgError):
        interrupt.during(lambda: np.linalg.inv(np.zeros((2, 2))))
