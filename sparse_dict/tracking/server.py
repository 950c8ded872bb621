"""Whether wandb's server is used: it is asked once, and left alone once it was slow or gone.

wandb's own time limits bound what a bad server costs a command: `PROBE_S` for the first question,
and then `LIMITS`, for runs that are opened and finished side by side.
"""

import base64
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparse_dict.errors import one_line
from sparse_dict.machine import background

PROBE_S = 5.0
SLOW_S = 8.0  # for opening runs: what follows is written offline
LIMITS = {
    "init_timeout": 15.0,
    "finish_timeout": 4.0,  # SIGTERM leaves us 10 in all
    # The end of a run waits for its artifacts (a table is one) beyond that, for as long as these
    # are tried again.
    "x_graphql_timeout_seconds": 4.0,
    "x_graphql_retry_max": 2,
    "x_graphql_retry_wait_max_seconds": 2.0,
}
QUESTION = b'{"query": "query Viewer { viewer { id } }"}'

_lock = threading.RLock()  # one asks the server or says something, the others wait for it
_trouble: str | None = None  # why the server is not used; "": it is; None: nobody has asked yet
_said: set[str] = set()


def why_offline() -> str:
    """Why the server cannot be used, or "" if it can."""
    with _lock:
        return give_up(_ask()) if _trouble is None else _trouble


def give_up(why: str) -> str:
    """Use the server no more in this process; returns why."""
    global _trouble
    _trouble = why
    return why


def client() -> Any:
    """The wandb package."""
    os.environ.setdefault("WANDB_SILENT", "true")
    # What is reported of errors is on wandb itself, to its maker.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def prepare_cache() -> None:
    """Let wandb make its cache now: it starts a process for it, which Ctrl-C does not reach so."""
    from wandb.sdk.artifacts import artifact_file_cache

    with _lock:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            artifact_file_cache.get_artifact_file_cache()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask() -> str:
    for name in ("wandb", ".wandb"):
        if (file := Path(name, "settings")).exists():  # a stranger's study may name its own server
            return f"{file} of this folder says which server gets the API key: remove it"
    try:
        client()
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib import wbauth

        url = wandb_setup.singleton().settings.base_url  # wandb.setup would start its service
        key = wbauth.authenticate_session(host=url, source="", prompt=False, update_session=False)
    except Exception as error:  # a key that cannot be one, say
        return one_line(error, named=True)
    if key is None:
        return f"no API key for {url}"
    code = base64.b64encode(f"api:{getattr(key, 'api_key', '')}".encode()).decode()
    headers = {"Authorization": f"Basic {code}", "Content-Type": "application/json"}
    status = background.status(f"{url}/graphql", PROBE_S, headers, QUESTION)
    if status in (401, 403) and hasattr(key, "api_key"):  # other credentials are not tried
        return f"{url} refuses the API key"
    if status is None or status >= 500:
        return f"{url} answers {status}" if status else f"{url} does not answer"
    return ""


@contextmanager
def harmless(action: str) -> Iterator[None]:
    """Turn an exception into one warning."""
    try:
        yield
    except Exception as error:
        say(logging.WARNING, f"could not {action} a run: {one_line(error, named=True)}")


def say(level: int, message: str) -> None:
    """Log a message once in a process."""
    with _lock:
        if message not in _said:
            _said.add(message)
            logging.getLogger("sparse_dict.tracking").log(level, "wandb: %s", message)
