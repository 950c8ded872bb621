"""Progress where it is read: a bar on a terminal, whole lines anywhere else."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

CODE = """
import logging
from sparse_dict.machine import progress

logging.basicConfig(level=logging.INFO, format="%(message)s")
progress.LOG_EVERY_S = progress.FIRST_S = -1.0
for total in (3, None):
    with progress.Progress("work", total, "things") as bar:
        if total:
            bar.say("a part")
        for i in range(3):
            bar.advance(1, loss=i / 2)
"""


def output(on_terminal: bool) -> str:
    """What a process writes to stderr."""
    leader, follower = pty.openpty() if on_terminal else os.pipe()
    if on_terminal:
        termios.tcsetwinsize(follower, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=follower
    )
    os.close(follower)
    text = b""
    try:
        while part := os.read(leader, 4096):
            text += part
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    os.close(leader)
    assert process.wait(30) == 0
    return text.decode()


def test_a_log_file_gets_whole_lines_without_carriage_returns():
    text = output(on_terminal=False)
    assert "\r" not in text
    assert "\x1b" not in text
    lines = text.splitlines()
    assert len(lines) == 7
    assert lines[0] == "work, 0 of 3 things: a part"
    assert lines[1].startswith("work: 1 of 3 things, ")
    assert lines[3].endswith(" s left, loss 1")
    assert lines[6].startswith("work: 3 things, ")


def test_a_terminal_gets_a_bar_that_moves():
    text = output(on_terminal=True)
    assert "\r" in text
    assert "loss=1" in text
    assert "work: a part" in text
