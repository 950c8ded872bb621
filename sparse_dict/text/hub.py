"""Data sets of the Hugging Face hub: a data set is looked up once, and one commit of it is read."""

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from typing_extensions import TypedDict

from sparse_dict.config import HubData
from sparse_dict.errors import UserError, one_line
from sparse_dict.machine import distributed
from sparse_dict.machine.background import in_background, reachable
from sparse_dict.storage import files, records
from sparse_dict.text.files import no_column, text_of

log = logging.getLogger(__name__)

INSTEAD = "use data=docstrings, or data=files data.files=... with a copy of your own"
CONVERTED = "refs/convert/parquet"  # the branch to which the hub converts a data set by itself
ANSWER_S = 15.0  # within which a hub answers its first request


class _Note(TypedDict):  # which commit a name stood for when it was first looked up
    commit: records.Line


def check(data: HubData) -> None:
    """Quick test of the config; does not ask the network."""
    if not data.path:
        raise UserError("data.path is empty: give a data set of the hub, e.g. NeelNanda/pile-10k")


def describe(data: HubData, cache_dir: Path) -> dict[str, Any]:
    """Where the data set comes from. Streaming or not gives the same documents."""
    keys = ("path", "name", "revision", "split", "text_column", "max_documents")
    described = {"kind": "hub", **{key: getattr(data, key) for key in keys}}
    commit = _commit(data, cache_dir)
    return described | ({"commit": commit} if commit else {})


class Stream:
    """The documents in the data set's order, or those behind `state`."""

    def __init__(self, data: HubData, cache_dir: Path, state: dict[str, Any] | None = None) -> None:
        dataset, column = _open(data, _commit(data, cache_dir)), data.text_column
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


documents = Stream


def _commit(data: HubData, cache_dir: Path) -> str | None:
    """The commit that is read: looked up once, and from then on what was noted in `cache_dir`.

    None of a local folder, and where there is neither a note nor a network.
    """
    if _local(data):
        return None
    asked = [_endpoint(), data.path, data.revision]
    path = cache_dir / "hub" / f"{files.fingerprint(asked)}.json"
    if path.exists():
        return records.read(path, _Note)["commit"]
    if not _online():
        return None
    try:
        commit = in_background(lambda: _looked_up(data))
    except Exception as error:
        raise UserError(f"{data.path}: {one_line(error)}") from None
    note = {"endpoint": asked[0], "path": asked[1], "revision": asked[2], "commit": commit}
    if distributed.main():
        files.write_json(path, note)
    log.info("%s: commit %s, noted in %s", data.path, commit, path)
    return commit


def _looked_up(data: HubData) -> str:
    from huggingface_hub.errors import RevisionNotFoundError
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

    def look_up(revision: str | None) -> dict[str, Any]:
        at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
        url = f"{_endpoint()}/api/datasets/{data.path}{at}"
        # as HfApi.dataset_info asks, which does not wait where the hub says so
        answer = http_backoff("GET", url, headers=build_hf_headers(), timeout=ANSWER_S)
        hf_raise_for_status(answer)
        return answer.json()

    try:
        info = look_up(data.revision)
    except RevisionNotFoundError:
        if data.revision != CONVERTED:
            raise
        info = look_up(None)
    names = {file["rfilename"] for file in info.get("siblings") or ()}
    if f"{data.path.rpartition('/')[2]}.py" in names:
        info = look_up(CONVERTED)  # which datasets does not run
    return str(info["sha"])


def _open(data: HubData, commit: str | None) -> Any:
    import datasets
    from huggingface_hub import constants

    reached = _local(data) or _online()
    where = {"name": data.name, "revision": commit or data.revision, "split": data.split}
    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not reached:  # the client would try for half a minute
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        return in_background(
            lambda: datasets.load_dataset(data.path, streaming=data.streaming and reached, **where)
        )
    except Exception as error:
        if reached or not isinstance(error, OSError):
            raise UserError(f"{data.path}: {one_line(error)}") from None
        why = "offline mode is on" if before[0] else "there is no network"
        raise UserError(
            f"{data.path} cannot be fetched: {why}, and it is not in the local cache; {INSTEAD}"
        ) from None
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _local(data: HubData) -> bool:
    return Path(data.path).expanduser().is_dir()


def _endpoint() -> str:
    import datasets

    return str(datasets.config.HF_ENDPOINT)


def _online() -> bool:
    import datasets

    return not datasets.config.HF_HUB_OFFLINE and reachable(_endpoint(), ANSWER_S)
