"""A stage's folder: is what it holds finished, begun, or another's? One protocol for all stages.

A result is finished when its manifest is there, which is written last. The manifest, or until then
the checkpoint, says what the result is made from. The file `MARK` says that this project made the
folder: what lies in one without it is not ours, and is neither removed nor replaced.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparse_dict.config.identity import differences
from sparse_dict.errors import DamagedOutput, UserError, advising
from sparse_dict.storage import files, untrusted

MARK = ".sparse-dict"  # holds the name of the stage
# What may lie in any job's folder: hidden files, logs, what Hydra and wandb note.
ANYWHERE = r"\..*|.*\.log|multirun\.yaml|optimization_results\.yaml|wandb_run_id\.txt"


@dataclass(frozen=True)
class Output:
    """What a stage makes of a folder."""

    stage: str  # the name of its script
    key: str | None  # of the config, which names the folder; None: it is Hydra's of the job
    manifest: str  # written last
    # What the folder says that its result, whole or begun, is made from; None: it says nothing.
    made_from: Callable[[Path], Mapping[str, Any] | None]
    elsewhere: str = ""  # what to choose instead, unless that is name= or the key

    def is_finished(self, folder: Path, wanted: Mapping[str, Any], config: object = None) -> bool:
        """Whether `folder` holds the result that is made from `wanted`: record and inputs."""
        self.refuse_foreign(folder)
        if (there := self._said(folder)) is None:
            return False
        for key, value in wanted.items():
            schema, name = (config, "") if key == "config" else (None, key)
            if found := differences(there.get(key), value, schema, name):
                raise UserError(
                    f"{folder} was made with another config or from other inputs: {found[0]}; "
                    f"choose another {self._elsewhere}, or delete the folder"
                )
        return (folder / self.manifest).exists()

    def refuse_foreign(self, folder: Path) -> None:
        """See that what may be removed or replaced in `folder` is this stage's."""
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{self.key or 'output'}: {folder} is not a folder")
        if not folder.is_dir() or self._is_ours(folder):
            return
        names = sorted(path.name for path in folder.iterdir())
        for name in names:
            if not re.fullmatch(ANYWHERE, name):
                raise UserError(
                    f"{folder} holds {name}, which {self.stage} did not make: "
                    f"choose another {self._elsewhere}"
                )

    def begin(self, folder: Path) -> None:
        """Mark `folder` as this stage's; what it then holds may be replaced."""
        files.write_text(folder / MARK, f"{self.stage}\n")

    def _is_ours(self, folder: Path) -> bool:
        with suppress(UserError):
            mark = untrusted.read_bytes(folder / MARK).decode(errors="replace")
            if mark.endswith("\n"):
                return mark == f"{self.stage}\n"
        # Cut short, or before there were marks: manifest, checkpoint, what Hydra noted of the job.
        if self._said(folder) is not None:
            return True
        with suppress(UserError):
            noted = untrusted.read_bytes(folder / ".hydra" / "hydra.yaml")
            return b"sparse_dict." in noted and f"\n    name: {self.stage}\n".encode() in noted
        return False

    def _said(self, folder: Path) -> Mapping[str, Any] | None:
        try:
            with advising(f"delete {folder / self.manifest} to have it made again"):
                return self.made_from(folder)
        except UserError as error:
            raise DamagedOutput(str(error)) from None

    @property
    def _elsewhere(self) -> str:
        return self.elsewhere or ("name=" if self.key is None else f"name= or {self.key}=")
