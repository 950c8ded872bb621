"""Data sets of the Hugging Face hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from sparse_dict.config import HubData
from sparse_dict.errors import UserError, one_line
from sparse_dict.machine.network import reachable
from sparse_dict.text.files import no_column

log = logging.getLogger(__name__)

INSTEAD = "use data=docstrings, or data=files data.files=... with a copy of your own"


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


def describe(data: HubData) -> dict[str, Any]:
    """Where the data set comes from. Streaming or not gives the same documents."""
    check(data)
    keys = ("path", "name", "revision", "split", "text_column", "max_documents")
    return {"kind": "hub", **{key: getattr(data, key) for key in keys}}


def documents(data: HubData, _cache_dir: Path) -> Iterator[str]:
    """The documents in the data set's order.

    Raises:
        UserError: no network and no local copy, or no such data set, split or column.
    """
    check(data)
    dataset = _open(data)
    column = data.text_column
    if dataset.column_names is not None:  # a stream may not know them
        if column not in dataset.column_names:
            raise UserError(f"{data.path}: {no_column(column, dataset.column_names)}")
        dataset = dataset.select_columns(column)
    try:
        for row in islice(dataset, data.max_documents):
            if column not in row:
                raise UserError(f"{data.path}: {no_column(column, row)}")
            text = row[column]
            if text is None:
                continue
            if not isinstance(text, str):
                raise UserError(f"{data.path}: {column} is {type(text).__name__}, not text")
            yield text
    except UserError:
        raise
    except Exception as error:  # whatever the hub's client and its file formats raise
        raise UserError(f"{data.path}: reading broke off: {one_line(error)}") from None


def _open(data: HubData) -> Any:
    """The data set, a stream if `data.streaming`; from the local cache if there is no network."""
    import datasets

    endpoint = datasets.config.HF_ENDPOINT
    local = Path(data.path).expanduser().is_dir()
    online = local or (not datasets.config.HF_HUB_OFFLINE and reachable(endpoint))
    where = {"name": data.name, "revision": data.revision, "split": data.split}
    try:
        if online:
            return datasets.load_dataset(data.path, streaming=data.streaming, **where)
        with _offline():
            dataset = datasets.load_dataset(data.path, **where)
    except Exception as error:  # the client raises anything from ValueError to RuntimeError
        if not online and isinstance(error, OSError):
            why = "offline mode is on" if datasets.config.HF_HUB_OFFLINE else "there is no network"
            raise UserError(
                f"{data.path} cannot be fetched from {endpoint}: {why}, and it is not in the "
                f"local cache; {INSTEAD}"
            ) from None
        raise UserError(f"{data.path}: {one_line(error)}") from None
    log.info("%s: no network, reading the local copy", data.path)
    return dataset


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
