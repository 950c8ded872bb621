"""What the four scripts answer to wrong commands and inputs; it is what docs/messages.md shows.

`python tests/messages.py` writes the page anew. Each command runs in a process of its own, forked
from one that has imported Hydra, in a folder of its own.
"""

import io
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
from typing import Any

import hydra.main  # noqa: F401  imported for the children
import numpy as np
import safetensors.numpy  # noqa: F401
from hydra.core.plugins import Plugins

from sparse_dict.activations import stage as _harvest  # noqa: F401
from sparse_dict.analysis import study  # noqa: F401
from sparse_dict.analysis.interp import llm  # noqa: F401
from sparse_dict.launch import stage  # noqa: F401
from sparse_dict.lm import stage as _lm  # noqa: F401
from sparse_dict.sae import stage as _sae  # noqa: F401

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "messages.md"

INTRODUCTION = """\
# What the scripts say

What is typed, and the one line that comes back on the terminal. A wrong command or input is found
before anything is written; what only the work itself can tell, the last section, stands in the
job's log as well. `HYDRA_FULL_ERROR=1` in front of the command shows the whole traceback. `python
tests/messages.py` writes this page by running every line of it, and a test fails if a line has
changed.
"""


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
_lm_json = _text("outputs/x/lm/lm.json", json.dumps(LM))
_rows = _array("rows", "a.npy", values=ROWS)
TRAINED = {"record": {"config": {"seed": 7}}}

GIVEN: dict[str, Callable[[Path], None]] = {
    "": lambda folder: None,
    "a folder of texts": _text("texts/a.txt", "some text"),
    "a Markdown file": _text("notes.md", "# Notes"),
    'lines such as {"body": "..."}': _text("rows.jsonl", '{"body": "some text"}\n'),
    "lines that are no UTF-8": _text("rows.jsonl", b'{"text": "\xe9"}\n'),
    "lines that are no JSON": _text("rows.jsonl", "some text\n"),
    "a text of nine words": _text("short.txt", "one two three four five six seven eight nine"),
    "a hundred texts": _text(
        "many.jsonl", "".join(f'{{"text": "text number {i}, one of many"}}\n' for i in range(100))
    ),
    "a language model of two layers, contexts of 16": _lm_json,
    "a language model that was stopped": _text("outputs/x/lm/checkpoint/state.safetensors", b""),
    "an lm.json cut short": _text("outputs/x/lm/lm.json", json.dumps(LM)[:40]),
    "an lm.json of another version": _text(
        "outputs/x/lm/lm.json", json.dumps(LM | {"format_version": 9})
    ),
    "somebody's arrays": _all(
        _lm_json, _array("outputs", "x", "activations", "a.npy", values=ROWS)
    ),
    "300 rows": _rows,
    "rows that are all the same": _array("rows", "a.npy", values=np.ones((300, 4), np.float32)),
    "rows of two widths": _all(_rows, _array("rows", "b.npy", values=ROWS[:, :3])),
    "an array of whole numbers": _array("rows", "a.npy", values=np.ones((300, 4), np.int64)),
    "pickled objects": _array("rows", "a.npy", values=np.array([{}] * 300)),
    "a row with a NaN": _array("rows", "a.npy", values=WITH_NAN),
    "a harvest that was stopped": _all(
        _text("rows/partial/00000", b""), _array("rows", "shard-00000.npy", values=ROWS)
    ),
    "a manifest of nothing": _text("rows/manifest.json", "{}"),
    "a dictionary of seed 7": _all(
        _rows, _text("outputs/x/sae/default/metrics.json", json.dumps(TRAINED))
    ),
    "a dictionary in training": _text("outputs/x/sae/default/checkpoint.safetensors", b""),
}  # fmt: skip

# Only what differs from the defaults that make a command work.
SMALL = "name=x activations_dir=rows training.eval_rows=100 training.batch_size=100"
FILES = "data=files tracking.mode=disabled device=cpu"
TINY = "tokenizer.vocab_size=300 model.n_ctx=4"

LATER = "What only the work itself can tell"

# By what is wrong: commands, each with what is there beforehand.
COMMANDS: dict[str, list[tuple[str, str]]] = {
    "A key that does not exist": [
        ("train_lm model.d_modle=64", ""),
        ("train_lm d_mlp=64", ""),
        ("train_lm -m model.d_modle=32,64", ""),
        ("harvest harvest.layr=1", ""),
        ("train_sae sae.dict_sise=64", ""),
        ("train_sae sae.lr=0.1", ""),
        ("train_sae experiments=toy", ""),
        ("train_sae launcher=joblib", ""),
        ("train_sae +sae.dead_=auxk", ""),
        ("train_sae xyzzy=1", ""),
        ("train_sae -m sae.dict_sise=64,128", ""),
        ("train_sae -m hydra/launcher=basic sae.dict_sise=1,2", ""),
        ("train_sae -m hydra.sweep.dirr=x", ""),
        ("analyze comparison.mathcing=max", ""),
        ("analyze analysis.matching=max", ""),
        ("analyze 'analysis=[heatmap]' contexts.top=5", ""),
    ],
    "A choice that does not exist": [
        ("train_lm data=docstring", ""),
        ("train_lm tokenizer=gpt", ""),
        ("harvest experiment=papper", ""),
        ("train_sae sae=untide", ""),
        ("train_sae hydra/launcher=ensembl", ""),
        ("train_sae model=gpt", ""),
        ("train_sae --config-name=foo", ""),
        ("analyze experiment=demoo", ""),
        ("analyze 'analysis=[heatmap,histogram]'", ""),
        ("analyze -m 'analysis=[heatmp],[claims]'", ""),
    ],
    "A value of the wrong type": [
        ("train_lm model.d_model=wide", ""),
        ("train_lm model.n_layers=2.5", ""),
        ("train_lm seed=null", ""),
        ("harvest harvest.sites=2/mlp_post", ""),
        ("train_sae sae.tied=maybe", ""),
        ("train_sae sae.l1=", ""),
        ("analyze comparison.threshold=high", ""),
    ],
    "A value out of range": [
        ("train_lm training.batch_size=0", ""),
        ("train_lm -m training.batch_size=-1,8", ""),
        ("train_lm model.n_heads=5", ""),
        ("train_lm optimizer.lr=0", ""),
        ("train_lm tokenizer.vocab_size=100", ""),
        ("train_lm data.val_fraction=1.5", ""),
        ("train_lm tracking.mode=on", ""),
        ("train_lm device=cuda:99", ""),
        ("harvest harvest.layer=-1", ""),
        ("harvest harvest.site=mlp", ""),
        ("harvest 'harvest.sites=[mlp_post]'", ""),
        ("harvest harvest.split=test", ""),
        ("harvest harvest.dtype=int8", ""),
        ("harvest data=toy data.n_active=600", ""),
        ("train_sae sae.dict_size=-3", ""),
        ("train_sae -m sae.dict_size=-3,64", ""),
        ("train_sae sae.l1=-1e-3", ""),
        ("train_sae sae.activation=gelu", ""),
        ("train_sae sae=topk sae.k=512", ""),
        ("train_sae sae=jumprelu sae.bandwidth=1", ""),
        ("train_sae optimizer.beta1=1", ""),
        ("train_sae name=../elsewhere", ""),
        ("train_sae device=abacus", ""),
        (f"train_sae {SMALL} -m device=cpu,auto", "300 rows"),
        ("analyze comparison.against=all", ""),
        ("analyze comparison.threshold=2", ""),
        ("analyze 'baselines.methods=[pcaa]'", ""),
        ("analyze 'contexts.features=[256]'", ""),
        ("analyze interp.base_url=http://host:8000/v1", ""),
        ("analyze seed=-1", ""),
    ],
    "What Hydra cannot read": [
        ("train_sae --multi-run sae.dict_size=64,128", ""),
        ("analyze --cfg", ""),
        ("train_sae sae.dict_size 64", ""),
        ("train_lm '[1,2]'", ""),
        ("train_sae sae.dict_size=64,128", ""),
        ("train_sae +sae.dict_size=64", ""),
        ("train_sae '~sae.l2'", ""),
        ("harvest 'name=${nmae}'", ""),
        ("train_sae 'hydra.run.dir=${nmae}'", ""),
        ("train_sae --resolve", ""),
    ],
    "Text": [
        ("train_lm data=toy", ""),
        ("train_lm 'data.files=[]' data=files", ""),
        ("harvest data=files data.files=nowhere.txt harvest.layer=1 name=x",
         "a language model of two layers, contexts of 16"),
        ("train_lm data=files", ""),
        ("train_lm data=files data.files=nowhere.txt", ""),
        ("train_lm data=files 'data.files=texts/*.parquet'", "a folder of texts"),
        ("train_lm data=files data.files=texts", "a folder of texts"),
        ("train_lm data=files data.files=notes.md", "a Markdown file"),
        ("train_lm data=files data.files=rows.jsonl", 'lines such as {"body": "..."}'),
        ("train_lm data=files data.files=rows.jsonl", "lines that are no UTF-8"),
        ("train_lm data=files data.files=rows.jsonl", "lines that are no JSON"),
        ("train_lm 'data.packages=[nunpy]'", ""),
    ],
    "Folders of other stages": [
        ("train_lm lm_dir=notes.md", "a Markdown file"),
        ("harvest name=x", ""),
        ("harvest name=x", "a language model that was stopped"),
        ("harvest name=x", "an lm.json cut short"),
        ("harvest name=x", "an lm.json of another version"),
        ("harvest name=x harvest.layer=6", "a language model of two layers, contexts of 16"),
        (
            "harvest name=x harvest.layer=1 harvest.skip_first=16",
            "a language model of two layers, contexts of 16",
        ),
        (
            "harvest name=x harvest.layer=1 harvest.n_tokens=10",
            "a language model of two layers, contexts of 16",
        ),
        (
            "harvest name=x 'harvest.sites=[h.1.mlp:in]'",
            "a language model of two layers, contexts of 16",
        ),
        ("harvest name=x harvest.layer=1", "somebody's arrays"),
        ("harvest name=x lm=hf", ""),
        ("train_sae name=x", ""),
        ("train_sae name=x activations_dir=texts", "a folder of texts"),
        ("train_sae name=x activations_dir=rows", "300 rows"),
        (f"train_sae {SMALL}", "rows of two widths"),
        (f"train_sae {SMALL} device=cpu tracking.mode=disabled", "rows that are all the same"),
        (f"train_sae {SMALL}", "an array of whole numbers"),
        (f"train_sae {SMALL}", "pickled objects"),
        (f"train_sae {SMALL}", "a row with a NaN"),
        (f"train_sae {SMALL}", "a harvest that was stopped"),
        (f"train_sae {SMALL}", "a manifest of nothing"),
        (f"train_sae {SMALL} hydra.run.dir=outputs/x/sae/default", "a dictionary of seed 7"),
        ("analyze name=x", ""),
        ("analyze name=x", "a dictionary in training"),
    ],
    LATER: [
        (f"train_lm {FILES} data.files=short.txt", "a text of nine words"),
        (
            f"train_lm {FILES} data.files=many.jsonl {TINY} training.batch_size=1000000000000000",
            "a hundred texts",
        ),
        (
            f"train_sae {SMALL} device=cpu tracking.mode=disabled sae.dict_size=1000000000000000",
            "300 rows",
        ),
    ],
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
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            os._exit(_child(shlex.split(command), writer))
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as file:
            out, err = json.loads(file.read())
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        new = set(folder.rglob("*")) - before
        out, err = (text.replace(f"{folder}/", "") for text in (out, err))
        return Answer(
            kind, command, given, code, out, err, sorted(str(p.relative_to(folder)) for p in new)
        )


def _child(arguments: list[str], writer: int) -> int:
    script = f"{arguments[0]}.py"
    sys.argv = [script, *arguments[1:]]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            code = 3
            err.write(traceback.format_exc())
    os.write(writer, json.dumps([out.getvalue(), err.getvalue()]).encode())
    return code


def answers(most: int | None = None) -> Iterator[Answer]:
    """Those of all commands, or of so many of each kind."""
    sys.path.insert(0, str(ROOT))  # the launchers lie there
    Plugins.instance()  # found once, for all children
    for kind, commands in COMMANDS.items():
        for command, given in commands[:most]:
            yield answer(kind, command, given)


def page(found: list[Answer]) -> str:
    """The page in Markdown."""
    lines = [INTRODUCTION]
    for kind in COMMANDS:
        here = [each for each in found if each.kind == kind]
        header = ["command", "answer"]
        if any(each.given for each in here):
            header.insert(0, "there is")
        lines += [f"## {kind}", "", _row(header), _row(["---"] * len(header))]
        for each in here:
            script, _, rest = each.command.partition(" ")
            cells = [in_code(f"python {script}.py {rest}"), in_code(each.message.strip())]
            lines.append(_row([each.given, *cells] if len(header) == 3 else cells))
        lines.append("")
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def in_code(text: str) -> str:
    """A cell that shows `text` as it is."""
    return "`" + text.replace("|", "\\|") + "`"


if __name__ == "__main__":
    if "--json" in sys.argv:
        found = answers(1 if "--first" in sys.argv else None)
        print(json.dumps([vars(each) for each in found]))
    else:
        PAGE.write_text(page(list(answers())), encoding="utf-8")
