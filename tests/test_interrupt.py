"""Ctrl-C while C computes."""

import signal
import sys

import pytest
from processes import ROOT, started

LONG = """
import numpy as np
from scipy.optimize import linear_sum_assignment
from sparse_dict.launch import script
from sparse_dict.machine.background import in_background

def main():
    matrix = np.random.default_rng(0).standard_normal((2500, 2500))
    print("begun", flush=True)
    in_background(lambda: {call})
    print("done", flush=True)

script.start(main)
"""


@pytest.mark.parametrize(
    "call", ["np.linalg.eigh(matrix)", "linear_sum_assignment(matrix @ matrix)"]
)
def test_ctrl_c_ends_a_script_whose_c_code_would_compute_on(call: str):
    process = started([sys.executable, "-c", LONG.format(call=call)], ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (output, process.returncode) == ("", 130)
    assert errors == "-c: stopped by Ctrl-C: run the same command to resume\n"
