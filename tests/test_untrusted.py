"""What comes in, by kind: files that change, links, values, names, limits, what is printed."""

import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fault_study
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import edited, flip
from fault_study import ENVIRONMENT, ROOT
from test_text_files import data, read
from test_text_tokens import make_data, make_tokenizer
from typing_extensions import TypedDict
from wandb_server import WandbServer

from sparse_dict import errors
from sparse_dict.activations.store import Activations
from sparse_dict.analysis import study
from sparse_dict.config import BPETokenizer
from sparse_dict.errors import UserError
from sparse_dict.machine.background import in_background, prefetched
from sparse_dict.sae import folder as folders
from sparse_dict.storage import lock, records, untrusted
from sparse_dict.text import corpus, files, tokenizer, tokens
from sparse_dict.tools import status, verify

# --- what is read is what was hashed --------------------------------------------------------------


def more_documents(path: Path) -> None:
    path.write_text(path.read_text() + '\n{"text": "one more"}')


def another_letter(path: Path) -> None:
    """Size and time are what they were."""
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"Document 7 ", b"Document Z "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [more_documents, another_letter])
@pytest.mark.parametrize("step", ["tokens", "vocabulary"])
def test_a_corpus_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], step: str
):
    text = make_data(tmp_path)
    read_jsonl = files.read_jsonl

    def meanwhile(path: Path, column: str) -> Iterator[str]:
        yield from read_jsonl(path, column)
        change(path)

    def make() -> object:
        if step == "tokens":
            return tokens.prepare(text, make_tokenizer(), tmp_path)
        return tokenizer.build(BPETokenizer(300, 10**6), text, tmp_path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_jsonl", meanwhile)
        with pytest.raises(UserError, match=r"the corpus changed while it was read \(corpus.jsonl"):
            make()
    make()


def test_a_file_that_is_cut_short_while_it_is_open_is_named(tmp_path: Path):
    """A mapped one ends the process by SIGBUS."""
    np.save(tmp_path / "a.npy", np.ones((100_000, 8), np.float32))
    opened = Activations.open(tmp_path)
    store = tokens.prepare(make_data(tmp_path), make_tokenizer(), tmp_path)
    for path in (tmp_path / "a.npy", *store.folder.glob("*.npy")):
        os.truncate(path, 200)
    with pytest.raises(UserError, match=r"a\.npy was cut short while it was read"):
        opened.read(50_000, 50_010)
    with pytest.raises(UserError, match=r"train-00000\.npy was cut short"):
        store.split("train").window(500, 10)


def test_rows_in_the_order_of_fortran_are_read_like_others(tmp_path: Path):
    rows = np.arange(60, dtype=np.float32).reshape(20, 3)
    np.save(tmp_path / "a.npy", np.asfortranarray(rows))
    assert (Activations.open(tmp_path).read(5, 17) == rows[5:17]).all()


# --- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait", [lambda call: in_background(call), lambda call: list(prefetched(iter(call, None)))]
)
def test_a_signal_is_heard_during_somebody_elses_long_call(wait: Callable[[object], object]):
    over = threading.Event()

    def alarm(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(InterruptedError):
            wait(lambda: over.wait(60))
    finally:
        signal.signal(signal.SIGALRM, before)
        over.set()


@pytest.mark.parametrize("run", [" " * 5000, "a" * 5000, "é" * 5000, "0" * 2500 + "=" * 2500])
def test_the_trainer_gets_no_long_runs_and_nothing_is_lost(run: str):
    text = f"some words {run} and more"
    parts = tokenizer.pieces(text)
    assert "".join(parts) == text
    assert len(parts) >= 5
    assert max(map(len, parts)) <= tokenizer.MOST_RUN + len("some words  and more")
    assert tokenizer.pieces("short words " * 1000) == ["short words " * 1000]


def test_a_million_blanks_are_encoded():
    text = "a" + " " * 1_000_360 + "b"
    made = make_tokenizer()
    assert made.decode(made.encode_batch([text])[0]) == text


# --- links ----------------------------------------------------------------------------------------

OUT = [
    "analysis", "analysis/figures", "lm/tokenizer", "lm/checkpoint", "activations/partial",
    "sae/one/snapshots", "analysis/.hydra", "lm/train_lm.log",
]  # fmt: skip


@pytest.mark.parametrize("link", OUT)
def test_a_folder_that_leads_out_of_a_study_is_not_written_to(tmp_path: Path, link: str):
    base, mine = tmp_path / "study", tmp_path / "mine"
    mine.mkdir()
    path = base / link
    path.parent.mkdir(parents=True)
    path.symlink_to(mine)
    stage = base / link.partition("/")[0]
    folder = stage / "one" if stage.name == "sae" else stage
    with (
        pytest.raises(UserError, match=r"is a link out of .*: remove it"),
        lock.holding(folder),
    ):
        pass
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize(
    "link", ["sae", *(pytest.param(p, marks=pytest.mark.slow) for p in ("wandb", "lm"))]
)
def test_a_script_refuses_such_a_study_before_it_writes(tmp_path: Path, link: str):
    for name in ("mine", "rows"):
        (tmp_path / name).mkdir()
    np.save(tmp_path / "rows" / "a.npy", np.random.default_rng(0).normal(size=(900, 4)))
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / link).symlink_to(tmp_path / "mine")
    fault_study.write_corpus(tmp_path / "text.jsonl")
    name = "train_lm" if link == "lm" else "train_sae"
    more = [] if link == "lm" else [f"activations_dir={tmp_path}/rows"]
    done = subprocess.run(
        fault_study.command(name, tmp_path / "study", *more),
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"study/{link} is a link out of" in done.stderr
    assert list((tmp_path / "mine").iterdir()) == []


def test_links_within_a_study_and_to_a_study_are_the_users_own(tmp_path: Path):
    (tmp_path / "disk" / "x" / "lm-1").mkdir(parents=True)
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    base = tmp_path / "outputs" / "x"
    (base / "lm").symlink_to("lm-1")
    with lock.holding(base / "lm"):
        untrusted.refuse_links(base / "lm", base)


def test_what_wandb_links_in_a_run_that_ended_does_not_bind_a_copy_of_the_study(tmp_path: Path):
    run = tmp_path / "copy" / "wandb" / "offline-run-20261130_144740-f1b8be6b6c88d936" / "logs"
    run.mkdir(parents=True)
    (run / "debug-core.log").symlink_to(tmp_path / "original" / "core.log")
    untrusted.refuse_links(tmp_path / "copy" / "wandb")


def test_a_copy_by_hard_links_shares_no_file_that_is_written_on(tmp_path: Path):
    """As `cp -al` makes it; all other files are replaced."""
    original = tmp_path / "study" / "sae" / "one"
    (original / ".hydra").mkdir(parents=True)
    names = ("train_sae.log", ".hydra/config.yaml", "metrics.json")
    for name in names:
        (original / name).write_text("theirs")
    mine = tmp_path / "copy" / "sae" / "one"
    shutil.copytree(original, mine, copy_function=os.link)
    with lock.holding(mine):
        shared = [name for name in names if (mine / name).samefile(original / name)]
    assert shared == ["metrics.json"]
    assert {(mine / name).read_text() for name in names} == {"theirs"}


@pytest.mark.parametrize("name", ["train_sae.log", ".hydra/config.yaml", "x"])
def test_a_pipe_where_something_is_written_is_refused(tmp_path: Path, name: str):
    path = tmp_path / "study" / "sae" / name
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with (
        pytest.raises(UserError, match="is a pipe, a socket or a device"),
        lock.holding(path.parent),
    ):
        pass


READ = ["sae_weights.safetensors", "cfg.json", "features.safetensors", "snapshots/*.safetensors"]


@pytest.mark.parametrize("name", READ)
def test_a_hash_that_was_recorded_is_checked_where_the_file_is_read(tmp_path: Path, name: str):
    draw = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    made = folders.Dictionary(draw, draw[0], draw.T.copy(), draw[:, 0])
    folders.write_snapshot(tmp_path, made.W_dec, 64)
    asked = dict.fromkeys(("dict_size", "eval_rows", "seed", "fvu", "l0", "l1"), 1)
    metrics = {"config": {}, **asked, "dict_size": 8}
    folders.write(tmp_path, made, np.arange(8), metrics, None)

    def read() -> None:
        assert len(folders.read_snapshots(folders.read(tmp_path))) == 1

    read()
    (path,) = tmp_path.glob(name)
    edited(device="cuda")(path) if name == "cfg.json" else flip(path)
    with pytest.raises(UserError, match=rf"{path.name} has changed since it was written"):
        read()


def test_looking_at_dictionaries_takes_as_long_for_each_however_many_there_are(tmp_path: Path):
    """By the calls that Python makes, which do not depend on the machine."""
    from analysis_study import write_dictionary

    def calls(look: Callable[[], object]) -> int:
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        sys.setprofile(counted)
        try:
            look()
        finally:
            sys.setprofile(None)
        return count

    sae, eye = tmp_path / "sae", np.eye(4, dtype=np.float32)
    found: dict[str, list[int]] = {"status": [], "verify": []}
    for n in (0, 20, 40, 60):
        for i in range(n - 20, n) if n else (98, 99):  # the first look imports and caches
            write_dictionary(sae / f"done-{i:02}", eye, np.ones(4, np.int64))
            (sae / f"begun-{i:02}" / ".hydra").mkdir(parents=True)
        found["status"].append(calls(lambda: status.table(tmp_path)))
        found["verify"].append(calls(lambda: verify.verify(tmp_path)))
    for counts in found.values():
        _, a, b, c = counts
        assert abs((c - b) - (b - a)) < 0.05 * (b - a)


# --- values and names -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (-1, [records.Count, records.Amount]),
        (2**62, [records.Count]),
        (10**400, [records.Count, records.Whole, records.Number]),
        (1e300, [records.Count, records.Number, records.Amount]),
        (float("nan"), [records.Number, records.Amount]),
        (True, [records.Count, records.Number]),
        ("a\x00b", [records.Line]),
        ("\ud800", [records.Line]),
        ("x\n[ERROR] forged", [records.Line]),
        ("$x", [records.Shown]),
        ("../x.npy", [records.ArrayName]),
        ([1], [records.Texts]),
    ],
)
def test_a_value_out_of_its_kind_or_range_is_named(tmp_path: Path, value: object, kinds: list[Any]):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"a": {"b": value}}))
    for kind in kinds:
        with pytest.raises(
            UserError, match=r"r\.json is malformed \(a\.b\S* is .*, not "
        ) as caught:
            records.read(path, dict[str, dict[str, kind]])
        assert str(caught.value).isprintable()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "metrics.json is malformed (fvu is 1000": lambda f: edited(fvu=10**400)(f / "metrics.json"),
    "metrics.json is malformed (config.sae is": lambda f: edited("config", sae="x")(
        f / "metrics.json"
    ),
    "metrics.json is larger than": lambda f: os.truncate(f / "metrics.json", 40 << 30),
    "features.safetensors cannot be read": lambda f: os.truncate(
        f / "features.safetensors", 40 << 30
    ),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_one_damaged_dictionary_is_left_out_by_name_whoever_reads_it(
    tmp_path: Path, reason: str, capsys: pytest.CaptureFixture[str]
):
    from analysis_study import write_study

    write_study(tmp_path / "sae", sizes=(8, 16))
    folder = next(path for path in (tmp_path / "sae").glob("*dict_size=16*"))
    DAMAGES[reason](folder)
    (left,) = study.load(tmp_path / "sae").left_out
    assert left.name == folder.name
    assert reason in left.reason
    verify.main([str(tmp_path)])
    assert reason in capsys.readouterr().out
    row = re.search(rf"{re.escape(folder.name)} +damaged", status.table(tmp_path))
    assert bool(row) == reason.startswith("metrics")


def test_a_record_keeps_the_keys_of_other_versions(tmp_path: Path):
    class Record(TypedDict):
        a: records.Number

    (tmp_path / "r.json").write_text('{"a": 1, "of a later one": 2}')
    assert json.dumps(records.read(tmp_path / "r.json", Record)) == '{"a": 1, "of a later one": 2}'


def test_a_name_that_is_no_utf_8_is_left_out_and_shown(tmp_path: Path):
    from analysis_study import write_study

    write_study(tmp_path / "sae", sizes=(8, 16))
    folder = min(path for path in (tmp_path / "sae").iterdir() if path.is_dir())
    os.rename(os.fsencode(folder), os.fsencode(folder.with_name("x")) + b"\xff\x1b[2J")  # noqa: PTH104
    (left,) = study.load(tmp_path / "sae").left_out
    assert left.name == "x\\udcff\\x1b[2J"
    for text in (status.table(tmp_path), str(UserError(os.fsdecode(b"\xff")))):
        text.encode()
    verify.main([str(tmp_path)])


def test_no_text_from_a_file_steers_the_terminal_or_begins_a_line_of_a_log():
    record = errors._Record("x", logging.INFO, "", 0, "left out: %s (%s), %d %s", (
        "a\x1b[2J", UserError("b\n[ERROR] - forged"), 3, Path("c\rd")), None)  # fmt: skip
    assert record.getMessage() == "left out: a\\x1b[2J (b\\n[ERROR] - forged), 3 c\\rd"


# --- formats --------------------------------------------------------------------------------------


def with_header(path: Path, version: tuple[int, int], shape: object) -> None:
    """An array of 400 numbers under a header of another version or shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    length = len(header).to_bytes(4 if version[0] > 1 else 2, "little")
    path.write_bytes(b"\x93NUMPY" + bytes(version) + length + header.encode() + bytes(1600))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_every_version_of_the_format_are_read(tmp_path: Path, version: tuple[int, int]):
    with_header(tmp_path / "a.npy", version, (100, 4))
    assert Activations.open(tmp_path).read(98, 100).shape == (2, 4)
    with_header(tmp_path / "a.npy", version, (400, True))
    with pytest.raises(
        UserError, match=r"a\.npy is truncated or not an array of numbers: it holds"
    ):
        Activations.open(tmp_path)


def test_what_numpy_cannot_name_is_named(tmp_path: Path):
    for rows, message in (
        (np.zeros((9, 4), "V2"), r"save \.float\(\)"),
        (np.zeros((3, 5, 4), np.float32), r"save \.float\(\)\.reshape\(-1, d\)"),
    ):
        np.save(tmp_path / "a.npy", rows)
        with pytest.raises(UserError, match=message):
            Activations.open(tmp_path)


def test_columns_of_polars_are_read_and_two_of_one_name_are_named(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(["x", None, "y"], pa.string_view())}), path)
    assert read(str(path), tmp_path) == ["x", "y"]
    pq.write_table(pa.table([pa.array(["x"]), pa.array(["y"])], ["text", "text"]), path)
    with pytest.raises(UserError, match="2 columns have the name 'text'"):
        corpus.check(data(str(path)))


def test_a_parquet_file_that_breaks_off_is_named(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(i) for i in range(9999)]}), path, compression="snappy")
    whole = path.read_bytes()
    for damaged in (whole[:2000] + bytes(2000) + whole[4000:], whole[:9000]):
        path.write_bytes(damaged)
        with pytest.raises(
            UserError, match=r"a\.parquet cannot be read as parquet: \S{2,}"
        ) as caught:
            read(str(path), tmp_path)
        assert "None" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_pointer_of_git_is_named_at_the_check(tmp_path: Path, name: str):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="is a Git LFS pointer, not the file: git lfs pull"):
        corpus.check(data(str(tmp_path / name)))


def test_one_txt_is_one_document_and_cannot_be_split(tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    corpus.check(data(str(tmp_path / "a.txt")))
    corpus.check(data(str(tmp_path / "*.txt")), validated=True)
    with pytest.raises(UserError, match=r"a\.txt is one document: give several"):
        corpus.check(data(str(tmp_path / "a.txt")), validated=True)


def test_files_that_a_shells_glob_passes_over_are_passed_over(tmp_path: Path):
    for name in ("a.txt", "._a.txt", ".git/b.txt", "c/d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(str(tmp_path / "**" / "*.txt"), tmp_path) == ["a.txt", "c/d.txt"]
    for name in ("a.npy", "._b.npy"):
        np.save(tmp_path / name, np.ones((3, 2), np.float32))
    assert Activations.open(tmp_path).rows == 3


# --- limits ---------------------------------------------------------------------------------------


def limited(code: str, cwd: Path, **limits: int) -> str:
    """The output of a process with limits of its own."""

    def limit() -> None:
        for name, value in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))

    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=cwd, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, preexec_fn=limit,
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_more_arrays_are_read_than_files_may_be_open(tmp_path: Path):
    for i in range(200):
        np.save(tmp_path / f"part-{i:04d}.npy", np.full((2, 3), i, np.float32))
    code = (
        "from pathlib import Path; from sparse_dict.activations.store import Activations\n"
        "found = Activations.open(Path()); print(found.rows, found.read(0, 400).sum())"
    )
    assert limited(code, tmp_path, NOFILE=100) == "400 119400.0\n"


def test_a_document_that_is_too_large_is_named_with_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(untrusted, "MOST_BYTES", 1000)
    (tmp_path / "a.txt").write_text("x" * 1001)
    with pytest.raises(UserError, match=r"a\.txt.*too much for one document: cut it"):
        read(str(tmp_path / "a.txt"), tmp_path)


def test_limits_of_the_system_are_named(tmp_path: Path):
    with pytest.raises(OSError) as told:  # noqa: PT011
        (tmp_path / ("x" * 300)).mkdir()
    assert "a name is too long for this file system" in errors.one_line(told.value)
    with pytest.raises(OSError) as told:  # noqa: PT011
        Path("/dev/full").write_text("x")
    assert "the disk is full or a quota is used up" in errors.one_line(told.value)
    opened = []

    def open_all() -> None:
        while True:
            opened.append((tmp_path / "x").open("w"))

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
    try:
        with pytest.raises(OSError) as told:  # noqa: PT011
            open_all()
        assert re.search("too many files are open .*raise the limit", errors.one_line(told.value))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for file in opened:
            file.close()


# --- wandb ----------------------------------------------------------------------------------------


def test_no_key_goes_to_a_server_that_a_strangers_folder_names(tmp_path: Path):
    (tmp_path / "wandb").mkdir()
    code = "from sparse_dict import tracking; print(tracking.why_offline())"
    with WandbServer() as theirs, WandbServer() as mine:
        (tmp_path / "wandb" / "settings").write_text(f"[default]\nbase_url = {theirs.url}\n")
        (tmp_path / "config").mkdir()
        (tmp_path / "config" / "settings").write_text(f"[default]\nbase_url = {mine.url}\n")
        outside = {"WANDB_API_KEY": "0" * 40, "WANDB_CONFIG_DIR": str(tmp_path / "config")}
        env = {**ENVIRONMENT, **outside, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert "wandb/settings of this folder says which server gets the API key" in done.stdout
        assert theirs.operations == mine.operations == []
        (tmp_path / "wandb" / "settings").unlink()
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.stdout == "\n", done.stderr
        assert (theirs.operations, mine.operations) == ([], [])
