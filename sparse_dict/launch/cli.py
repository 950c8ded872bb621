"""Starts a script, and ends it with one line where its input is wrong."""

import atexit
import os
import resource
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra

from sparse_dict.errors import UserError, escape_logs
from sparse_dict.launch import overrides
from sparse_dict.launch.explain import explanation, in_one_line
from sparse_dict.machine import ahead, distributed, interrupt

FULL = "HYDRA_FULL_ERROR"  # set to 1, it gets the whole traceback of any error
ASKED = os.environ.get(FULL) == "1"


def run(main: Callable[[], None]) -> None:
    """Run a script's ``main``.

    Wrong input ends it with one line and exit code 2, or 1 if it is Hydra that finds it; SIGTERM
    and Ctrl-C with one line and 128 + the signal's number.
    """
    # -m first, wherever it was typed: argparse takes overrides in one piece only
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    sys.argv[1:] = map(overrides.as_meant, arguments)
    ConfigLoaderImpl._apply_overrides_to_config = staticmethod(  # type: ignore[method-assign]
        overrides.see_that_sections_are_on(ConfigLoaderImpl._apply_overrides_to_config)
    )
    if "--hydra-help" not in sys.argv:
        # Our help names this script's own groups. Hydra's list of all groups takes a second, and
        # our template does not show it.
        Hydra.format_config_groups = lambda *_, **__: ""  # type: ignore[method-assign]
    if os.path.expanduser("~") == "~":  # noqa: PTH111  no home, which libraries want for caches
        os.environ["HOME"] = tempfile.mkdtemp(prefix="sparse-dict-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    # OpenMP's threads wait for their next piece of work by spinning, for milliseconds: beside other
    # work on the machine that takes most of what two cores give. Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    # A notebook names its own backend in the environment of what it starts, which cannot load it.
    os.environ["MPLBACKEND"] = "Agg"
    escape_logs()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a grid needs one lock per job
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if ASKED:
        return main()
    try:
        _run(main)
    except SystemExit as ended:
        if ahead.left_behind():
            interrupt.leave(ended.code if isinstance(ended.code, int) else int(bool(ended.code)))
        raise


def _run(main: Callable[[], None]) -> None:
    os.environ[FULL] = "1"  # otherwise Hydra prints an error and exits by itself
    try:
        with interrupt.ending():
            main()
    except Exception as error:
        if explanation(error) is None:
            raise
        fail(error)
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C: run the same command to resume")
        raise SystemExit(130) from None
    except interrupt.Interrupted as ended:
        if distributed.main():
            _say(f"stopped by {ended.name}: run the same command to resume")
        raise
    finally:
        del os.environ[FULL]


def fail(error: Exception) -> NoReturn:
    """End the process with one line on an error: code 2 for what a stage found, 1 for the rest."""
    try:
        if ASKED:
            traceback.print_exception(error)
        if distributed.main():  # all other processes find the same
            _say(in_one_line(error))
    finally:  # always end here: Hydra would turn the error into a warning and go on
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


def _say(line: str) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {line}\n")
