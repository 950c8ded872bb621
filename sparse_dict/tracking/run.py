"""What a stage holds of a wandb run."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from sparse_dict.config.ranges import shortened
from sparse_dict.errors import one_line
from sparse_dict.machine.interrupt import Interrupted
from sparse_dict.storage import files
from sparse_dict.tracking import server

ID_FILE = "wandb_run_id.txt"  # in the job's folder: the run's id, and DONE once it finished well
DONE = " finished"
NAME_BYTES = 128  # of the name of a run, a group or an artifact, which servers take
KILLED = 255  # exit code that wandb gives a run that Ctrl-C has ended


class Run(AbstractContextManager["Run"]):
    """One run, or with no `run` a thing that does nothing.

    As a context manager it finishes with exit code 0, 1 on an exception, `KILLED` on a signal's.
    """

    def __init__(
        self, run: Any | None = None, online: bool = False, id_file: Path | None = None
    ) -> None:
        self._run = run
        self.online = online
        self._id_file = id_file
        self._made: dict[str, tuple[Path, ...]] = {}
        self._do("remember", self._remember)

    def _remember(self, run: Any, state: str = "") -> None:
        if self._id_file is not None:
            files.write_text(self._id_file, f"{run.id}{state}\n")

    def log(self, values: dict[str, float]) -> None:
        """Log one row; it should hold the step metric, if the run has one."""
        self._do("log to", lambda run: run.log(values))

    def summary(self, values: dict[str, Any]) -> None:
        """Set the run's end values."""
        self._do("write the summary of", lambda run: run.summary.update(values))

    def image(self, key: str, path: Path) -> None:
        """Log an image file."""
        self._do("log an image to", lambda run: run.log({key: _wandb().Image(str(path))}))

    def curves(self, values: dict[str, float], step: str) -> None:
        """Log one row whose horizontal axis is `step`, one of its values."""

        def define(run: Any) -> None:
            for key in values:
                run.define_metric(key, step_metric=None if key == step else step)

        self._do("log to", define)
        self.log(values)

    def page(self, key: str, path: Path) -> None:
        """Log a page of HTML."""
        self._do("log a page to", lambda run: run.log({key: _wandb().Html(str(path))}))

    def table(
        self,
        key: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[Any]],
        chart: tuple[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Log a table; its cells are numbers (numpy's too), texts, truth values or None.

        As a `chart` it is drawn by one of wandb's own, which has a name, and columns for its axes.
        """

        def log(run: Any) -> None:
            cells = [[v.item() if hasattr(v, "item") else v for v in row] for row in rows]
            table = _wandb().Table(list(columns), cells, allow_mixed_types=True)
            drawn = chart and _wandb().plot_table(chart[0], table, chart[1], {"title": key})
            run.log({key: drawn or table})

        self._do("log a table to", log)

    def used(self, kind: str, source: Path | str, digest: str | None = None) -> None:
        """Say what the run was made from: the file that records it, or an address and a digest."""
        self._do("log what was used by", lambda run: _artifact(run, kind, source, digest, True))

    def made(self, kind: str, record: Path, *files: Path) -> None:
        """Say what the run has made, by the file that records it; sent when it finishes well.

        Of `files` the content is sent, too.
        """
        self._made[kind] = (record, *files)

    def _do(self, what: str, action: Callable[[Any], None]) -> None:
        if self._run is not None:
            with server.harmless(what):
                action(self._run)

    def finish(self, exit_code: int = 0) -> None:
        """End the run; a second call does nothing."""

        def made(run: Any) -> None:
            for kind, (record, *sent) in self._made.items():
                _artifact(run, kind, record, None, False, sent)

        def end(run: Any) -> None:
            try:
                run.finish(exit_code=exit_code)
            except Exception as error:
                if not self.online:
                    raise
                server.give_up(why := one_line(error, named=True))
                where = os.path.relpath(run.settings.wandb_dir)
                server.say(
                    logging.WARNING,
                    f"the server is slow or gone ({why}); to send later what is missing: "
                    f"wandb sync --include-online {where}",
                )
            else:
                self._remember(run, "" if exit_code else DONE)

        if exit_code == 0:
            self._do("log what was made by", made)
        self._do("finish", end)
        self._run = None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.finish(exit_code(error))


def exit_code(error: BaseException | None) -> int:
    """What a run ends with if `error` has ended it, or nothing has."""
    if error is None:
        return 0
    return KILLED if isinstance(error, KeyboardInterrupt | Interrupted) else 1


def _artifact(
    run: Any,
    kind: str,
    source: Path | str,
    digest: str | None,
    used: bool,
    uploaded: Sequence[Path] = (),
) -> None:
    if isinstance(source, Path):
        source = source.absolute()
        uri, sha256 = source.as_uri(), digest or files.sha256_file(source)
        name = "-".join(source.parts[-4:-1])  # outputs-demo-lm, demo-sae-NAME
    else:
        uri, sha256, name = source, str(digest), source.partition("//")[2]
    name = shortened(re.sub(r"[^\w.-]+", "-", name).lstrip("-."), NAME_BYTES)
    artifact = _wandb().Artifact(name, kind, metadata={"sha256": sha256, "source": str(source)})
    # The entry's name makes another content another version.
    artifact.add_reference(uri, name=sha256, checksum=False)
    for file in uploaded:
        artifact.add_file(str(file))
    # What `use_artifact` does with one that is not on the server; but it refuses offline.
    run._log_artifact(artifact, use_after_commit=used)


def _wandb() -> Any:
    return sys.modules["wandb"]
