"""A whole analysis, measured: wall time and peak memory of analyze.py.

    python benchmarks/analysis.py                     # analyze.py experiment=demo
    python benchmarks/analysis.py --study NAME        # another study in outputs/
    python benchmarks/analysis.py --sweep 1000        # of so many dictionaries, made for it

A sweep is made in outputs/sweep, of dictionaries of 128 to 512 features at many L1 and three seeds,
on the demo's activations: a part of their directions is common, the rest random. They are not
trained, and their FVU is made up: the time depends on neither. The result is appended to --out.
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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


SIZES = (128, 160, 208, 256, 320, 416, 512)
SEEDS = 3
ROWS = 4096  # on which codes are counted


def make_sweep(n: int, demo: Path, folder: Path) -> None:
    """Write about `n` dictionaries, with the records of a dictionary of the demo."""
    import numpy as np

    from sparse_dict.activations.store import Activations
    from sparse_dict.analysis.measures.mcs import normalised
    from sparse_dict.analysis.measures.random_directions import unit_vectors
    from sparse_dict.sae import folder as folders

    activations = Activations.open(demo / "activations")
    x, d = activations.read(activations.rows - ROWS, activations.rows), activations.d_in
    known = folders.read_metrics(next((demo / "sae").glob("*/metrics.json")).parent)
    common = unit_vectors(max(SIZES), d, np.random.default_rng(0))
    for level in range(round(n / len(SIZES) / SEEDS)):
        l1 = round(0.1 * 1.1**level, 4)
        for seed in range(SEEDS):
            rng = np.random.default_rng([level, seed])
            for size in SIZES:
                noise = rng.uniform(0, 1.5, (size, 1)).astype(np.float32)  # cosines of .55 to 1
                W_dec = normalised(common[:size] + noise * unit_vectors(size, d, rng))
                biases = -np.quantile(x @ W_dec.T, 1 - 8 / size, axis=0).astype(np.float32)
                made = folders.Dictionary(W_dec.T.copy(), biases, W_dec, np.zeros(d, np.float32))
                codes = made.encode(x) > 0
                config: Any = {**known["config"], "name": folder.name, "seed": seed}
                config["sae"] = {**config["sae"], "dict_size": size, "l1": l1}
                metrics = {**known, "config": config, "dict_size": size, "l1": l1, "seed": seed}
                metrics |= {"l0": float(codes.sum(1).mean()), "fvu": 0.1 + 0.001 * level}
                metrics |= {"eval_rows": ROWS, "dead": 0}
                name = f"sae.dict_size={size},sae.l1={l1},seed={seed}"
                folders.write(folder / "sae" / name, made, codes.sum(0), metrics, None)


def whole_analysis(name: str) -> dict[str, Any]:
    """Wall time and peak memory of analyze.py, all that is on by default but for tracking."""
    command = [sys.executable, "analyze.py", f"name={name}", "tracking.mode=disabled"]
    command += ["activations_dir=outputs/demo/activations", "lm_dir=outputs/demo/lm"]
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = time.perf_counter() - started
    record = json.loads((ROOT / "outputs" / name / "analysis" / "analysis.json").read_text())
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {
        "study": name,
        "dictionaries": len(record["dictionaries"]),
        "seconds": round(seconds, 1),
        "peak_MiB": peak,
    }


def main() -> None:
    """Measure and append the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--study", default="demo", help="a study in outputs/")
    parser.add_argument("--sweep", type=int, help="make about so many dictionaries first")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/analysis.jsonl")
    arguments = parser.parse_args()
    if arguments.sweep:
        arguments.study, outputs = "sweep", ROOT / "outputs"
        if not (outputs / "sweep" / "sae").exists():
            make_sweep(arguments.sweep, outputs / "demo", outputs / "sweep")
    found = whole_analysis(arguments.study)
    found |= {"cores": os.cpu_count(), "machine": platform.machine()}
    print(json.dumps(found))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
