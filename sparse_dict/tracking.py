"""Weights & Biases: one run for each job, online where that works, offline where it does not.

Tracking never stops a training run: trouble with wandb becomes a warning, given once. A server that
is slow or gone costs a minute at most, by wandb's own time limits (`LIMITS`), since runs are opened
and finished side by side; what it did not take stays in ``<study_dir>/wandb``.
"""

import functools
import logging
import os
import re
import secrets
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from sparse_dict.config import StudyConfig, TrackingConfig
from sparse_dict.config.ranges import shortened
from sparse_dict.errors import UserError, one_line
from sparse_dict.machine import interrupt
from sparse_dict.storage import files
from sparse_dict.storage.untrusted import read_bytes

log = logging.getLogger(__name__)

ID_FILE = "wandb_run_id.txt"  # in the job's folder: the run's id, and DONE once it finished well
DONE = " finished"
NAME_BYTES = 128  # of the name of a run, a group or an artifact, which servers take
KILLED = 255  # exit code that wandb gives a run that Ctrl-C has ended
AT_ONCE = 32  # runs that are opened side by side
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
LIMITS = {  # of a server, in seconds
    "init_timeout": 15.0,
    "finish_timeout": 4.0,  # SIGTERM leaves us 10 in all
    # The end of a run waits for its artifacts (a table is one) beyond that, for as long as these
    # are tried again.
    "x_graphql_timeout_seconds": 4.0,
    "x_graphql_retry_max": 2,
    "x_graphql_retry_wait_max_seconds": 2.0,
}

_lock = threading.RLock()
_trouble: list[str] = []  # that runs have met: the server is used no more


class Run(AbstractContextManager["Run"]):
    """One run, or with no `run` a thing that does nothing.

    As a context manager it finishes with exit code 0, 1 on an exception, `KILLED` on a signal's.
    """

    def __init__(
        self, run: Any | None = None, online: bool = False, id_file: Path | None = None
    ) -> None:
        self._run, self.online, self._id_file = run, online, id_file
        self._made: dict[str, tuple[Path, ...]] = {}
        self._do("remember", self._remember)

    def _remember(self, run: Any, state: str = "") -> None:
        if self._id_file is not None:
            files.write_text(self._id_file, f"{run.id}{state}\n")

    def log(self, values: Mapping[str, Any]) -> None:
        """Log one row, with the step metric, if the run has one; a path is a picture or a page."""

        def shown(value: Any) -> Any:
            if not isinstance(value, Path):
                return value
            wandb = _client()
            return (wandb.Html if value.suffix == ".html" else wandb.Image)(str(value))

        self._do("log to", lambda run: run.log({key: shown(v) for key, v in values.items()}))

    def summary(self, values: dict[str, Any]) -> None:
        """Set the run's end values."""
        self._do("write the summary of", lambda run: run.summary.update(values))

    def curves(self, values: dict[str, float], step: str) -> None:
        """Log one row whose horizontal axis is `step`, one of its values."""

        def define(run: Any) -> None:
            for key in values:
                run.define_metric(key, step_metric=None if key == step else step)

        self._do("log to", define)
        self.log(values)

    def table(
        self,
        key: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        chart: tuple[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Log a table; its cells are numbers (numpy's too), texts, truth values or None.

        As a `chart` it is drawn by one of wandb's own, which has a name, and columns for its axes.
        """

        def log(run: Any) -> None:
            cells = [[v.item() if hasattr(v, "item") else v for v in row] for row in rows]
            wandb = _client()
            table = wandb.Table(list(columns), cells, allow_mixed_types=True)
            drawn = chart and wandb.plot_table(chart[0], table, chart[1], {"title": key})
            run.log({key: drawn or table})

        self._do("log to", log)

    def used(self, kind: str, source: Path | str, digest: str | None = None) -> None:
        """Say what the run was made from: the file that records it, or an address and a digest."""
        self._do("log what was used by", partial(_artifact, kind, source, digest, (), True))

    def made(self, kind: str, record: Path, *files: Path) -> None:
        """Say what the run has made, by the file that records it; sent when it finishes well."""
        self._made[kind] = (record, *files)

    def _do(self, what: str, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            try:
                action(self._run)
            except Exception as error:
                _warn(what, error)

    def finish(self, exit_code: int = 0) -> None:
        """End the run; a second call does nothing."""
        for kind, (record, *sent) in self._made.items() if exit_code == 0 else ():
            self._do("log what was made by", partial(_artifact, kind, record, None, sent, False))
        self._do("finish", lambda run: self._end(run, exit_code))
        self._run = None

    def _end(self, run: Any, exit_code: int) -> None:
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            if not self.online:
                raise
            where = os.path.relpath(run.settings.wandb_dir)
            _say(
                logging.WARNING,
                f"the server is slow or gone ({_met(error)}); to send later what is missing: "
                f"wandb sync --include-online {where}",
            )
        else:
            self._remember(run, "" if exit_code else DONE)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.finish(_exit_code(error))


def _exit_code(error: BaseException | None) -> int:
    if error is None:
        return 0
    return KILLED if isinstance(error, KeyboardInterrupt | interrupt.Interrupted) else 1


@contextmanager
def together(openers: Sequence[Callable[[], Run]]) -> Iterator[list[Run]]:
    """Open several runs side by side, and finish them so: they wait no longer than one."""
    code = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        opening = [pool.submit(opener) for opener in openers]
        try:
            yield [future.result() for future in opening]
        except BaseException as error:
            code = _exit_code(error)
            raise
        finally:
            # a signal may have come while some were opening
            begun = [each for each in opening if not each.cancel() and not each.exception()]
            list(pool.map(lambda each: each.result().finish(code), begun))


def check(tracking: TrackingConfig) -> None:
    """See that nothing here is against `tracking.mode=online`; `open_run` asks the server."""
    if _mode(tracking) == "online" and (why_not := why_offline()):
        raise UserError(f"tracking.mode=online, but {why_not}: run `wandb login`")


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
    mode, before = _mode(tracking), remembered(folder, finished is not None)
    if mode == "disabled" or (finished is not None and before is None):
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
    why_not = "tracking.mode=offline" if mode == "offline" else why_offline()
    if not why_not:
        try:
            run = _init("online", identity, wandb_dir, step_metric, "allow" if before else None)
            return Run(run, True, id_file)
        except Exception as error:
            why_not = _met(error)
            if mode == "online":
                raise UserError(f"wandb cannot open a run online: {why_not}") from None
            # to wandb the one that failed is in use as long as this process lives
            identity["id"] = secrets.token_hex(8)
    if finished is not None:
        return Run()
    if mode == "auto":
        how = f"to send the runs later: wandb sync {os.path.relpath(wandb_dir)}"
        _say(logging.INFO, f"offline ({why_not}); {how}")
    try:
        for file in wandb_dir.glob(f"*run-*-{identity['id']}/*.wandb"):
            if file.stat().st_size <= HEADER:  # died without a record: stops `wandb sync` of others
                shutil.rmtree(file.parent, ignore_errors=True)
        # "allow", so that `wandb sync` adds it to what the server has of the run by then
        return Run(_init("offline", identity, wandb_dir, step_metric, "allow"), False, id_file)
    except Exception as error:
        _warn("open", error)
        return Run()


def _init(
    mode: str, identity: dict[str, Any], wandb_dir: Path, metric: str | None, resume: str | None
) -> Any:
    folder = wandb_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        os.environ.setdefault(key, str(folder / ".cache"))  # else the user's home
    wandb = _client()
    from wandb.sdk.artifacts import artifact_file_cache

    with _lock, interrupt.not_heard():  # it starts a process for it, which Ctrl-C does not reach so
        artifact_file_cache.get_artifact_file_cache()
    wanted = SETTINGS | {"mode": mode, "root_dir": str(folder.parent)}
    wanted |= LIMITS if mode == "online" else {}
    known = wandb.Settings.model_fields  # those that begin with x_ come and go
    # a fresh one each time, because init changes it
    settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
    run = wandb.init(reinit="create_new", settings=settings, resume=resume, **identity)
    if mode == "online":
        run._log_artifact = partial(_deliver, run)
    if metric is not None:
        run.define_metric(metric)
        run.define_metric("*", step_metric=metric)
    return run


def _deliver(run: Any, artifact: Any, use_after_commit: bool = False, **_: Any) -> Any:
    """Log an artifact (a table is one, too) online: wandb itself would wait 20 s for an answer."""
    artifact.finalize()
    run._interface.publish_artifact(run, artifact, ["latest"], use_after_commit=use_after_commit)
    return artifact


def _artifact(
    kind: str, source: Path | str, digest: str | None, sent: Sequence[Path], used: bool, run: Any
) -> None:
    """Log an artifact by reference: where it lies, and the SHA-256 of its record."""
    if isinstance(source, Path):
        source = source.absolute()
        uri, sha256 = source.as_uri(), digest or files.sha256_file(source)
        name = "-".join(source.parts[-4:-1])  # outputs-demo-lm, demo-sae-NAME
    else:
        uri, sha256, name = source, str(digest), source.partition("//")[2]
    name = shortened(re.sub(r"[^\w.-]+", "-", name).lstrip("-."), NAME_BYTES)
    artifact = _client().Artifact(name, kind, metadata={"sha256": sha256, "source": str(source)})
    # The entry's name makes another content another version.
    artifact.add_reference(uri, name=sha256, checksum=False)
    for file in sent:
        artifact.add_file(str(file))
    # What `use_artifact` does with one that is not on the server; but it refuses offline.
    run._log_artifact(artifact, use_after_commit=used)


def _client() -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    # What is reported of errors is on wandb itself, to its maker.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def _met(error: Exception) -> str:
    _trouble.append(one_line(error, named=True))
    return _trouble[-1]


def why_offline() -> str:
    """Why the server is not used, or "" if it is: there is a key, and no run has met trouble."""
    with _lock:
        return _trouble[0] if _trouble else _lacking()


@functools.cache
def _lacking() -> str:
    for name in ("wandb", ".wandb"):
        if (file := Path(name, "settings")).exists():  # a stranger's study may name its own server
            return f"{file} of this folder says which server gets the API key: remove it"
    _client()
    try:
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        url = wandb_setup.singleton().settings.base_url  # wandb.setup would start its service
        key = wbauth.authenticate_session(host=url, source="", prompt=False, update_session=False)
    except Exception as error:  # a key that cannot be one, say
        return one_line(error, named=True)
    return "" if key else f"no API key for {url}"


def _mode(tracking: TrackingConfig) -> str:
    """The mode asked for; where that is auto, WANDB_MODE may ask for another one."""
    asked = os.environ.get("WANDB_MODE") if tracking.mode == "auto" else None
    return asked if asked in ("online", "offline", "disabled") else tracking.mode


def remembered(folder: Path, finished: bool = False) -> str | None:
    """The run of the job in `folder`: if it did not finish well, or `finished` in any case."""
    with suppress(UserError, ValueError):
        text = read_bytes(folder / ID_FILE).decode().strip()
        found = re.fullmatch(f"([0-9a-f]{{16}})({DONE})?", text)
        return found[1] if found and (finished or not found[2]) else None
    return None


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that runs, with a + where files differ; None without one."""
    command = "git --git-dir=.git describe --always --abbrev=40 --exclude=* --dirty=+"
    with suppress(OSError):
        root = Path(__file__).parents[1]
        done = subprocess.run(command.split(), cwd=root, capture_output=True)
        return done.stdout.decode().strip() or None
    return None


def _warn(what: str, error: Exception) -> None:
    _say(logging.WARNING, f"could not {what} a run: {one_line(error, named=True)}")


@functools.cache  # once in a process
def _say(level: int, message: str) -> None:
    log.log(level, "wandb: %s", message)
