"""Whether wandb's server is used, how long it is waited for, and what is said of it.

A bad server costs a process at most 15 seconds more than a good one: `PROBE_S` for the first
question, `OPEN_S` for runs opened side by side, `FINISH_S` for their end. A server that has cost
more than `LIMIT_S` by the next runs is left alone: what follows is written offline.
"""

import base64
import functools
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparse_dict.errors import one_line
from sparse_dict.machine import network

PROBE_S = 3.0
OPEN_S = 6.0
FINISH_S = 4.0  # SIGTERM leaves us 10 in all
LIMIT_S = 2.0
GOOD_S = 1.0  # in which a good server opens or ends runs: does not count
ANSWER_S = 0.3  # the same for an answer
QUESTION = b'{"query": "query Viewer { viewer { id } }"}'

_lock = threading.RLock()  # one asks the server or says something, the others wait for it
_trouble: str | None = None  # why the server is not used; "": it is; None: nobody has asked yet
_waited = 0.0  # seconds beyond what a good server takes
_waiting, _since = 0, 0.0  # how many wait for it now, and since when


@contextmanager
def waiting(free: float = GOOD_S) -> Iterator[None]:
    """Count the seconds in which anybody waits for the server, beyond `free`."""
    global _waited, _waiting, _since
    with _lock:
        _since = _since if _waiting else time.monotonic()
        _waiting += 1
    try:
        yield
    finally:
        with _lock:
            _waiting -= 1
            if not _waiting:
                _waited += max(0.0, time.monotonic() - _since - free)


def why_offline(again: bool = False) -> str:
    """Why the server cannot be used, or "" if it can; it is asked once, or `again`."""
    global _trouble
    with _lock:
        if _trouble is None:
            _trouble = _ask(PROBE_S)
        elif not _trouble and _waited > LIMIT_S:
            _trouble = "the server is too slow"
        elif not _trouble and again:
            with waiting(ANSWER_S):
                _trouble = _ask(LIMIT_S)
        return _trouble


def give_up(why: str) -> str:
    """Use the server no more in this process; returns why."""
    global _trouble
    _trouble = why
    return why


def client() -> Any:
    """The wandb package, which reads no settings file of the current folder from then on.

    That may be a stranger's study, whose ``wandb/settings`` names the server that gets the key.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    # What is reported of errors is on wandb itself, to its maker.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    wandb.Settings.settings_workspace = property(lambda _: os.devnull)
    return wandb


def _ask(seconds: float) -> str:
    """Ask the server who we are; what speaks against using it, or ""."""
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
    status = network.status(f"{url}/graphql", seconds, headers, QUESTION)
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
        _log(level, f"wandb: {message}")


_log = functools.cache(logging.getLogger("sparse_dict.tracking").log)
