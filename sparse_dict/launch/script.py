"""Starts a script, runs its stage, and ends it with one line where something is wrong."""

import atexit
import logging
import os
import resource
import shutil
import string
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from sparse_dict.config import CONF_DIR
from sparse_dict.errors import UserError, escape_logs, masked
from sparse_dict.launch import explain, jobs, overrides
from sparse_dict.machine import background, distributed, interrupt

log = logging.getLogger(__name__)

FULL = "HYDRA_FULL_ERROR"  # set to 1, it gets the whole traceback of any error
ASKED = os.environ.get(FULL) == "1"


def start_stage(name: str) -> None:
    """The whole of the script ``NAME.py``."""

    def task(config: DictConfig) -> Any:
        return run_stage(name, config)

    task.__module__ = name  # by which Hydra calls the job
    start(hydra.main(version_base="1.3", config_path=str(CONF_DIR), config_name=name)(task))


def start(main: Callable[[], None]) -> None:
    """Call a script's ``main``, which Hydra has made to read the command line.

    Wrong input ends it with one line and exit code 2, or 1 if it is Hydra that finds it; SIGTERM
    and Ctrl-C with one line and 128 + the signal's number.
    """
    # -m first, wherever it was typed: argparse takes overrides in one piece only
    arguments = sorted(sys.argv[1:], key=lambda argument: argument not in ("-m", "--multirun"))
    _set_up_process()
    try:
        sys.argv[1:] = map(overrides.as_meant, overrides.again(arguments))
    except UserError as error:
        fail(error)
    if ASKED:
        return main()
    os.environ[FULL] = "1"  # otherwise Hydra prints an error and exits by itself
    try:
        _until_the_end(main)
    except SystemExit as ended:
        if background.left_behind():
            interrupt.leave(ended.code if isinstance(ended.code, int) else int(bool(ended.code)))
        raise
    finally:
        del os.environ[FULL]


def _until_the_end(main: Callable[[], None]) -> None:
    try:
        with interrupt.ending():
            print_help() if {"--help", "-h"} & {*sys.argv} else main()
    except Exception as error:
        if not explain.is_foreseen(error):
            raise
        fail(error)
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C: run the same command to resume")
        raise SystemExit(130) from None
    except interrupt.Interrupted as ended:
        if distributed.main():
            _say(f"stopped by {ended.name}: run the same command to resume")
        raise


def run_stage(name: str, config: DictConfig) -> Any:
    """Run stage `name` for one job, as Hydra calls a script; ends with one line and exit code 1."""
    stage = jobs.module(name)
    logging.raiseExceptions = False  # a log file on a full disk: no traceback for each line
    try:
        outcome = stage.run(jobs.typed(config))
        return stage.objective(outcome) if hasattr(stage, "objective") else outcome
    except Exception as error:
        if not explain.is_foreseen(error):
            raise
        line = explain.in_one_line(error, name)
        log.error("%s", line)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            # one of Hydra's own, of which it prints the first without a traceback
            raise CompactHydraException(line) from None
        raise SystemExit(1) from None


def fail(error: Exception, stage: str = "") -> NoReturn:
    """End the process with one line on an error: code 2 for what a check found, 1 for the rest."""
    try:
        if ASKED:
            traceback.print_exception(error)
        if distributed.main():  # all other processes find the same
            _say(explain.in_one_line(error, stage))
    finally:  # always end here: Hydra would turn the error into a warning and go on
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None


def print_help() -> None:
    """Print `hydra.help`: Hydra's ``--help`` also lists all groups, which takes three seconds."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    name = Path(sys.argv[0]).stem
    with initialize_config_dir(str(CONF_DIR), job_name=name, version_base="1.3"):
        config = compose(name, given, return_hydra_config=True)
    sys.stdout.write(string.Template(config.hydra.help.template).substitute() + "\n")


def _set_up_process() -> None:
    if os.path.expanduser("~") == "~":  # noqa: PTH111  no home, which libraries want for caches
        os.environ["HOME"] = tempfile.mkdtemp(prefix="sparse-dict-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)
    # A notebook names its own backend in the environment of what it starts, which cannot load it.
    os.environ["MPLBACKEND"] = "Agg"
    # OpenMP's threads wait for their next piece of work by spinning, for milliseconds: beside other
    # work on the machine that takes most of what two cores give. Read when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "0")
    escape_logs()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a grid needs one lock per job
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(line: str) -> None:
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {masked(line)}\n")
