"""Data sets of the Hugging Face hub: a data set is looked up once, and one commit of it is read."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sparse_dict.config import HubData
from sparse_dict.errors import UserError, one_line
from sparse_dict.machine import distributed
from sparse_dict.machine.background import in_background
from sparse_dict.machine.network import status
from sparse_dict.storage import door, files
from sparse_dict.text.files import no_column, text_of

log = logging.getLogger(__name__)

T = TypeVar("T")

INSTEAD = "use data=docstrings, or data=files data.files=... with a copy of your own"
CONVERTED = "refs/convert/parquet"  # the branch to which the hub converts a data set by itself
ANSWER_S = 15.0  # within which a hub answers its first request
PATIENCE_S = 600.0  # for a hub that asks us to wait
BUSY = (429, 503)


def check(data: HubData) -> None:
    """Quick test of the config; does not ask the network.

    Raises:
        UserError: the path is empty, or `max_documents` is not positive.
    """
    if not data.path:
        raise UserError("data.path is empty: give a data set of the hub, e.g. NeelNanda/pile-10k")
    if data.max_documents is not None and data.max_documents < 1:
        raise UserError(
            f"data.max_documents must be positive, or null for all, not {data.max_documents}"
        )


def describe(data: HubData, cache_dir: Path) -> dict[str, Any]:
    """Where the data set comes from. Streaming or not gives the same documents.

    Raises:
        UserError: there is no such data set, or it cannot be read.
    """
    check(data)
    keys = ("path", "name", "revision", "split", "text_column", "max_documents")
    described = {"kind": "hub", **{key: getattr(data, key) for key in keys}}
    commit = _commit(data, cache_dir)
    return described | ({"commit": commit} if commit else {})


def documents(data: HubData, cache_dir: Path, state: dict[str, Any] | None = None) -> "Stream":
    """The documents in the data set's order, or those behind `state`.

    Raises:
        UserError: no network and no local copy, or no such data set, split or column.
    """
    check(data)
    return Stream(data, _open(data, _commit(data, cache_dir)), state)


class Stream:
    """The documents of an opened data set.

    Raises:
        UserError: while iterating, if there is no such column or reading breaks off.
    """

    def __init__(self, data: HubData, dataset: Any, state: dict[str, Any] | None) -> None:
        column = data.text_column
        if dataset.column_names is not None:  # a stream may not know them
            if column not in dataset.column_names:
                raise UserError(f"{data.path}: {no_column(column, dataset.column_names)}")
            dataset = dataset.select_columns(column)
        if state:
            dataset.load_state_dict(state["dataset"])
        self._data = data
        self._dataset = dataset
        self._taken = state["taken"] if state else 0

    def __iter__(self) -> Iterator[str]:
        data, column = self._data, self._data.text_column
        left = None if data.max_documents is None else data.max_documents - self._taken
        try:
            for row in islice(self._dataset, left):
                self._taken += 1
                if (text := text_of(row, column, data.path)) is not None:
                    yield text
        except UserError:
            raise
        except Exception as error:  # whatever the hub's client and its file formats raise
            raise UserError(
                f"{data.path}: reading broke off behind {self._taken:,} documents "
                f"({one_line(error)}): the same command goes on"
            ) from None

    def state(self) -> dict[str, Any] | None:
        """Where it is; None of a data set that was downloaded as a whole."""
        if not hasattr(self._dataset, "state_dict"):
            return None
        return {"taken": self._taken, "dataset": self._dataset.state_dict()}


def _commit(data: HubData, cache_dir: Path) -> str | None:
    """The commit that is read: looked up once, and from then on what was noted in `cache_dir`.

    None of a local folder, and where there is neither a note nor a network.
    """
    import datasets

    if Path(data.path).expanduser().is_dir():
        return None
    asked = [datasets.config.HF_ENDPOINT, data.path, data.revision]
    path = cache_dir / "hub" / f"{files.fingerprint(asked)}.json"
    if path.exists():
        return str(door.checked(files.read_json(path), path, {"commit": door.text})["commit"])
    if not _online():
        return None
    commit = _patiently(data, lambda: _looked_up(data))
    note = {"endpoint": asked[0], "path": asked[1], "revision": asked[2], "commit": commit}
    if distributed.main():
        files.write_json(path, note)
    log.info("%s: commit %s, noted in %s", data.path, commit, path)
    return commit


def _looked_up(data: HubData) -> str:
    """The commit of the revision that is asked for, or of one that can be read in its place.

    `datasets` no longer runs the script that some data sets have on their main branch.
    """
    import datasets
    import huggingface_hub
    from huggingface_hub.errors import RevisionNotFoundError

    api = huggingface_hub.HfApi(datasets.config.HF_ENDPOINT)
    try:
        info = api.dataset_info(data.path, revision=data.revision)
    except RevisionNotFoundError:
        if data.revision != CONVERTED:
            raise
        info = api.dataset_info(data.path)
    names = {file.rfilename for file in info.siblings or ()}
    if f"{data.path.rpartition('/')[2]}.py" in names:
        try:
            info = api.dataset_info(data.path, revision=CONVERTED)
        except RevisionNotFoundError:
            raise UserError(
                f"{data.path} is a script, which datasets does not run, and the hub has not "
                f"converted it to Parquet; {INSTEAD}"
            ) from None
    return str(info.sha)


def _open(data: HubData, commit: str | None) -> Any:
    """The data set, a stream if `data.streaming`; from the local cache if there is no network."""
    import datasets

    local = Path(data.path).expanduser().is_dir()
    where = {"name": data.name, "revision": commit or data.revision, "split": data.split}
    if local or _online():
        streaming = data.streaming
        return _patiently(
            data, lambda: datasets.load_dataset(data.path, streaming=streaming, **where)
        )
    try:
        with _offline():
            dataset = datasets.load_dataset(data.path, **where)
    except OSError:
        why = "offline mode is on" if datasets.config.HF_HUB_OFFLINE else "there is no network"
        raise UserError(
            f"{data.path} cannot be fetched from {datasets.config.HF_ENDPOINT}: {why}, and it is "
            f"not in the local cache; {INSTEAD}"
        ) from None
    except Exception as error:  # the client raises anything from ValueError to RuntimeError
        raise UserError(f"{data.path}: {one_line(error)}") from None
    log.info("%s: no network, reading the local copy", data.path)
    return dataset


def _online() -> bool:
    import datasets

    endpoint = datasets.config.HF_ENDPOINT
    return not datasets.config.HF_HUB_OFFLINE and status(endpoint, ANSWER_S) is not None


def _patiently(data: HubData, call: Callable[[], T]) -> T:
    """`call()`, again and again while the hub asks us to wait.

    Raises:
        UserError: it does so for more than `PATIENCE_S`, or `call` fails otherwise.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return in_background(call)
        except UserError:
            raise
        except Exception as error:  # the client raises anything from ValueError to RuntimeError
            response = _response(error)
            code = getattr(response, "status_code", None)
            if code in (401, 403) or type(error).__name__ == "GatedRepoError":
                raise UserError(
                    f"{data.path}: the hub has no such data set, or only for those who accepted "
                    f"its terms there and ran `hf auth login` ({one_line(error, 100)})"
                ) from None
            asked = getattr(response, "headers", {}).get("Retry-After", "")
            seconds = float(asked) if asked.isdecimal() else 10.0
            if code not in BUSY or time.monotonic() + seconds > deadline:
                raise UserError(f"{data.path}: {one_line(error)}") from None
            log.info("%s: the hub asks to wait %.0f s (HTTP %d)", data.path, seconds, code)
            time.sleep(seconds)


def _response(error: BaseException | None) -> Any:
    """The HTTP response that an error of the hub's client, or one of its causes, came from."""
    while error is not None:
        if (response := getattr(error, "response", None)) is not None:
            return response
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the hub's client from trying the network, which takes it half a minute."""
    import datasets
    import huggingface_hub

    modules: tuple[Any, ...] = (datasets.config, huggingface_hub.constants)
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value
