"""What the four scripts answer to wrong commands and inputs: tests/messages.md lists them.

`python tests/messages.py` runs each command of the page and writes its answer there. Each runs in a
process of its own, forked from one that has imported Hydra, in a folder of its own. A new command
is a new line of the page, ``- `COMMAND`, with GIVEN: `any answer` ``, where GIVEN is what is there
beforehand, one of `GIVEN`, or is left out. The name of the script before an answer is not shown.
"""

import atexit
import json
import os
import re
import runpy
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import hydra.main  # noqa: F401  imported for the children
import numpy as np
import safetensors.numpy  # noqa: F401
from hydra.core.plugins import Plugins

from sparse_dict.activations import stage as _harvest  # noqa: F401
from sparse_dict.analysis import study  # noqa: F401
from sparse_dict.analysis.interp import llm  # noqa: F401
from sparse_dict.launch import check_first  # noqa: F401
from sparse_dict.lm import stage as _lm  # noqa: F401
from sparse_dict.sae import stage as _sae  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "tests" / "messages.md"
LATER = "What only the work itself can find"  # the page's last section
LINE = re.compile(r"^- `(.*?)`(?:, with (.*?))?: `.*`$", re.MULTILINE)


# --- what is there beforehand ---------------------------------------------------------------------


def _array(*parts: str, values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder.joinpath(*parts)
        path.parent.mkdir(exist_ok=True, parents=True)
        np.save(path, values)

    return make


def _text(path: str, content: str | bytes) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())

    return make


def _all(*makers: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for maker in makers:
            maker(folder)

    return make


ROWS = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
WITH_NAN = ROWS.copy()
WITH_NAN[7, 2] = np.nan
SHAPE = {"n_layers": 2, "n_heads": 1, "d_model": 4, "d_mlp": 8, "n_ctx": 16}
LM = {
    "format_version": 1, "n_vocab": 300, "corpus": {}, "config": {"model": SHAPE, "seed": 7},
    "fingerprints": {"model": "m", "tokenizer": "t", "corpus": "c"},
}  # fmt: skip
_rows = _array("rows", "a.npy", values=ROWS)

GIVEN: dict[str, Callable[[Path], None]] = {
    "": lambda folder: None,
    "a language model of two layers, contexts of 16": _text("outputs/x/lm/lm.json", json.dumps(LM)),
    "a language model that was stopped": _text("outputs/x/lm/checkpoint/state.safetensors", b""),
    "300 rows": _rows,
    "rows of two widths": _all(_rows, _array("rows", "b.npy", values=ROWS[:, :3])),
    "an array of whole numbers": _array("rows", "a.npy", values=np.ones((300, 4), np.int64)),
    "a row with a NaN": _array("rows", "a.npy", values=WITH_NAN),
    "an experiment without its first line": _text("own/experiment/mine.yaml", "seed: 1"),
    "another program's run": _all(_rows, _text("theirs/.hydra/hydra.yaml", "hydra: {}")),
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What became of one command."""

    kind: str
    command: str
    given: str
    code: int
    out: str
    err: str
    written: list[str]  # files that were not there before

    @property
    def message(self) -> str:
        """The line: on stderr before anything was written, or else the log's error."""
        return self.err or "".join(re.findall(r"\[ERROR\] - (.*)", self.out))


def answer(kind: str, command: str, given: str) -> Answer:
    """Run a command in a forked process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "here"
        folder.mkdir()
        GIVEN[given](folder)
        before = set(folder.rglob("*"))
        with tempfile.TemporaryFile("w+") as out_file, tempfile.TemporaryFile("w+") as err_file:
            pid = os.fork()
            if pid == 0:
                os.chdir(folder)
                os._exit(_child(shlex.split(command), out_file, err_file))
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            for file in (out_file, err_file):
                file.seek(0)
            out, err = out_file.read(), err_file.read()
        new = set(folder.rglob("*")) - before
        out, err = (text.replace(f"{folder}/", "") for text in (out, err))
        return Answer(
            kind, command, given, code, out, err, sorted(str(p.relative_to(folder)) for p in new)
        )


def _child(arguments: list[str], out: TextIO, err: TextIO) -> int:
    sys.argv = arguments
    atexit._clear()  # what the parent is to do at its end: a script may end this process
    with redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / arguments[0]), run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            code = 3
            err.write(traceback.format_exc())
    out.flush()
    err.flush()
    return code


def answers(text: str, most: int | None = None) -> Iterator[Answer]:
    """Those to all commands of the page's text, or to so many of each section."""
    sys.path.insert(0, str(ROOT))  # the launchers lie there
    Plugins.instance()  # found once, for all children
    for section in text.split("\n## ")[1:]:
        for command, given in LINE.findall(section)[:most]:
            yield answer(section.splitlines()[0], command, given)


def page(text: str, found: list[Answer]) -> str:
    """The page's text with the answers that were found."""
    new = iter(found)
    return LINE.sub(lambda line: f"{line[0].partition(': `')[0]}: {in_code(next(new))}", text)


def in_code(found: Answer) -> str:
    """An answer as the page shows it."""
    return f"`{found.message.strip().removeprefix(f'{found.command.split()[0]}: ')}`"


if __name__ == "__main__":
    shown = PAGE.read_text(encoding="utf-8")
    found = answers(shown, 1 if "--first" in sys.argv else None)
    if "--json" in sys.argv:
        print(json.dumps([vars(each) for each in found]))
    else:
        PAGE.write_text(page(shown, list(found)), encoding="utf-8")
