"""What 32 Weights & Biases runs, open at once in one ensemble, cost a training.

    python benchmarks/tracking.py

Trains the demo's grid with `tracking.mode` offline and disabled in turn, each in a process of its
own, and times `train_many`: opening the runs, training, evaluation, writing, finishing the runs,
and with offline the import of wandb. Needs the activations of `make demo`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sae_contestants import Task, configs  # noqa: E402
from benchmarks.sae_cpu import machine  # noqa: E402


def train(mode: str, task: Task) -> float:
    """Seconds of a whole training in this process."""
    from sparse_dict.sae import ensemble, evaluate, stage, step_cpu  # noqa: F401  untimed

    step_cpu.load(step_cpu.padded(128))
    with tempfile.TemporaryDirectory() as folder:
        grid = configs(task, folder, tracking=mode)
        start = time.perf_counter()
        outcomes = stage.train_many(grid, [Path(folder) / str(i) for i in range(len(grid))])
        seconds = time.perf_counter() - start
        assert all(isinstance(outcome, dict) for outcome in outcomes)
        runs = len(list(Path(folder).glob("wandb/offline-run-*")))
        assert runs == (len(grid) if mode == "offline" else 0), runs
    return seconds


def main() -> None:
    """Parse the command line, alternate between the two modes, print and append the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5860, help="5860 are the demo's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    parser.add_argument("--activations", type=Path, default=ROOT / "outputs/demo/activations")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/tracking.jsonl")
    args = parser.parse_args()
    if args.mode:
        task = Task(
            sizes=[64, 128, 256, 512], l1=[1e-2, 2e-2, 4e-2, 8e-2], repeat=2, batch=512,
            steps=args.steps, activations=str(args.activations),
        )  # fmt: skip
        print(f"RESULT {train(args.mode, task)}")
        return
    seconds: dict[str, list[float]] = {"disabled": [], "offline": []}
    for number in range(1, args.rounds + 1):
        for mode in seconds:
            command = [sys.executable, __file__, "--mode", mode, "--steps", str(args.steps)]
            command += ["--activations", str(args.activations)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{mode} failed:\n{done.stderr[-2000:]}")
            seconds[mode].append(float(lines[-1].removeprefix("RESULT ")))
            print(f"round {number} {mode}: {seconds[mode][-1]:.2f} s", flush=True)
    pairs = zip(seconds["offline"], seconds["disabled"], strict=True)
    overhead = statistics.median(offline / disabled - 1 for offline, disabled in pairs)
    print(f"32 runs offline: {overhead:+.1%} of {statistics.median(seconds['disabled']):.1f} s")
    result = {"machine": machine(), "steps": args.steps, "seconds": seconds, "overhead": overhead}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
