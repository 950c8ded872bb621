"""The smallest study that has all stages, for processes that are killed and started again."""

import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from sparse_dict import config as _config  # registers the schemas
from sparse_dict.launch import jobs
from sparse_dict.tracking import ID_FILE

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train_lm": "lm", "harvest": "activations", "train_sae": "sae", "analyze": "analysis"}
# One thread everywhere: another number of them rounds differently.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
GRID = [("sae.dict_size=32", "seed=0"), ("sae.dict_size=32", "seed=1"), ("sae.dict_size=48",)]

SETTINGS = {
    "train_lm": [
        "tokenizer=bpe", "tokenizer.vocab_size=300", "tokenizer.train_chars=100000",
        "model.n_layers=2", "model.n_heads=2", "model.d_model=8", "model.d_mlp=16",
        "model.n_ctx=16", "training.n_tokens=3840", "training.batch_size=8",
        "training.eval_every=10", "training.eval_tokens=500", "training.checkpoint_every=2",
    ],
    "harvest": ["harvest.layer=1", "harvest.n_tokens=1000", "harvest.shard_rows=300"],
    "train_sae": [
        "training.n_activations=6400", "training.batch_size=128", "training.eval_rows=128",
        "training.log_every=10", "training.checkpoint_every=5", "training.snapshots=3",
    ],
    "analyze": ["analysis=[claims,heatmap,sparsity,frontier]"],
}  # fmt: skip


def write_corpus(path: Path, n: int = 400) -> None:
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    with path.open("w") as file:
        for i in range(n):
            text = " ".join(rng.choice(words, size=30))
            file.write(json.dumps({"text": f"{i} {text}."}) + "\n")


def overrides(name: str, base: Path) -> list[str]:
    common = [
        "name=tiny", f"study_dir={base}", "device=cpu", "tracking.mode=disabled", *SETTINGS[name],
    ]  # fmt: skip
    if name in ("train_lm", "harvest"):
        common += ["data=files", f"data.files={base.parent}/text.jsonl", "data.val_fraction=0.3"]
    if name != "train_sae":
        common.append(f"cache_dir={base.parent}/cache")
    return common


def command(name: str, base: Path, *more: str) -> list[str]:
    """The script's command line."""
    return [sys.executable, str(ROOT / f"{name}.py"), *overrides(name, base), *more]


@functools.cache
def composed(name: str, arguments: tuple[str, ...]) -> Any:
    """The typed config of overrides."""
    with initialize_config_dir(str(_config.CONF_DIR), version_base="1.3"):
        return jobs.typed(compose(name, list(arguments)))


@functools.cache
def call(name: str, base: Path) -> Callable[[], Any]:
    """What the script would run, without Hydra's own files."""
    module = jobs.module(name)
    arguments = tuple(overrides(name, base))
    if name != "train_sae":
        return functools.partial(module.run, composed(name, arguments))
    configs = [composed(name, (*arguments, *job)) for job in GRID]
    folders = [base / "sae" / ",".join(job) for job in GRID]

    def train() -> None:
        for outcome in module.train_many(configs, folders):
            if isinstance(outcome, Exception):
                raise outcome

    return train


def contents(folder: Path) -> dict[str, str]:
    """Hash of each file, without what tells of time, speed, processes or tracking."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(_timeless(path)).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".log" and ".hydra" not in path.parts
        if path.name not in (".lock", "multirun.yaml", ID_FILE)
    }


def _timeless(path: Path) -> bytes:
    data = path.read_bytes()
    if path.name in ("lm.json", "metrics.json", "analysis.json"):
        values = json.loads(data)
        # killed while the last files were written, dictionaries are finished apart
        for key in ("seconds", "tokens_per_second", "trained_together", "fingerprint"):
            values.pop(key, None)
        values.get("config", {}).pop("tracking", None)
        for name in ("history.csv", "report.html"):  # which tell of time themselves
            values.get("sha256", {}).pop(name, None)
        return json.dumps(values).encode()
    if path.name == "history.csv" and b"activations_per_second" in data:
        return re.sub(rb",[^,\n]*\n", b"\n", data)
    if path.name == "report.html":
        tracking = rb"mode&#34;: &#34;(disabled|offline)&#34;|label&#34;: (null|&#34;[^&]*&#34;)"
        return re.sub(rb"analysed in \d+ s|" + tracking, b"", data)
    return data
