"""Weights & Biases: one run for each job, online where that works, offline where it does not.

Tracking never stops a training run: trouble with wandb becomes a warning, said once. A server that
is slow or gone costs seconds, and what it did not take stays in ``<study_dir>/wandb``.
"""

import configparser
import logging
import netrc
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sparse_dict import files
from sparse_dict.config import TrackingConfig
from sparse_dict.errors import UserError

log = logging.getLogger(__name__)

PROBE_S = 3.0  # how long the server may take to say that it is there
INIT_S = 8.0  # how long it may take to accept a run
FINISH_S = 6.0  # how long it may take to accept the rest of a run
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
_said: set[str] = set()
_server: dict[str, str] = {}  # by address: why it cannot be used, or "" if it can
_lost = threading.Event()  # the server stopped taking data


class Run:
    """One run, or with `tracking.mode` disabled a thing that does nothing.

    As a context manager it finishes with exit code 0, or with 1 on an exception.
    """

    def __init__(self, run: Any | None, online: bool, id_file: Path) -> None:
        self._run = run
        self._online = online
        self._id_file = id_file

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

    def finish(self, exit_code: int = 0) -> None:
        """End the run; a second call does nothing.

        Once a server is lost, the runs that follow are finished in the background, all at a time.
        """
        run, self._run = self._run, None
        if run is None:
            return
        with _harmless("finish"):
            if not self._online:
                run.finish(exit_code=exit_code)
                return
            thread = threading.Thread(target=self._finish_online, args=(run, exit_code))
            thread.start()
            while thread.is_alive() and not _lost.is_set():
                thread.join(0.05)

    def _finish_online(self, run: Any, exit_code: int) -> None:
        with _harmless("finish"):
            try:
                run.finish(exit_code=exit_code)
            except TimeoutError:
                _lost.set()
                folder = Path(run.settings.wandb_dir)
                _say(
                    logging.WARNING,
                    "wandb: the server did not take everything in time; to send it later: "
                    f"wandb sync --include-online {_shown(folder)}/run-*",
                )
                return
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
        self.finish(0 if kind is None else 1)


def check(tracking: TrackingConfig) -> None:
    """See that `tracking.mode=online` can be had.

    Raises:
        UserError: there is no key for the server, or it does not answer.
    """
    if _mode(tracking) == "online" and (why_not := _why_offline()):
        raise UserError(
            f"tracking.mode=online, but {why_not}; run `wandb login`, or set tracking.mode=offline"
        )


def open_run(
    tracking: TrackingConfig,
    *,
    study_dir: str | Path,
    group: str,
    job_type: str,
    name: str,
    config: dict[str, Any],
    folder: Path,
    step_metric: str | None = None,
) -> Run:
    """Open a run; any number may be open at once.

    Args:
        tracking: the config's section.
        study_dir: wandb's own files go to its folder `wandb`.
        group: the study, or what else the runs to be compared have in common.
        job_type: the stage.
        name: the run's name.
        config: the resolved config, as plain containers.
        folder: the job's; remembers the run, so that a job that goes on later does so in it.
        step_metric: the logged value that is the horizontal axis of all others.

    Raises:
        UserError: `tracking.mode` is online and there is no key or no server.
    """
    id_file = folder / ID_FILE
    mode = _mode(tracking)
    if mode == "disabled":
        return Run(None, False, id_file)
    check(tracking)
    identity = {
        "project": tracking.project,
        "entity": tracking.entity,
        "tags": tracking.tags,
        "group": group,
        "job_type": job_type,
        "name": name,
        "config": config,
    }
    study_dir = Path(study_dir)
    why_offline = "tracking.mode=offline" if mode == "offline" else _why_offline()
    if not why_offline:
        try:
            return Run(_open_online(identity, study_dir, id_file, step_metric), True, id_file)
        except Exception as error:
            if mode == "online":
                raise UserError(f"wandb cannot open a run online: {_one_line(error)}") from None
            why_offline = _server[_address()] = f"no run could be opened: {_one_line(error)}"
    if mode == "auto":
        _say(
            logging.INFO,
            f"wandb: offline ({why_offline}); to send the runs later: "
            f"wandb sync {_shown(study_dir / 'wandb')}/offline-run-*",
        )
    with _harmless("open"):
        return Run(_init("offline", identity, study_dir, step_metric), False, id_file)
    return Run(None, False, id_file)


def _open_online(
    identity: dict[str, Any], study_dir: Path, id_file: Path, step_metric: str | None
) -> Any:
    resume = id_file.is_file()
    run_id = id_file.read_text(encoding="utf-8").strip() if resume else secrets.token_hex(8)
    identity = {**identity, "id": run_id, "resume": "allow" if resume else None}
    run = _init("online", identity, study_dir, step_metric)
    if not resume:
        files.write_text(id_file, run_id + "\n")
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
        init_timeout=INIT_S,
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


def _why_offline() -> str:
    """Why the server cannot be used, or "" if it can; asked once in a process."""
    address = _address()
    with _lock:
        if address not in _server:
            key = _key(address)
            _server[address] = _probe(address, key) if key else f"no API key for {address}"
        return _server[address]


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


def _probe(address: str, key: str) -> str:
    """Ask the server who we are; what speaks against using it, or ""."""
    import requests

    answer = [f"{address} does not answer"]

    def ask() -> None:
        try:
            response = requests.post(
                f"{address}/graphql",
                json={"query": "query Viewer { viewer { id } }"},
                auth=("api", key),
                timeout=PROBE_S,
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
    thread.join(PROBE_S)
    return answer[0]


@contextmanager
def _harmless(action: str) -> Iterator[None]:
    """Turn an exception into one warning."""
    try:
        yield
    except Exception as error:
        _say(logging.WARNING, f"wandb: could not {action} a run: {_one_line(error)}")


def _say(level: int, message: str) -> None:
    """Log a message once in a process."""
    with _lock:
        new = message not in _said
        _said.add(message)
    if new:
        log.log(level, message)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _shown(path: Path) -> str:
    """A path as short as it can be typed here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
