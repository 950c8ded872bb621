"""A process that has imported everything and forks one child a run, to be killed at will.

Reads an order a line (JSON) on stdin and answers with a line: how the child ended, after how many
seconds, and what error it met. Starting a fresh interpreter for every one of many kills would take
minutes; the children are real processes all the same, and their death is the kernel's doing.
"""

import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import fault_study
import matplotlib
import safetensors.torch  # noqa: F401  imported for the children
import seaborn  # noqa: F401
import tiktoken  # noqa: F401
import tokenizers  # noqa: F401
import torch._dynamo  # noqa: F401  which the optimiser imports

from sparse_dict.activations import harvest  # noqa: F401
from sparse_dict.analysis import sections  # noqa: F401
from sparse_dict.analysis.report import page as report  # noqa: F401
from sparse_dict.launch import explain
from sparse_dict.lm import model, train  # noqa: F401
from sparse_dict.sae import ensemble, evaluate  # noqa: F401
from sparse_dict.text import tokens  # noqa: F401

# What changes files, as Python's audit hooks call it.
CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def die_at(change: int, base: Path) -> None:
    """Kill this process at its `change`-th change of a file below `base`."""
    count = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in CHANGES or not str(args[0]).startswith(str(base)):
            return
        if event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        if count == change:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def child(name: str, base: Path, order: dict[str, Any], answer: int) -> None:
    code, text = 0, ""
    try:
        if order.get("die_at"):
            die_at(order["die_at"], base)
        if order.get("file_limit"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
        fault_study.call(name, base)()
    except BaseException as error:
        code, text = 2, traceback.format_exc()
        if isinstance(error, Exception) and explain.is_foreseen(error):
            code, text = 1, explain.in_one_line(error, name)
    os.write(answer, text.encode()[:60_000])
    os._exit(code)


def serve(order: dict[str, Any]) -> dict[str, Any]:
    name, base = order["stage"], Path(order["base"])
    fault_study.call(name, base)  # composes the config, once for all children
    reader, writer = os.pipe()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(name, base, order, writer)
    os.close(writer)
    timer = None
    if order.get("after") is not None:
        timer = threading.Timer(order["after"], os.kill, (pid, order.get("signal", 9)))
        timer.start()
    with os.fdopen(reader, "rb") as file:
        text = file.read().decode(errors="replace")
    # waited for, but not reaped until the timer cannot hit another process any more
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - started
    if timer is not None:
        timer.cancel()
        timer.join()
    _, status = os.waitpid(pid, 0)
    return {"rc": os.waitstatus_to_exitcode(status), "seconds": seconds, "text": text}


if __name__ == "__main__":
    matplotlib.use("Agg")
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
    os._exit(0)  # what it has imported takes seconds to take leave
