"""The heat map of 64 random dictionaries of up to 8,192 features; and a whole analysis, measured.

    python benchmarks/analysis.py                     # MMCS of 64 random dictionaries, all pairs
    python benchmarks/analysis.py --study NAME        # analyze.py on outputs/NAME

The first makes random unit rows (`--sizes` x `--levels` x `--seeds`), on which the time does not
depend, and computes what the heat map and `mmcs.csv` show with plain maxima: every dictionary
against all larger ones of its chain, over all features and over living ones. The result is
appended to --out.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def random_study(sizes: list[int], levels: int, seeds: int, d: int) -> Any:
    """A study of random directions, of which nine tenths are alive."""
    import numpy as np

    from sparse_dict.analysis.measures.random_directions import unit_vectors
    from sparse_dict.analysis.study import Chain, Entry, Study

    rng = np.random.default_rng(0)
    chains = []
    for level in range(levels):
        for seed in range(seeds):
            entries = []
            for size in sizes:
                decoder = unit_vectors(size, d, rng)
                alive = (rng.random(size) < 0.9).astype(np.int64)
                trained: Any = SimpleNamespace(
                    dictionary=SimpleNamespace(W_dec=decoder), fire_count=alive,
                    metrics={"l1": float(level), "l1_scaling": "none"},
                )  # fmt: skip
                name = f"{size},{level},{seed}"
                entries.append(Entry(name, "", size, "l1", float(level), seed, trained))
            chains.append(Chain("", "l1", float(level), seed, tuple(entries)))
    every = tuple(entry for chain in chains for entry in chain.entries)
    return Study(ROOT, every, (), tuple(chains))


def heat_map(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds for MMCS against the next, the next two and all larger sizes."""
    from sparse_dict.analysis.comparison import VARIANTS, Comparison
    from sparse_dict.config import ComparisonConfig

    study = random_study(arguments.sizes, arguments.levels, arguments.seeds, arguments.d)
    started = time.perf_counter()
    settings = ComparisonConfig("max", "next", "all", 0.9, 2048, 2048, 0.25)
    comparison = Comparison(study, settings)
    plain = [variant for variant in VARIANTS if variant.matching == "max"]
    smaller = [entry for entry in study.entries if comparison.partners(entry, "next")]
    cells = [comparison.mcs(entry, variant).mean() for variant in plain for entry in smaller]
    seconds = time.perf_counter() - started
    return {
        "dictionaries": len(study.entries),
        "sizes": arguments.sizes,
        "d": arguments.d,
        "cells": len(cells),
        "seconds": round(seconds, 2),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def whole_analysis(name: str) -> dict[str, Any]:
    """Wall time and peak memory of analyze.py with all analyses on."""
    command = [sys.executable, "analyze.py", f"name={name}", "tracking.mode=offline"]
    command += [f"activations_dir={json.loads(_first(name))['config']['activations_dir']}"]
    command += ["lm_dir=outputs/demo/lm"]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    record = json.loads((ROOT / "outputs" / name / "analysis" / "analysis.json").read_text())
    return {
        "study": name,
        "dictionaries": len(record["dictionaries"]),
        "seconds": round(time.perf_counter() - started, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def _first(name: str) -> str:
    return next((ROOT / "outputs" / name / "sae").glob("*/metrics.json")).read_text()


def main() -> None:
    """Measure and append the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--study", help="a study in outputs/")
    parser.add_argument("--sizes", type=lambda text: [int(size) for size in text.split(",")],
                        default=[64, 128, 256, 512, 1024, 2048, 4096, 8192])  # fmt: skip
    parser.add_argument("--levels", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--d", type=int, default=128)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/analysis.jsonl")
    arguments = parser.parse_args()
    found = whole_analysis(arguments.study) if arguments.study else heat_map(arguments)
    found |= {"cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps(found))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
