"""Files from a stranger: whatever is in them, the readers answer with a `UserError` or a value."""

import json
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_study import config_of, context_of
from damage import edited, resealed
from fault_study import GRID, ROOT, SCRIPTS, call, composed, overrides, write_corpus
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sparse_dict.activations import store
from sparse_dict.activations.store import Activations
from sparse_dict.activations.toy import TRUTH
from sparse_dict.analysis import source as sources
from sparse_dict.analysis import study
from sparse_dict.analysis.interp import llm
from sparse_dict.analysis.measured import true_features
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.errors import UserError
from sparse_dict.lm import checkpoint
from sparse_dict.lm import folder as lm_folder
from sparse_dict.sae import folder as sae_folder
from sparse_dict.sae import imported
from sparse_dict.storage import tensor_files
from sparse_dict.storage.files import (
    SEAL,
    fingerprint,
    read_json,
    sealed,
    sha256_file,
    write_json,
)
from sparse_dict.text.tokens import TokenStore
from sparse_dict.tools import status, verify

ONE = "sae/" + ",".join(GRID[-1])

# Values that have broken readers: wrong kinds, limits, paths that lead elsewhere.
NASTY = st.sampled_from(
    [None, True, -1, -5, 0, 2**31, 2**62, 2**63, 2**70, -(10**400), 1.5, 1e300, float("nan"),
     float("inf"), "", "x", "../../etc/passwd", "/etc/passwd", "a\x00b", "\ud800", "a*", "\x1b[2J",
     "x\n[ERROR] forged", [], [[]], {}, {"a": 1}, "²"]
)  # fmt: skip
VALUES = NASTY | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("fuzz")
    write_corpus(top / "text.jsonl")
    base = top / "study"
    for name in SCRIPTS:
        call(name, base)()
    (base / "tokens").mkdir()
    (tokens,) = (base.parent / "cache" / "tokens").iterdir()
    tokens.rename(base / "tokens" / "one")
    model, optimizer = _tiny(base)
    checkpoint.save(base / "state.safetensors", model, optimizer, checkpoint.State(), {})
    shutil.copytree(base / "activations", base / "toy")
    directions = np.eye(16, dtype=np.float32)  # as wide as the model's hidden layer
    save_file({"features": directions}, base / "toy" / TRUTH)
    (base / "answers.jsonl").write_text('{"key": "k", "answer": "a", "cost": 0.25}\n')
    shutil.copytree(base / ONE, base / "interrupted")
    (base / "interrupted" / "metrics.json").unlink()
    record = {"step": 1, "record": {}, "history": [], "sums": {}, "seconds": 1.0}
    path = base / "interrupted" / sae_folder.CHECKPOINT
    tensor_files.write_checkpoint(path, {"b": np.zeros(3, np.float32)}, record)
    return base


@pytest.fixture
def copy(template: Path) -> Iterator[Path]:
    """A copy to damage, under a name that a model's reader knows."""
    base = template.with_name("damaged")
    yield Path(shutil.copytree(template, base))
    shutil.rmtree(base)


def _tiny(base: Path) -> Any:
    import torch

    from sparse_dict.lm.model import GPT

    record = lm_folder.read_record(base / "lm")
    model = GPT(lm_folder.ModelConfig(**record["config"]["model"]), record["n_vocab"])
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.loss(*torch.zeros(2, 1, 4, dtype=torch.int64)).backward()
    optimizer.step()
    return model, optimizer


def read_activations(base: Path) -> None:
    opened = Activations.open(base / "activations")
    for shard in opened.shards:
        assert shard.path.parent == base / "activations"
    opened.read(0, opened.rows)
    assert opened.mean.shape == (opened.d_in,)
    assert opened.rms >= 0
    opened.origins(0, opened.rows)
    opened.verify()


def read_model(base: Path) -> None:
    lm_folder.load(base / "lm").tokenizer.encode_batch(["Is it?  \u00e9 1"])


def read_tokens(base: Path) -> None:
    store = TokenStore.open(base / "tokens" / "one")
    for name in ("train", "validation", "all"):
        stream = store.split(name)
        stream.window(0, len(stream))


def read_checkpoint(base: Path) -> None:
    checkpoint.identity(base / "state.safetensors")
    model, optimizer = _tiny(base.with_name("study"))
    checkpoint.load(base / "state.safetensors", model, optimizer)


def read_dictionary(base: Path) -> None:
    sae_folder.read_snapshots(sae_folder.read(base / ONE))


def read_interrupted(base: Path) -> None:
    sae_folder.read_checkpoint_meta(base / "interrupted")
    tensor_files.read_checkpoint(base / "interrupted" / sae_folder.CHECKPOINT)


def read_source(base: Path) -> None:
    """What the analyses do that run the model again on the text it was harvested from."""
    config = composed("analyze", (*overrides("analyze", base), f"cache_dir={base}"))
    source = sources.open_source(config, study.load(base / "sae"), 100)
    source.rows(slice(0, 1))


def read_truth(base: Path) -> None:
    digest = fingerprint(sha256_file(base / "toy" / TRUTH))  # a stranger makes it fit
    resealed("fingerprints", truth=digest)(base / "toy" / "manifest.json")
    context = context_of(config_of(base, activations_dir=str(base / "toy")))
    found = true_features.read(context)
    assert max_cosine(found, context.study.entries[0].decoder, 64).shape == (len(found),)


def read_answers(base: Path) -> None:
    asked = ("analysis=[interp]", "interp.base_url=http://localhost:1/v1", "interp.model=m")
    with llm.Client(composed("analyze", asked).interp, base / "answers.jsonl") as client:
        assert client.spent >= 0


def read_foreign(base: Path) -> None:
    found = imported.read(str(base / ONE)).dictionary
    found.decode(found.encode(np.zeros((2, len(found.W_enc)), np.float32)))


def read_study(base: Path) -> None:
    study.load(base / "sae")
    status.table(base).encode()


READERS: dict[Callable[[Path], None], list[str]] = {
    read_activations: ["activations/manifest.json", "activations/shard-00001.npy",
                       "activations/origin-00003.npy"],
    read_model: ["lm/lm.json", "lm/model.safetensors", "lm/tokenizer/ranks.tiktoken",
                 "lm/tokenizer/tokenizer.json"],
    read_tokens: ["tokens/one/manifest.json", "tokens/one/train-00000.npy",
                  "tokens/one/validation-documents.npy"],
    read_checkpoint: ["state.safetensors"],
    read_source: ["activations/manifest.json", f"{ONE}/metrics.json"],
    read_truth: ["toy/truth.safetensors"],
    read_answers: ["answers.jsonl"],
    read_dictionary: [f"{ONE}/cfg.json", f"{ONE}/sae_weights.safetensors",
                      f"{ONE}/features.safetensors"],
    read_foreign: [f"{ONE}/cfg.json", f"{ONE}/sae_weights.safetensors"],
    read_study: ["analysis/analysis.json", f"{ONE}/metrics.json"],
    read_interrupted: ["interrupted/checkpoint.safetensors"],
}  # fmt: skip
FILES = [(file, read) for read, files in READERS.items() for file in files]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Containers and keys of everything in a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, below in list(pairs):
        yield value, key
        if isinstance(below, dict | list):
            yield from places(below)


def mutated_json(data: bytes, rng: random.Random, value: Any) -> bytes:
    whole = json.loads(data)
    container, key = rng.choice(list(places(whole)))
    if rng.random() < 0.2:
        del container[key]
    else:
        container[key] = value
    return json.dumps(whole).encode()


def mutated(path: Path, rng: random.Random, value: Any) -> bytes:
    """The file with something changed: a value, the header, some bytes, or the end."""
    data = path.read_bytes()
    kind = rng.random()
    if kind < 0.6 and path.suffix in (".json", ".jsonl"):
        return mutated_json(data, rng, value)
    if kind < 0.6 and path.suffix == ".safetensors":
        (size,) = struct.unpack("<Q", data[:8])
        header = mutated_json(data[8 : 8 + size], rng, value)
        return struct.pack("<Q", len(header)) + header + data[8 + size :]
    if kind < 0.75 and path.suffix == ".npy":
        ends = {b"'": b'"', b"(": b"((((", b"<": b"|O", b"1": b"9999999999", b",": b"\n"}
        old = rng.choice(list(ends))
        return data[:12] + data[12:128].replace(old, ends[old], rng.randint(1, 3)) + data[128:]
    if kind < 0.8:
        return data[: rng.randrange(len(data))]
    if kind < 0.85:
        return rng.choice([b"", b"PK\x03\x04" + data, b"[" * 100_000, b"\x80\x04K\x01.", b"\xff"])
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(min(len(changed), rng.choice([16, 300, len(changed)])))
        changed[at] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize(("file", "read"), FILES)
@pytest.mark.parametrize("cases", [12, pytest.param(300, marks=pytest.mark.slow)])
def test_a_damaged_file_is_a_user_error_or_none(
    template: Path, copy: Path, file: str, read: Callable[[Path], None], cases: int
):

    @settings(
        max_examples=cases, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False), VALUES)
    def no_other_error(rng: random.Random, value: Any) -> None:
        (copy / file).write_bytes(mutated(template / file, rng, value))
        if file == "lm/model.safetensors":  # a stranger makes the fingerprint fit
            digest = lm_folder.fingerprint(copy / file)
            record = read_json(copy / "lm" / "lm.json")
            prints = record["fingerprints"] | {"model": digest}
            rest = {key: value for key, value in record.items() if key != SEAL}
            write_json(copy / "lm" / "lm.json", sealed(rest | {"fingerprints": prints}))
        with suppress(UserError):
            read(copy)

    no_other_error()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
    "Git's pointer": lambda path: path.write_bytes(LFS),
    "half a gigabyte of nothing": lambda path: (path.touch(), os.truncate(path, 1 << 29)),
}
WITHOUT = (read_study, read_source)  # which look elsewhere, or go on without it


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_a_user_error_or_none(template: Path, copy: Path, kind: str):
    """A reader that waits for a pipe or reads a device to its end does not come back."""
    for file, read in FILES:
        path = copy / file
        path.unlink()
        NO_FILES[kind](path)
        with suppress(UserError) if read in WITHOUT else pytest.raises(UserError):
            read(copy)
        status.table(copy)
        path.rmdir() if kind == "a folder" else path.unlink(missing_ok=True)
        shutil.copy(template / file, path)


@pytest.mark.slow
def test_verify_ends_with_an_exit_code_whatever_it_finds(
    template: Path, copy: Path, capsys: pytest.CaptureFixture[str]
):
    for path in copy.iterdir():  # what is in no study
        if path.name in ("tokens", "interrupted", "toy", "state.safetensors", "answers.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert verify.main([str(copy)]) == 0, capsys.readouterr().out
    rng = random.Random(0)
    for file in sorted({file for file, _ in FILES if (copy / file).exists()}):
        for _ in range(12):
            damaged = mutated(template / file, rng, rng.choice([None, "../x", 1e308]))
            (copy / file).write_bytes(damaged)
            assert verify.main([str(copy)]) in (0, 1)
        shutil.copy(template / file, copy / file)
    capsys.readouterr()


def test_a_record_names_no_folder_away_from_the_study(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The one thing that records say of other folders: where the model and the rows lay."""
    monkeypatch.setattr(store, "fingerprint_of", lambda _, prints: prints["activations"])
    base = tmp_path / "outputs" / "study"
    shutil.copytree(template, base)
    shutil.move(base / "lm", tmp_path / "elsewhere")
    manifest = base / "activations" / "manifest.json"
    for where, found in ((tmp_path / "outputs" / "other", True), (tmp_path / "elsewhere", False)):
        if found:
            shutil.copytree(tmp_path / "elsewhere", where)
        edited(lm_dir=str(where))(manifest)
        if found:
            read_source(base)
        else:
            with pytest.raises(UserError, match="set lm_dir"):
                read_source(base)


def test_nothing_that_is_read_can_name_what_is_run():
    """The sources instantiate by Hydra's configs alone, and read no format that runs code."""
    banned = re.compile(
        r"import pickle|pickle\.|torch\.save\(|torch\.load\((?!.*weights_only=True)|"
        r"(?<![.\w])(eval|exec)\(|yaml\.|"
        r"OmegaConf\.load|instantiate|allow_pickle=True|weights_only=False|trust_remote_code=True|shell=True"
    )
    for path in sorted((ROOT / "sparse_dict").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not banned.search(line.partition("#")[0]), f"{path}:{number}: {line}"
