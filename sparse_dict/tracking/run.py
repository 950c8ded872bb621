"""What a stage holds of a wandb run."""

import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sparse_dict.errors import with_class
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.storage import files
from sparse_dict.tracking import server

ID_FILE = "wandb_run_id.txt"  # in the job's folder until the run finishes well
KILLED = 255  # exit code that wandb gives a run that Ctrl-C has ended


class Run(AbstractContextManager["Run"]):
    """One run, or with `tracking.mode` disabled a thing that does nothing.

    As a context manager it finishes with exit code 0, on an exception with 1, or with `KILLED` if
    a signal has raised it.
    """

    def __init__(self, run: Any | None, online: bool, id_file: Path) -> None:
        self._run = run
        self._online = online
        self._id_file = id_file
        if run is not None:
            with server.harmless("remember"):
                files.write_text(id_file, f"{run.id}\n")

    def log(self, values: dict[str, float]) -> None:
        """Log one row; it should hold the step metric, if the run has one."""
        self._do("log to", lambda run: run.log(values))

    def summary(self, values: dict[str, Any]) -> None:
        """Set the run's end values."""
        self._do("write the summary of", lambda run: run.summary.update(values))

    def image(self, key: str, path: Path) -> None:
        """Log an image file."""
        self._do("log an image to", lambda run: run.log({key: _wandb().Image(str(path))}))

    def table(self, key: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Log a table; its cells are numbers, texts, truth values or None."""

        def log(run: Any) -> None:
            cells = [[_cell(value) for value in row] for row in rows]
            table = _wandb().Table(list(columns), cells, allow_mixed_types=True)
            with server.waiting(server.TABLE_S):
                if self._online and server.why_offline(again=True):
                    # A table is an artifact as well, about which wandb asks the server: for 20 s,
                    # and then it drops the table. One that is bound already is sent as a file only.
                    table.bind_to_run(run, key, run.step)
                run.log({key: table})

        self._do("log a table to", log)

    def _do(self, what: str, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            with server.harmless(what):
                action(self._run)

    def finish(self, exit_code: int = 0) -> None:
        """End the run; a second call does nothing."""
        run, self._run = self._run, None
        if run is None:
            return
        with server.harmless("finish"):
            try:
                run.finish(exit_code=exit_code)
            except Exception as error:
                if not self._online:
                    raise
                late = isinstance(error, TimeoutError)
                why = "it did not take everything in time" if late else with_class(error)
                server.give_up(f"a run could not be finished: {why}")
                server.say(
                    logging.WARNING,
                    f"the server is slow or gone ({why}); to send later what is missing: "
                    f"wandb sync --include-online {os.path.relpath(run.settings.wandb_dir)}",
                )
            else:
                if exit_code == 0:
                    self._id_file.unlink(missing_ok=True)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.finish(exit_code(error))


def exit_code(error: BaseException | None) -> int:
    """What a run ends with if `error` has ended it, or nothing has."""
    if error is None:
        return 0
    return KILLED if isinstance(error, KeyboardInterrupt | Interrupted) else 1


def _wandb() -> Any:
    """The client, which takes a second to import and is there if a run is."""
    return sys.modules["wandb"]


def _cell(value: Any) -> Any:
    """A value of numpy or pandas as Python's own, which is what wandb's tables take."""
    return value.item() if hasattr(value, "item") else value
