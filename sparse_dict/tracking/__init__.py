"""Weights & Biases: one run for each job, online where that works, offline where it does not.

Tracking never stops a training run: trouble with wandb becomes a warning, said once. A server that
is slow or gone costs seconds, and what it did not take stays in ``<study_dir>/wandb``.
"""

import configparser
import logging
import netrc
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sparse_dict.config import StudyConfig, TrackingConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.storage import files

log = logging.getLogger(__name__)

# A bad server costs a process PROBE_S + PATIENCE_S + FINISH_S more than a good one, at most.
PROBE_S = 3.0  # how long it may take to say that it is there
PATIENCE_S = 4.0  # of waiting, over all runs; when they are used up, runs are written offline
GRACE_S = 1.0  # what a good server may take to open or finish runs: does not count
FINISH_S = 4.0  # how long it may take to accept the rest of a run: SIGTERM leaves us 10 in all
TABLES_S = 1.0  # what all tables may cost beyond TABLE_S each, after which they are sent as files
TABLE_S = 0.3  # what one costs with a good server
AT_ONCE = 32  # runs that are opened side by side
KILLED = 255  # exit code that wandb gives a run that Ctrl-C has ended
HEADER = 7  # bytes with which a .wandb file begins
ID_FILE = "wandb_run_id.txt"  # in the job's folder until the run finishes well

# What wandb would gather at each start: without it a run opens in 10 ms instead of 150.
LIGHT = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}

_lock = threading.Lock()
_asking = threading.Lock()  # one asks the server, the others wait for the answer
_said: set[str] = set()
_server: dict[str, str] = {}  # by address: why it cannot be used, or "" if it can


class _Waiting:
    """A context in which the server is waited for; sums up how long, however many do so at once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        self._since = 0.0

    def __enter__(self) -> None:
        with _lock:
            if self._depth == 0:
                self._since = time.monotonic()
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with _lock:
            self._depth -= 1
            if self._depth == 0:
                self.seconds += max(0.0, time.monotonic() - self._since - GRACE_S)


_waiting = _Waiting()
_tables = 0.0  # seconds that tables have cost beyond TABLE_S each


class Run:
    """One run, or with `tracking.mode` disabled a thing that does nothing.

    As a context manager it finishes with exit code 0, on an exception with 1, or with `KILLED` if
    a signal has raised it.
    """

    def __init__(self, run: Any | None, online: bool, id_file: Path) -> None:
        self._run = run
        self._online = online
        self._id_file = id_file
        self._finishing: threading.Thread | None = None

    def log(self, values: dict[str, float]) -> None:
        """Log one row; it should hold the step metric, if the run has one."""
        if self._run is not None:
            with _harmless("log to"):
                self._run.log(values)

    def summary(self, values: dict[str, Any]) -> None:
        """Set the run's end values."""
        if self._run is not None:
            with _harmless("write the summary of"):
                self._run.summary.update(values)

    def image(self, key: str, path: Path) -> None:
        """Log an image file."""
        if self._run is not None:
            with _harmless("log an image to"):
                import wandb

                self._run.log({key: wandb.Image(str(path))})

    def table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table; its cells are numbers, texts, truth values or None."""
        if self._run is not None:
            with _harmless("log a table to"):
                import wandb

                cells = [[_cell(value) for value in row] for row in rows]
                table = wandb.Table(list(columns), cells, allow_mixed_types=True)
                started = time.monotonic()
                if self._online and not (_tables < TABLES_S and _quick()):
                    # A table is an artifact as well, about which wandb asks the server: for 20 s,
                    # and then it drops the table. One that is bound already is sent as a file only.
                    table.bind_to_run(self._run, key, self._run.step)
                self._run.log({key: table})
                _count_table(time.monotonic() - started)

    def finish(self, exit_code: int = 0) -> None:
        """Begin to end the run; a second call does nothing."""
        run, self._run = self._run, None
        if run is not None:
            target = self._finish_online if self._online else self._finish_offline
            self._finishing = threading.Thread(target=target, args=(run, exit_code))
            self._finishing.start()

    def wait(self) -> None:
        """Wait until a run that was told to finish has done so, or has given up."""
        if self._finishing is not None:
            self._finishing.join()

    def _finish_offline(self, run: Any, exit_code: int) -> None:
        with _harmless("finish"):
            run.finish(exit_code=exit_code)
            if exit_code == 0:
                self._id_file.unlink(missing_ok=True)

    def _finish_online(self, run: Any, exit_code: int) -> None:
        folder = Path(run.settings.wandb_dir)
        try:
            with _waiting:
                run.finish(exit_code=exit_code)
        except Exception as error:
            in_time = not isinstance(error, TimeoutError)
            why = one_line(error) if in_time else "it did not take everything in time"
            _give_up(f"a run could not be finished: {why}")
            _say(
                logging.WARNING,
                f"wandb: the server is slow or gone ({why}); to send later what is missing: "
                f"wandb sync --include-online {_shown(folder)}",
            )
        else:
            if exit_code == 0:
                self._id_file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(_exit_code(error))
        self.wait()


def _exit_code(error: BaseException | None) -> int:
    """What a run ends with."""
    if error is None:
        return 0
    return KILLED if isinstance(error, KeyboardInterrupt | Interrupted) else 1


@contextmanager
def together(openers: Sequence[Callable[[], Run]]) -> Iterator[list[Run]]:
    """Open several runs side by side, and finish them so: they wait no longer than one.

    Args:
        openers: each makes an `open_run`.

    Raises:
        UserError: as `open_run`.
    """
    runs: list[Run] = []  # as they open: a signal may raise before we are given them
    ended: BaseException | None = None

    def opened(opener: Callable[[], Run]) -> Run:
        run = opener()
        runs.append(run)
        return run

    pool = ThreadPoolExecutor(max(1, min(AT_ONCE, len(openers))))
    try:
        yield list(pool.map(opened, openers))
    except BaseException as error:
        ended = error
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        for run in runs:
            run.finish(_exit_code(ended))
        for run in runs:
            run.wait()


def check(tracking: TrackingConfig) -> None:
    """See that `tracking.mode=online` can be had.

    Raises:
        UserError: there is no key for the server, or it does not answer.
    """
    if _mode(tracking) == "online" and (why_not := why_offline()):
        raise UserError(
            f"tracking.mode=online, but {why_not}; run `wandb login`, or set tracking.mode=offline"
        )


def open_run(
    config: StudyConfig, job_type: str, name: str, folder: Path, step_metric: str | None = None
) -> Run:
    """Open a run of the group `config.name`; any number may be open at once.

    Args:
        config: the stage's; wandb's own files go to its `study_dir`, into the folder `wandb`.
        job_type: the stage.
        name: the run's name.
        folder: the job's; remembers the run, so that a job that goes on later does so in it.
        step_metric: the logged value that is the horizontal axis of all others.

    Raises:
        UserError: `tracking.mode` is online and there is no key or no server.
    """
    tracking, study_dir = config.tracking, Path(config.study_dir)
    id_file = folder / ID_FILE
    mode = _mode(tracking)
    if mode == "disabled":
        return Run(None, False, id_file)
    check(tracking)
    before = _remembered(id_file)
    identity: dict[str, Any] = {
        "id": before or secrets.token_hex(8),
        "project": tracking.project,
        "entity": tracking.entity,
        "tags": tracking.tags,
        "group": config.name,
        "job_type": job_type,
        "name": name,
        "config": asdict(config),
    }
    why_not = "tracking.mode=offline" if mode == "offline" else why_offline()
    if not why_not:
        try:
            resume = "allow" if before else None
            run = _open_online({**identity, "resume": resume}, study_dir, step_metric)
        except Exception as error:
            if mode == "online":
                raise UserError(f"wandb cannot open a run online: {one_line(error)}") from None
            why_not = _give_up(f"no run could be opened: {one_line(error)}")
            # to wandb the one that failed is in use as long as this process lives
            identity["id"] = secrets.token_hex(8)
        else:
            _remember(id_file, identity["id"])
            return Run(run, True, id_file)
    if mode == "auto":
        _say(
            logging.INFO,
            f"wandb: offline ({why_not}); to send the runs later: "
            f"wandb sync {_shown(study_dir / 'wandb')}",
        )
    with _harmless("open"):
        _remove_empty(study_dir, identity["id"])
        # so that `wandb sync` adds it to what the server has of the run by then
        run = _init("offline", {**identity, "resume": "allow"}, study_dir, step_metric)
        _remember(id_file, identity["id"])
        return Run(run, False, id_file)
    return Run(None, False, id_file)


def _remembered(id_file: Path) -> str | None:
    """The run that a job was logged to before, if it did not finish."""
    with suppress(OSError, ValueError):
        text = id_file.read_text(encoding="utf-8").strip()
        return text if re.fullmatch("[0-9a-f]{16}", text) else None
    return None


def _remember(id_file: Path, run_id: str) -> None:
    with _harmless("remember"):
        files.write_text(id_file, run_id + "\n")


def _remove_empty(study_dir: Path, run_id: str) -> None:
    """Remove parts that died before wandb wrote a record: they stop `wandb sync` of the others."""
    for file in study_dir.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"):
        if file.stat().st_size <= HEADER:
            shutil.rmtree(file.parent, ignore_errors=True)


def _open_online(identity: dict[str, Any], study_dir: Path, step_metric: str | None) -> Any:
    pattern = f"wandb/run-*-{identity['id']}"
    before = set(study_dir.glob(pattern))
    try:
        with _waiting:
            run = _init("online", identity, study_dir, step_metric)
    except Exception:
        for folder in set(study_dir.glob(pattern)) - before:  # an empty run, never to be sent
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return run


def _init(mode: str, identity: dict[str, Any], study_dir: Path, step_metric: str | None) -> Any:
    folder = study_dir.absolute() / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR"):  # else the user's home
        os.environ.setdefault(name, str(folder / ".cache"))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports on wandb itself, to its maker
    import wandb

    wandb.setup(wandb.Settings(silent=True))
    known = wandb.Settings.model_fields  # those that begin with x_ come and go
    settings = wandb.Settings(  # a fresh one each time, because init changes it
        mode=mode,
        root_dir=str(study_dir.absolute()),
        use_dot_wandb=False,
        silent=True,
        init_timeout=max(0.0, PATIENCE_S - _waiting.seconds) + GRACE_S,
        finish_timeout=FINISH_S if mode == "online" else 0,
        finish_timeout_raises=True,
        **{key: value for key, value in LIGHT.items() if key in known},
    )
    run = wandb.init(reinit="create_new", settings=settings, **identity)
    if step_metric is not None:
        run.define_metric(step_metric)
        run.define_metric("*", step_metric=step_metric)
    return run


def _mode(tracking: TrackingConfig) -> str:
    """The mode asked for; where that is auto, WANDB_MODE may ask for another one."""
    by_environment = {
        "online": "online",
        "run": "online",
        "offline": "offline",
        "dryrun": "offline",
        "disabled": "disabled",
    }
    if tracking.mode == "auto":
        return by_environment.get(os.environ.get("WANDB_MODE", ""), "auto")
    return tracking.mode


def _address() -> str:
    """The server's address, from where wandb looks for it."""
    settings = configparser.ConfigParser(interpolation=None)
    with suppress(configparser.Error, OSError):
        folder = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
        settings.read(folder / "settings")
    by_file = settings.get("default", "base_url", fallback="https://api.wandb.ai")
    return os.environ.get("WANDB_BASE_URL", by_file).rstrip("/")


def why_offline() -> str:
    """Why the server cannot be used, or "" if it can; asked once in a process."""
    address = _address()
    with _asking:
        if address not in _server:
            key = _key(address)
            _server[address] = _probe(address, key, PROBE_S) if key else f"no API key for {address}"
        elif not _server[address] and _waiting.seconds > PATIENCE_S:
            _give_up(f"{address} is too slow")
        return _server[address]


def _quick() -> bool:
    """Whether the server answers at once."""
    address = _address()
    with _asking:
        if not _server.get(address):
            key = _key(address) or ""
            if why_not := _probe(address, key, GRACE_S):
                _give_up(why_not)
        return not _server[address]


def _count_table(seconds: float) -> None:
    global _tables
    _tables += max(0.0, seconds - TABLE_S)


def _give_up(why: str) -> str:
    """Use the server no more in this process."""
    _server[_address()] = why
    return why


def _key(address: str) -> str | None:
    """The API key for the server, from where wandb looks for it."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    candidates = (Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser())
    named = os.environ.get("NETRC")
    for path in (Path(named).expanduser(),) if named else candidates:
        try:
            entry = netrc.netrc(path).authenticators(address.partition("://")[2].partition("/")[0])
        except (OSError, netrc.NetrcParseError):
            continue
        if entry:
            return entry[2]
    return None


def _probe(address: str, key: str, seconds: float) -> str:
    """Ask the server who we are; what speaks against using it, or ""."""
    import requests

    answer = [f"{address} does not answer"]

    def ask() -> None:
        try:
            response = requests.post(
                f"{address}/graphql",
                json={"query": "query Viewer { viewer { id } }"},
                auth=("api", key),
                timeout=seconds,
            )
        except requests.RequestException:
            return
        if response.status_code in (401, 403):
            answer[0] = f"{address} refuses the API key"
        elif not response.ok:
            answer[0] = f"{address} answers {response.status_code}"
        else:
            answer[0] = ""

    # in a thread, because the time limit does not hold for looking up the server's name
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0]


@contextmanager
def _harmless(action: str) -> Iterator[None]:
    """Turn an exception into one warning."""
    try:
        yield
    except Exception as error:
        _say(logging.WARNING, f"wandb: could not {action} a run: {one_line(error)}")


def _say(level: int, message: str) -> None:
    """Log a message once in a process."""
    with _lock:
        new = message not in _said
        _said.add(message)
    if new:
        log.log(level, message)


def _cell(value: Any) -> Any:
    """A value of numpy or pandas as Python's own, which is what wandb's tables take."""
    return value.item() if hasattr(value, "item") else value


def one_line(error: Exception) -> str:
    """An error's class and text."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _shown(path: Path) -> str:
    """A path as short as it can be typed here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
