"""The folder of a language model: what is in it, and how it is loaded."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from sparse_dict.annotations import GPT, Device, OpenLM, Tokenizer
from sparse_dict.config import ModelConfig
from sparse_dict.config.sites import Site
from sparse_dict.errors import MALFORMED, UserError, advising, one_line
from sparse_dict.storage import files, records, tensor_files
from sparse_dict.storage.records import Amount, Count, Line, Number

FORMAT_VERSION = 1
RECORD = "lm.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer"
HISTORY = "history.csv"
HASHED = (HISTORY,)  # their SHA-256 is in the record
PRINTED = (WEIGHTS, *(f"{TOKENIZER}/{name}" for name in ("ranks.tiktoken", "tokenizer.json")))
CHECKPOINT = Path("checkpoint") / "state.safetensors"


class Prints(TypedDict):
    """What the model is, and what it was made from."""

    model: Line
    tokenizer: Line
    corpus: Line


class Record(TypedDict):
    """`lm.json`; what only `status` and `verify` read may be missing."""

    format_version: Literal[1]
    n_vocab: Count
    config: dict[str, Any]  # what was asked for
    corpus: dict[str, Any]
    fingerprints: Prints
    losses: NotRequired[dict[str, Number]]  # in nats a token
    steps: NotRequired[Count]
    seconds: NotRequired[Amount]
    sha256: NotRequired[records.Texts]


@dataclass
class LoadedLM:
    """A finished language model."""

    model: GPT
    tokenizer: Tokenizer
    record: Record

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(**self.record["config"]["model"])


def read_record(lm_dir: Path) -> Record:
    """`lm.json` of a finished language model, its types checked."""
    path = lm_dir / RECORD
    if not path.exists():
        if (lm_dir / CHECKPOINT).exists():
            raise UserError(f"{lm_dir} is not trained to the end: run train_lm.py again")
        raise UserError(f"{lm_dir} holds no language model ({RECORD}): run train_lm.py first")
    with _again(lm_dir):
        record = records.read(path, Record)
        if not files.is_sealed(record):
            raise UserError(f"{path} has changed since it was written")
        return record


def _again(lm_dir: Path) -> AbstractContextManager[None]:
    return advising(f"delete {lm_dir / RECORD} and run train_lm.py again")


def load(lm_dir: str | Path, device: Device | str = "cpu") -> LoadedLM:
    """The language model in `lm_dir`, in evaluation mode on `device`."""
    import torch

    from sparse_dict.lm.model import GPT
    from sparse_dict.text.tokenizer import Tokenizer

    lm_dir = Path(lm_dir)
    record, path = read_record(lm_dir), lm_dir / WEIGHTS
    with _again(lm_dir):
        if fingerprint(path) != record["fingerprints"]["model"]:
            raise UserError(f"{path} is not the file that {RECORD} describes")
        arrays = tensor_files.read(path)
        try:
            shape = ModelConfig(**record["config"]["model"])
            tensors = {name: torch.tensor(array) for name, array in arrays.items()}  # aligned
            mlps = ((f"blocks.{i}.mlp_in", shape.d_mlp) for i in range(shape.n_layers))
            tables = ("embed", record["n_vocab"]), ("positions", shape.n_ctx)
            for name, rows in chain(tables, mlps):  # before anything of a claimed size is made
                if tuple(tensors[f"{name}.weight"].shape) != (rows, shape.d_model):
                    raise RuntimeError(f"{name} is not {rows} x {shape.d_model}")
            with torch.random.fork_rng(devices=[]):  # initial values are drawn, and replaced
                model = GPT(shape, record["n_vocab"])
            model.load_state_dict(tensors, assign=True)
        except (RuntimeError, *MALFORMED) as error:
            raise UserError(f"{path} cannot be loaded: {one_line(error)}") from None
        tokenizer = Tokenizer.load(lm_dir / TOKENIZER, record["fingerprints"]["tokenizer"])
    return LoadedLM(model.eval().to(device), tokenizer, record)


def hf() -> ModuleType:
    """The module that knows models of transformers; it has the functions below as well."""
    try:
        from sparse_dict.lm import hf_source as module
    except ImportError as error:
        raise UserError(f"lm=hf needs {error.name}: pip install -e '.[hf]'") from None
    return module


def check(lm_dir: Path, sites: Sequence[Site]) -> int:
    """See that the language model is there and has the sites; the length of its contexts."""
    n_layers, n_ctx = (read_record(lm_dir)["config"]["model"][k] for k in ("n_layers", "n_ctx"))
    for site in sites:
        if site.layer is None:
            raise UserError(f"harvest: {site} is a module's path, which needs lm=hf")
        if site.layer >= n_layers:
            raise UserError(f"harvest: no {site}: {lm_dir} has layers 0 to {n_layers - 1}")
    return n_ctx


def prints(lm_dir: Path) -> dict[str, str]:
    """The fingerprints of the language model and of its tokenizer."""
    found = read_record(lm_dir)["fingerprints"]
    return {"model": found["model"], "tokenizer": found["tokenizer"]}


def opened(lm_dir: Path, device: Device | str = "cpu") -> OpenLM:
    """The language model, with its tokenizer, as the harvest and the analyses ask of it."""
    from sparse_dict.lm.interface import OpenLM

    lm = load(lm_dir, device)
    return OpenLM(lm.model, lm.tokenizer, lm.config.n_ctx)


def noted(lm_dir: Path) -> dict[str, str]:
    """What a harvest's manifest says of where the model lies."""
    return {"lm_dir": str(lm_dir)}


def source(lm_dir: Path) -> Path:
    """What there is to see of the model."""
    return lm_dir / RECORD


def fingerprint(weights: Path) -> str:
    """The fingerprint of a weights file."""
    return files.fingerprint(files.sha256_file(weights))
