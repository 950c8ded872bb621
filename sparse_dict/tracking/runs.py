"""Opening wandb runs: online if the server can be used, else offline."""

import functools
import logging
import os
import re
import resource
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparse_dict.config import StudyConfig, TrackingConfig
from sparse_dict.config.ranges import shortened
from sparse_dict.errors import UserError, one_line
from sparse_dict.storage.untrusted import read_bytes
from sparse_dict.tracking import server
from sparse_dict.tracking.run import DONE, ID_FILE, NAME_BYTES, Run, exit_code

AT_ONCE = 32  # runs that are opened side by side
FILES = 3  # that wandb's service keeps open for a run; here there is one, and a lock for each job
SPARE = 64  # files that the work needs besides
HEADER = 7  # bytes with which a .wandb file begins
SETTINGS = {
    "silent": True,
    "use_dot_wandb": False,
    "finish_timeout_raises": True,
    # What wandb would gather at each start: without it a run opens in 10 ms instead of 150.
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


@contextmanager
def together(openers: Sequence[Callable[[], Run]]) -> Iterator[list[Run]]:
    """Open several runs side by side, and finish them so: they wait no longer than one."""
    code = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        opening = [pool.submit(opener) for opener in openers]
        try:
            yield [future.result() for future in opening]
        except BaseException as error:
            code = exit_code(error)
            raise
        finally:
            # a signal may have come while some were opening
            begun = [each for each in opening if not each.cancel() and not each.exception()]
            list(pool.map(lambda each: each.result().finish(code), begun))


def check(tracking: TrackingConfig) -> None:
    """See that `tracking.mode=online` can be had."""
    if _mode(tracking) == "online" and (why_not := server.why_offline()):
        raise UserError(
            f"tracking.mode=online, but {why_not}; run `wandb login`, or set tracking.mode=offline"
        )


def open_run(
    config: StudyConfig,
    job_type: str,
    name: str,
    folder: Path,
    step_metric: str | None = None,
    fingerprints: Mapping[str, Any] | None = None,
    finished: Mapping[str, Any] | None = None,
) -> Run:
    """Open a run `name` of the group `config.name`; any number may be open at once.

    The job's `folder` remembers it, so that a job that goes on later does so in it; `step_metric`
    is the horizontal axis of all other values, `fingerprints` are of what the job is made from.
    `finished` is the recorded config of a job that is finished, to whose run something is added:
    nothing is opened where that run is not known, or offline, where it would become another run to
    look at.
    """
    tracking, wandb_dir = config.tracking, Path(config.study_dir) / "wandb"
    mode, before = _mode(tracking), _remembered(folder / ID_FILE, finished is not None)
    if mode == "disabled" or (finished is not None and before is None) or not _room():
        return Run()
    check(tracking)
    about = {"folder": folder.name, "commit": _commit(), "fingerprints": fingerprints}
    there = asdict(tracking) | ((finished or {}).get("tracking") or {})
    identity: dict[str, Any] = {
        "id": before or secrets.token_hex(8),
        **{key: there[key] for key in ("project", "entity", "tags")},
        "group": shortened(config.name, NAME_BYTES),
        "job_type": tracking.job_type or job_type,
        "name": shortened(name, NAME_BYTES),
        "config": finished or {**asdict(config), **about},
    }
    id_file = None if finished else folder / ID_FILE
    why_not = "tracking.mode=offline" if mode == "offline" else server.why_offline()
    if not why_not:
        try:
            run = _init("online", identity, wandb_dir, step_metric, "allow" if before else None)
            return Run(run, True, id_file)
        except Exception as error:
            if mode == "online":
                why = one_line(error, named=True)
                raise UserError(f"wandb cannot open a run online: {why}") from None
            why_not = server.give_up(f"no run could be opened: {one_line(error, named=True)}")
            # to wandb the one that failed is in use as long as this process lives
            identity["id"] = secrets.token_hex(8)
    if finished is not None:
        return Run()
    if mode == "auto":
        how = f"to send the runs later: wandb sync {os.path.relpath(wandb_dir)}"
        server.say(logging.INFO, f"offline ({why_not}); {how}")
    with server.harmless("open"):
        for file in wandb_dir.glob(f"*run-*-{identity['id']}/*.wandb"):
            if file.stat().st_size <= HEADER:  # died without a record: stops `wandb sync` of others
                shutil.rmtree(file.parent, ignore_errors=True)
        # "allow", so that `wandb sync` adds it to what the server has of the run by then
        return Run(_init("offline", identity, wandb_dir, step_metric, "allow"), False, id_file)
    return Run()


def _room() -> bool:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if room := FILES * len(list(Path("/proc/self/fd").glob("*"))) + SPARE <= most:
        return room
    say = f"no more runs are opened: only {most} files may be open, see ulimit -n"
    server.say(logging.WARNING, say)
    return False


def _mode(tracking: TrackingConfig) -> str:
    asked = os.environ.get("WANDB_MODE") if tracking.mode == "auto" else None
    return asked if asked in ("online", "offline", "disabled") else tracking.mode


def unfinished(folder: Path) -> bool:
    """Whether the run of the job in `folder` is known and did not finish well."""
    return _remembered(folder / ID_FILE) is not None


def _remembered(id_file: Path, finished: bool = False) -> str | None:
    with suppress(UserError, ValueError):
        text = read_bytes(id_file).decode().strip()
        found = re.fullmatch(f"([0-9a-f]{{16}})({DONE})?", text)
        return found[1] if found and (finished or not found[2]) else None
    return None


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that runs, with a + where files differ; None without one."""
    command = "git --git-dir=.git describe --always --abbrev=40 --exclude=* --dirty=+"
    with suppress(OSError):
        root = Path(__file__).parents[2]
        done = subprocess.run(command.split(), cwd=root, capture_output=True)
        return done.stdout.decode().strip() or None
    return None


def _init(
    mode: str, identity: dict[str, Any], wandb_dir: Path, metric: str | None, resume: str | None
) -> Any:
    folder = wandb_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(key, str(folder / ".cache"))  # else the user's home
    wandb = server.client()
    server.prepare_cache()
    wanted = SETTINGS | {"mode": mode, "root_dir": str(folder.parent)}
    if mode == "online":
        wanted |= server.LIMITS
    known = wandb.Settings.model_fields  # those that begin with x_ come and go
    # a fresh one each time, because init changes it
    settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
    started = time.monotonic()
    run = wandb.init(reinit="create_new", settings=settings, resume=resume, **identity)
    if mode == "online":
        if time.monotonic() - started > server.SLOW_S:
            server.give_up("the server is slow")
        run._log_artifact = functools.partial(_deliver, run)
    if metric is not None:
        run.define_metric(metric)
        run.define_metric("*", step_metric=metric)
    return run


def _deliver(run: Any, artifact: Any, use_after_commit: bool = False, **_: Any) -> Any:
    """Log an artifact (a table is one, too) online: wandb itself would wait 20 s for an answer."""
    artifact.finalize()
    run._interface.publish_artifact(run, artifact, ["latest"], use_after_commit=use_after_commit)
    return artifact
