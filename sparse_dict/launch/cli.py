"""Starts a script, and ends it with one line where its input is wrong."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hydra._internal.hydra import Hydra

from sparse_dict.errors import UserError, escape_logs
from sparse_dict.launch.explain import explanation
from sparse_dict.machine import ahead, distributed, interrupt

FULL = "HYDRA_FULL_ERROR"  # set to 1, it gets the whole traceback of any error
ASKED = os.environ.get(FULL) == "1"


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``.

    Wrong input ends it with one line and exit code 2, or 1 if it is Hydra that finds it; SIGTERM
    and Ctrl-C with one line and 128 + the signal's number.
    """
    # -m first, wherever it was typed: argparse takes overrides in one piece only
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    if "--hydra-help" not in sys.argv:
        # Our help names this script's own groups. Hydra gathers all that there are for a place
        # which our template does not have, and that takes a second.
        Hydra.format_config_groups = lambda *_, **__: ""  # type: ignore[method-assign]
    escape_logs()
    if ASKED:
        return main()
    try:
        _run(main)
    except SystemExit as ended:
        if ahead.left_behind():
            interrupt.leave(int(ended.code or 0))
        raise


def _run(main: Callable[[], None]) -> None:
    script = Path(sys.argv[0]).name
    os.environ[FULL] = "1"  # otherwise Hydra prints an error and exits by itself
    try:
        with interrupt.ending():
            main()
    except Exception as error:
        line = explanation(error)
        if line is None:
            raise
        fail(script, error, line)
    except KeyboardInterrupt:
        sys.stderr.write(f"{script}: stopped by Ctrl-C: run the same command to resume\n")
        raise SystemExit(130) from None
    except interrupt.Interrupted as ended:
        if distributed.main():
            sys.stderr.write(f"{script}: stopped by {ended.name}: run the same command to resume\n")
        raise
    finally:
        del os.environ[FULL]


def fail(script: str, error: Exception, line: str) -> NoReturn:
    """End the process with one line on an error: code 2 for what a stage found, 1 for the rest."""
    if ASKED:
        traceback.print_exception(error)
    if distributed.main():  # all other processes find the same
        sys.stderr.write(f"{script}: {line}\n")
    raise SystemExit(2 if isinstance(error, UserError) else 1) from None
