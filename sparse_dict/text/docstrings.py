"""The docstrings of installed libraries, read from their source without importing them."""

import difflib
import gc
import hashlib
import json
import logging
import multiprocessing
import re
import sys
import time
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from itertools import repeat
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from sparse_dict.config import DocstringsData
from sparse_dict.errors import UserError
from sparse_dict.machine import interrupt
from sparse_dict.machine.progress import Progress
from sparse_dict.machine.threads import available_cores
from sparse_dict.storage import files as whole_files
from sparse_dict.storage.cache import ensure_sealed
from sparse_dict.text.cleaning import unique
from sparse_dict.text.extract import extract
from sparse_dict.text.files import read_jsonl

log = logging.getLogger(__name__)

PROJECT = "sparse-dict"
RULES = 1  # increased when the same packages give other text
FILES_A_TASK = 100


def check(data: DocstringsData) -> None:
    """Quick test of the config."""
    if data.packages is None:
        return
    if not data.packages:
        raise UserError("data.packages is empty: name a library, or set it to null for all")
    installed = _providers()
    for name in data.packages:
        if name not in installed:
            near = difflib.get_close_matches(name, installed, n=1)
            hint = f"did you mean {near[0]}?" if near else "give import names, such as sklearn"
            raise UserError(f"data.packages: no library {name!r} is installed; {hint}")


def describe(data: DocstringsData, _cache_dir: Path) -> dict[str, Any]:
    """What decides the text: package versions, the Python that parses them, and the rules."""
    check(data)
    return {
        "kind": "docstrings",
        "rules": RULES,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "packages": None if data.packages is None else sorted(set(data.packages)),
        "versions": {name: dist.version for name, dist in _chosen(data).items()},
        "min_chars": data.min_chars,
    }


def documents(data: DocstringsData, cache_dir: Path) -> Iterator[str]:
    """The docstrings in an order that is random but fixed; extracted once, then cached."""
    folder = cache_dir / "corpus" / whole_files.fingerprint(describe(data, cache_dir))

    def make(fresh: Path) -> None:
        started = time.monotonic()
        texts = _extract(data)
        lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        whole_files.write_text(fresh / "documents.jsonl", "".join(lines))
        log.info("docstrings: %s documents, %.0f s", len(texts), time.monotonic() - started)

    ensure_sealed(folder, make)
    return read_jsonl(folder / "documents.jsonl", "text")


def _extract(data: DocstringsData) -> list[str]:
    paths = _sources(data)
    tasks = [paths[i : i + FILES_A_TASK] for i in range(0, len(paths), FILES_A_TASK)]
    workers = max(1, min(available_cores(), len(tasks)))
    found: list[str] = []
    # Spawned, since a fork of a process with threads may hang. Syntax trees have no cycles, and
    # without the collector they are built a quarter faster.
    spawn = multiprocessing.get_context("spawn")
    with (
        Progress("extract docstrings", len(paths), "files") as progress,
        ProcessPoolExecutor(workers, spawn, initializer=gc.disable) as pool,
    ):
        resource_tracker.ensure_running()  # now, because its start unblocks the signal
        with interrupt.not_heard():
            extracted = pool.map(extract, tasks, repeat(data.min_chars))
        for task, texts in zip(tasks, extracted, strict=True):
            found += texts
            progress.advance(len(task))
    return sorted(
        unique(found, array("Q")), key=lambda text: hashlib.blake2b(text.encode()).digest()
    )


def _sources(data: DocstringsData) -> list[str]:
    wanted = None if data.packages is None else set(data.packages)
    paths = set()
    for dist in _chosen(data).values():
        for file in dist.files or ():
            inside = file.parts[0] != ".."  # scripts are installed elsewhere
            if file.suffix == ".py" and inside:
                top = file.parts[0].removesuffix(".py")
                if wanted is None or top in wanted:
                    paths.add(str(dist.locate_file(file)))
    return sorted(paths)


def _chosen(data: DocstringsData) -> dict[str, metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    for dist in metadata.distributions():
        if name := dist.metadata["Name"]:
            found.setdefault(_normalised(name), dist)  # the first on sys.path is what is imported
    found.pop(PROJECT, None)
    wanted = {*found}
    if data.packages is not None:
        providers = _providers()
        wanted = {name for package in data.packages for name in providers[package]}
    return {name: found[name] for name in sorted(wanted & {*found})}


def _providers() -> dict[str, list[str]]:
    provided = {
        package: [name for name in map(_normalised, names) if name != PROJECT]
        for package, names in metadata.packages_distributions().items()
    }
    return {package: names for package, names in provided.items() if names}


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
