"""`python -m sparse_dict.status outputs/NAME`: which stages of a study are done.

Reads only; works beside running stages and on studies that are half made.
"""

import argparse
import os
import re
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_dict.activations import store
from sparse_dict.analysis import stage as analysis_stage
from sparse_dict.analysis import study
from sparse_dict.errors import UserError, printable, reading
from sparse_dict.lm import folder as lm_folder
from sparse_dict.sae import folder as sae_folder
from sparse_dict.storage import lock
from sparse_dict.storage.untrusted import opened
from sparse_dict.tools import ending

SHOWN = 20  # dictionaries that are not done
WIDTH = 100  # characters of a log's last record that are shown
RECORD = re.compile(r"\[[^]]*\]\[[^]]*\]\[(?P<level>[A-Z]+)\] - (?P<text>.*)")
TAIL = 1 << 16  # bytes of a log that are read
PAGES = ("report", "features")  # of an analysis


@dataclass
class Row:
    """One line of the table."""

    name: str
    state: str  # done | running | interrupted | failed | damaged | not started
    seconds: float | None
    text: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0 unless there is no such folder."""
    parser = argparse.ArgumentParser("python -m sparse_dict.status", description="how far it is")
    parser.add_argument("study", type=Path, help="a study's folder, such as outputs/demo")
    folder = parser.parse_args(argv).study
    if not folder.is_dir():
        parser.error(f"{folder} is not a folder")
    sys.stdout.write(table(folder))
    return 0


def table(folder: Path) -> str:
    """The whole answer, ending with a newline."""
    rows = [
        _row("train_lm", folder / "lm", lm_folder.RECORD, _lm),
        _row("harvest", folder / "activations", store.MANIFEST, _activations),
        *_dictionaries(folder / "sae"),
        _row("analyze", made := folder / "analysis", analysis_stage.MANIFEST, _analysis),
    ]
    cells = [("stage", "state", "time", ""), *((r.name, r.state, _time(r), r.text) for r in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(3)]
    lines = [
        f"{name:<{widths[0]}}  {state:<{widths[1]}}  {seconds:>{widths[2]}}  {text}".rstrip()
        for name, state, seconds, text in cells
    ]
    n = len([*made.glob("*.png")])
    pages = [f"{name}: {made}/{name}.html" for name in PAGES if (made / f"{name}.html").exists()]
    pictures = f"pictures: {made}/*.png ({n})" if n else "pictures: none yet"
    return "\n".join(map(printable, [f"study {folder}", "", *lines, "", pictures, *pages, ""]))


def _row(name: str, folder: Path, manifest: str, finished: Any) -> Row:
    """The row of a stage with one folder; `finished(folder)` returns its seconds and its text."""
    level, text = _last(folder)
    if holder := lock.holder(folder):
        started = _started(folder)
        seconds = None if started is None else max(0.0, time.time() - started)
        return Row(name, "running", seconds, f"{holder}: {text}")
    if (folder / manifest).exists():
        try:
            with reading(folder / manifest):
                return Row(name, "done", *finished(folder))
        except UserError as error:
            return Row(name, "damaged", None, str(error))
    if not folder.is_dir():
        return Row(name, "not started", None, "")
    kept = _kept(folder)
    if level in ("ERROR", "CRITICAL") and not text.startswith("stopped "):
        return Row(name, "failed", None, "; ".join(filter(None, (text, kept))))
    if kept or text or any(folder.iterdir()):
        return Row(name, "interrupted", None, kept or "nothing to go on from: it starts afresh")
    return Row(name, "not started", None, "")


def _kept(folder: Path) -> str:
    """What an unfinished stage left to go on from."""
    if (folder / lm_folder.CHECKPOINT).exists():
        return f"checkpoint in {folder / lm_folder.CHECKPOINT.parent}"
    try:
        meta = sae_folder.read_checkpoint_meta(folder)
    except UserError as error:
        return str(error)
    return f"checkpoint of step {meta['step']:,}" if meta else ""


def _lm(folder: Path) -> tuple[float, str]:
    record = lm_folder.read_record(folder)
    losses, steps = record["losses"], record["steps"]
    return float(record["seconds"]), f"{steps:,} steps, validation loss {losses['val_loss']:.3f}"


def _activations(folder: Path) -> tuple[float | None, str]:
    opened = store.Activations.open(folder)
    started, ended = _started(folder), (folder / store.MANIFEST).stat().st_mtime
    # a start after the end is that of a later command, which found everything there
    seconds = ended - started if started is not None and started <= ended else None
    return seconds, f"{opened.rows:,} rows of {opened.d_in}, {len(opened.shards)} shards"


def _analysis(folder: Path) -> tuple[float, str]:
    record = analysis_stage.read_record(folder)
    text = f"{len(record['dictionaries'])} dictionaries compared"
    if record["left_out"]:
        text += f", {len(record['left_out'])} left out"
    return float(record["seconds"]), text


def _dictionaries(sae_dir: Path) -> Iterator[Row]:
    """One row for all, and one for each that is not done."""
    done, others = study.folders(sae_dir)
    seconds, rows = 0.0, []
    for path in done:
        try:
            metrics = sae_folder.read_metrics(path)
            # trained in one pass, they took that time together
            seconds += (metrics.get("seconds") or 0) / max(1, metrics.get("trained_together") or 1)
        except UserError as error:
            rows.append(Row(f"  {path.name}", "damaged", None, str(error)))
    rows += [_row(f"  {path.name}", path, sae_folder.METRICS, None) for path in others]
    states = [row.state for row in rows]
    whole, every = len(done) - states.count("damaged"), len(done) + len(others)
    usual = "done" if done else "not started"
    worst = (s for s in ("running", "failed", "interrupted", "damaged") if s in states)
    text = f"{whole} of {every} dictionaries" if every else ""
    yield Row("train_sae", next(worst, usual), seconds if done else None, text)
    yield from rows[:SHOWN]
    if len(rows) > SHOWN:
        yield Row(f"  and {len(rows) - SHOWN} more", "", None, "")


def _last(folder: Path) -> tuple[str, str]:
    """Level and text of the last record in a folder's log."""
    level, text = "", ""
    for path in sorted(folder.glob("*.log")):
        with suppress(UserError), opened(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            for match in RECORD.finditer(file.read().decode(errors="replace")):
                level, text = match["level"], match["text"].strip()
    return level, textwrap.shorten(text, WIDTH, placeholder="...")


def _started(folder: Path) -> float | None:
    """When the last command began: Hydra writes the config first."""
    with suppress(OSError):
        return (folder / ".hydra" / "config.yaml").stat().st_mtime
    return None


def _time(row: Row) -> str:
    if row.seconds is None or not 0 <= row.seconds < 1e9:
        return ""
    minutes, seconds = divmod(round(row.seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {seconds:02} s" if minutes else f"{seconds or '< 1'} s"


if __name__ == "__main__":
    ending(main)
