"""Makes studies of dictionaries whose shared features are known, in the format of stage 3."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from sparse_dict.analysis import study
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measured.three_tables import measure
from sparse_dict.analysis.report import figures
from sparse_dict.config import ComparisonConfig, NoSettings, TrackingConfig, analyze_schema

EVAL_ROWS = 10_000


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def directions(n: int, d: int, seed: int) -> NDArray[np.float32]:
    return unit(np.random.default_rng(seed).standard_normal((n, d)))


def settings_of(**changes: Any) -> ComparisonConfig:
    values = {
        "matching": "max", "against": "next", "features": "all", "threshold": 0.9,
        "block_rows": 50, "match_limit": 2048, "max_fvu": 0.25, **changes,
    }  # fmt: skip
    return ComparisonConfig(**values)


def config_of(base: Path, *chosen: str, **changes: Any) -> Any:
    """Stage 4's config of the study in `base` with the analyses `chosen`; `changes` are its keys.

    Among them may be sections of analyses that have settings.
    """
    values = dict(
        name="fake", study_dir=str(base), device="cpu", seed=0, sae_dir=str(base / "sae"),
        tracking=TrackingConfig(mode="disabled", project="p", entity=None, tags=[]),
        activations_dir=str(base / "activations"), lm_dir=str(base / "lm"),
        cache_dir=str(base / "cache"), analysis_dir=str(base / "analysis"),
        comparison=settings_of(), **dict.fromkeys(chosen, NoSettings()),
    )  # fmt: skip
    return analyze_schema()(**values | changes)


def drawn(_key: str, figure: Any) -> None:
    """A figure that could be drawn, without its file."""
    figure.canvas.draw()
    figures.plt.close(figure)


def context_of(config: Any, draw: Any = drawn) -> Context:
    return Context(config, study.load(Path(config.sae_dir)), draw)


def tabled(config: Any) -> Context:
    """The context with the three tables, without what analyses measure besides."""
    context = context_of(config)
    comparisons = [*context.comparisons.values()]
    context.tables = measure(comparisons, config.name, context.fingerprints, False)
    return context


def compared(sae_dir: Path, *chosen: str, draw: Any = drawn, **comparison: Any) -> Context:
    """The context of the dictionaries in `sae_dir`, compared by these settings."""
    changes = {"comparison": settings_of(**comparison), "sae_dir": str(sae_dir)}
    return context_of(config_of(sae_dir, *chosen, **changes), draw)


def write_dictionary(
    folder: Path,
    decoder: NDArray[np.float32],
    fire_count: NDArray[np.int64],
    *,
    encoder: NDArray[np.float32] | None = None,
    l1: float = 0.03,
    seed: int = 0,
    sae: Mapping[str, Any] | None = None,
    **metrics: Any,
) -> Path:
    """A finished dictionary's folder; `encoder` has a row a feature, like `decoder`.

    `sae` holds settings of its config that have no place of their own in `metrics.json`.
    """
    size, d_in = decoder.shape
    folder.mkdir(parents=True, exist_ok=True)
    encoder = decoder if encoder is None else encoder
    tensors = {
        "W_enc": np.ascontiguousarray(encoder.T),
        "b_enc": np.zeros(size, np.float32),
        "W_dec": decoder,
        "b_dec": np.zeros(d_in, np.float32),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    save_file({"fire_count": fire_count}, folder / "features.safetensors")
    (folder / "cfg.json").write_text("{}")
    known = {
        "dict_size": size, "l1": l1, "seed": seed, "tied": False, "l1_scaling": "none",
        "activation": "relu", "d_in": d_in, "mse": 0.1, "fvu": 0.12, "l0": 7.5, "l1_norm": 3.0,
        "dead": int((fire_count == 0).sum()), "eval_rows": EVAL_ROWS, "n_activations": 1_000_000,
        "seconds": 1.5, "fingerprints": {"activations": "0123456789abcdef"},
    }  # fmt: skip
    known |= metrics
    config = {
        "name": "fake", "seed": seed, "device": "cpu",
        "sae": {"dict_size": size, "l1": l1, "tied": known["tied"],
                "l1_scaling": known["l1_scaling"], "activation": known["activation"],
                **(sae or {})},
        "training": {"batch_size": 256, "log_every": 10},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps({"config": config, **known}))
    return folder


def write_study(
    sae_dir: Path,
    sizes: Sequence[int] = (32, 64, 128),
    l1s: Sequence[float] = (0.03,),
    seeds: Sequence[int] = (0,),
    d: int = 32,
    noise: float = 0.03,
    extra: Mapping[str, Any] | None = None,
    prefix: str = "",
) -> None:
    """Dictionaries that hold some of the same true features, the others random directions.

    How many depends on L1, best in the middle of `l1s` (for l1_scaling=dict_size: at an L1 that
    grows with the size), which is also the largest whose FVU is below .25 if the next is 1.8 times
    as large. Rare features are never active.
    """
    extra = dict(extra or {})
    truth = unit(np.random.default_rng(99).standard_normal((max(sizes), d)))
    for size in sizes:
        for l1 in l1s:
            for seed in seeds:
                rng = np.random.default_rng([size, int(l1 * 1e6), seed, len(prefix)])
                best = np.log(np.median(l1s))
                if extra.get("l1_scaling") == "dict_size":
                    best += np.log(size) - np.mean(np.log(sizes))
                off = (np.log(l1) - best) / np.log(10)
                share = 0.75 * np.exp(-(off**2) / 0.5) * (min(sizes) / size) ** 0.35
                k = int(share * size)
                rows = rng.standard_normal((size, d)) / np.sqrt(d)
                rows[:k] = truth[:k] + noise * rng.standard_normal((k, d))
                count = (EVAL_ROWS * 10 ** rng.uniform(-3.6, -0.3, size)).astype(np.int64)
                count[k:][rng.random(size - k) < 0.3] = 0
                order = rng.permutation(size)
                write_dictionary(
                    sae_dir / f"{prefix}sae.dict_size={size},sae.l1={l1},seed={seed}",
                    unit(rows)[order], count[order], l1=l1, seed=seed,
                    fvu=float(0.2 * (l1 / np.exp(best)) ** 0.4), l0=float(0.5 / l1**0.6), **extra,
                )  # fmt: skip


def grown(
    folder: Path,
    shared: Mapping[int, int],
    d: int = 64,
    dead: float = 0.0,
    seeds: Sequence[int] = (0,),
) -> Context:
    """Sizes with so many features that all have, if they have as many; the others are random.

    `dead` is the share of the latter that were never active.
    """
    truth = directions(max(shared.values()), d, 1)
    for size, n in shared.items():
        for seed in seeds:
            rows = np.concatenate([truth[:n], directions(size - n, d, 1000 * seed + size)])
            count = np.ones(size, np.int64)
            count[n : n + int(dead * (size - n))] = 0
            write_dictionary(folder / f"{size},{seed}", rows, count, seed=seed)
    return compared(folder)
