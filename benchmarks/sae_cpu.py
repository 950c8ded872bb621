"""Train a grid of dictionaries on two CPU cores: this project against its peers.

    python benchmarks/sae_cpu.py                       # 128..1024 x 4 l1, 16 dictionaries
    python benchmarks/sae_cpu.py --batch 64,256,2048 --warm 200 --steps 20
    python benchmarks/sae_cpu.py --sizes 512,1024,2048,4096,8192 --l1 4e-2 --warm 400 --steps 50
    python benchmarks/sae_cpu.py --ladder              # what each step towards ours bought
    python benchmarks/sae_cpu.py --curve               # cost per dictionary, 1 to 64 of them
    python benchmarks/sae_cpu.py --memory              # peak memory at two lengths of training
    python benchmarks/sae_cpu.py --precision           # what bf16 selection changes
    python benchmarks/sae_cpu.py --kinds               # other kinds of dictionaries, without peers

Needs the activations of `make demo` and, for the peers, `pip install sae-lens
dictionary-learning`. Every contestant (`sae_contestants.py`) runs in a process of its own, one at
a time, in turn for several rounds; its training alone is timed: not imports, what peers read into
memory beforehand, or evaluation. FVU and L0 are those of the final weights on held-out rows.
`--warm N` lets ours train N steps first, untimed, and hands its weights and Adam moments to all:
what is timed then runs at the sparsity that a training spends its time at. Steps are counted in
batches of 2,048 rows: smaller batches make more of them, over the same rows. The floor that is
printed is what no step can do without (`sae_contestants.floor`). The result is appended as a line
of JSON to --out.
"""

import argparse
import itertools
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sae_contestants import CONTESTANTS, Task, warm_up  # noqa: E402

PEERS = ["ours", "dictionary_learning", "sae_lens"]
LADDER = [
    "autograd", "autograd, memory kept", "closed form, dense", "ours, one thread", "ours",
    "ours, bf16 selection",
]  # fmt: skip
KINDS = ["ours", "ours, bf16 selection", "ours, TopK", "ours, gated"]
MIB = 2**20


def contest(name: str, task: Task) -> None:
    """Run one contestant, or the warm-up, in this process and print its result."""
    if name == "warm-up":
        assert task.start
        warm_up(task, Path(task.start))
        result = {}
    else:
        result = CONTESTANTS[name](task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({**result, "peak_mib": peak}))


def run(name: str, task: Task) -> dict[str, Any]:
    """Run one contestant in a process of its own."""
    command = [sys.executable, __file__, "--contestant", name, json.dumps(asdict(task))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def described(task: Task) -> dict[str, Any]:
    """What was trained, without this machine's paths."""
    return {k: v for k, v in asdict(task).items() if k not in ("activations", "start", "keep")}


def machine() -> str:
    """The processor's name and the number of cores."""
    try:
        names = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s]
        return f"{names[0].split(': ')[1]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor()


def gaps(result: dict[str, Any], reference: dict[str, Any]) -> dict[str, float]:
    """The largest relative difference of any dictionary's FVU and L0."""
    return {
        key: max(abs(a / b - 1) for a, b in zip(result[key], reference[key], strict=True))
        for key in ("fvu", "l0")
    }


def compare(task: Task, contestants: list[str], rounds: int) -> dict[str, Any]:
    """All contestants in turn for several rounds; prints medians and ratios."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name in contestants:
            runs[name].append(run(name, task))
            print(f"round {number} {name}: {runs[name][-1]['seconds']:.2f} s", flush=True)
    floor = run("floor", task) if task.device == "cpu" else {}
    print(
        f"\nbatch {task.batch}; floor, ms a step: "
        + ", ".join(f"{kind} {ms:.2f}" for kind, ms in floor.items() if kind != "peak_mib")
    )
    print(f"{'contestant':<22} {'rows/s':>8} {'x ours':>7} {'x CPU s':>7} {'peak MiB':>9} "
          f"{'FVU gap':>8} {'L0 gap':>8}  L0")  # fmt: skip
    table = {}
    for name in contestants:
        seconds = [r["seconds"] for r in runs[name]]
        ratio, cpu_ratio = (
            statistics.median(r[k] / o[k] for r, o in zip(runs[name], runs["ours"], strict=True))
            for k in ("seconds", "cpu_seconds")
        )
        last = runs[name][-1]
        table[name] = {
            "rows_per_second": task.steps * task.batch / statistics.median(seconds),
            "ratio": ratio, "cpu_ratio": cpu_ratio, "gaps": gaps(last, runs["ours"][-1]),
            "all_seconds": seconds, **last,
        }  # fmt: skip
        print(f"{name:<22} {table[name]['rows_per_second']:>8.0f} {ratio:>7.2f} "
              f"{cpu_ratio:>7.2f} {last['peak_mib']:>9.0f} {table[name]['gaps']['fvu']:>8.2%} "
              f"{table[name]['gaps']['l0']:>8.2%}  "
              f"{min(last['l0']):.1f}-{max(last['l0']):.1f}")  # fmt: skip
    return {"mode": "compare", "task": described(task), "floor": floor, "contestants": table}


def at_batch(task: Task, batch: int) -> Task:
    """The same rows in batches of another size."""
    times = task.batch / batch
    return replace(
        task, batch=batch, steps=round(task.steps * times), warm=round(task.warm * times)
    )


def curve(task: Task, rounds: int) -> dict[str, Any]:
    """Seconds per dictionary for ensembles of growing number, interleaved."""
    counts = (1, 4, 16, 64)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            part = replace(task, repeat=count)
            if task.warm:
                with tempfile.TemporaryDirectory() as folder:
                    part.start = str(Path(folder) / "start.safetensors")
                    run("warm-up", part)
                    seconds[count].append(run("ours", part)["seconds"] / count)
            else:
                seconds[count].append(run("ours", part)["seconds"] / count)
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    for count, value in medians.items():
        print(f"{count:>3} dictionaries of {task.sizes[0]}: {value:.3f} s each")
    return {"mode": "curve", "task": described(task), "seconds_each": medians, "all": seconds}


def memory(task: Task) -> dict[str, Any]:
    """Peak memory of ours above what imports take, at `task.steps` and at four times as many.

    ``own`` is what the process allocated; files that are mapped, the activations, come on top in
    ``with files``: the kernel takes those pages back when it needs them.
    """
    parameters = 4 * sum(size * (2 * task.width + 1) for size in task.sizes) * len(task.l1) / MIB
    chunk = (
        4 * task.batch * task.width * 3 / MIB
    )  # the batch, the one read ahead, and its stored form
    allowed = chunk + 6 * parameters + 256
    result: dict[str, Any] = {"allowed_mib": allowed, "parameters_mib": parameters}
    print(f"parameters {parameters:.0f} MiB; chunk + 6 x parameters + 256 = {allowed:.0f} MiB")
    for steps in (task.steps, 4 * task.steps):
        found = run("ours", replace(task, steps=steps, sample_memory=True))
        result[str(steps)] = {k: found[k] for k in ("own_mib", "with_mapped_files_mib", "peak_mib")}
        print(f"{steps:>6} steps: own {found['own_mib']:.0f} MiB above imports, with files "
              f"{found['with_mapped_files_mib']:.0f}; all of the process "
              f"{found['peak_mib']:.0f}")  # fmt: skip
    return {"mode": "memory", "task": described(task), **result}


def precision(task: Task) -> dict[str, Any]:
    """Whole trainings in float32 and with bf16 selection: FVU, L0, MMCS and seconds.

    MMCS: of each dictionary with the next size of the same seed, and of equal dictionaries of two
    precisions; beside it that of two seeds.
    """
    from sparse_dict.analysis.measures.mcs import max_cosine, normalised
    from sparse_dict.sae import folder as folders

    result: dict[str, Any] = {"mode": "precision", "task": described(task), "rows": []}
    kinds = {"fp32": "ours", "bf16": "ours, bf16 selection"}
    with tempfile.TemporaryDirectory() as keep:
        seconds = {}
        for short, name in kinds.items():
            found = run(name, replace(task, repeat=2, keep=f"{keep}/{short}"))
            seconds[short] = found["seconds"]
        grid = list(itertools.product(task.sizes, task.l1, range(2)))

        def decoder(kind: str, size: int, l1: float, seed: int) -> Any:
            read = folders.read(Path(keep) / kind / str(grid.index((size, l1, seed))))
            return normalised(read.dictionary.W_dec), read.metrics

        print(f"{'size':>5} {'l1':>7}  {'FVU':>15}  {'L0':>15}  {'MMCS next size':>15}  "
              f"{'fp32 with bf16':>14}  {'two seeds':>9}")  # fmt: skip
        for size, larger in zip(task.sizes, [*task.sizes[1:], None], strict=True):
            for l1 in task.l1:
                row: dict[str, Any] = {"size": size, "l1": l1}
                for kind in kinds:
                    both = [decoder(kind, size, l1, seed) for seed in range(2)]
                    for key in ("fvu", "l0"):
                        row[f"{kind}_{key}"] = statistics.mean(m[key] for _, m in both)
                    if larger:
                        next_ = [decoder(kind, larger, l1, seed)[0] for seed in range(2)]
                        row[f"{kind}_mmcs"] = statistics.mean(
                            float(max_cosine(rows, others, 512).mean())
                            for (rows, _), others in zip(both, next_, strict=True)
                        )
                here = decoder("fp32", size, l1, 0)[0]
                for key, other in (
                    ("mmcs_of_precisions", decoder("bf16", size, l1, 0)[0]),
                    ("mmcs_of_seeds", decoder("fp32", size, l1, 1)[0]),
                ):
                    row[key] = float(max_cosine(here, other, 512).mean())
                result["rows"].append(row)
                pairs = {
                    key: f"{row.get('fp32_' + key, float('nan')):.4f} "
                    f"{row.get('bf16_' + key, float('nan')):.4f}"
                    for key in ("fvu", "l0", "mmcs")
                }
                print(f"{size:>5} {l1:>7.0e}  {pairs['fvu']:>15}  {pairs['l0']:>15}  "
                      f"{pairs['mmcs']:>15}  {row['mmcs_of_precisions']:>14.4f}  "
                      f"{row['mmcs_of_seeds']:>9.4f}")  # fmt: skip
    print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()))
    return {**result, "seconds": seconds}


def main() -> None:
    """Parse the command line and run what it asks for."""
    if sys.argv[1:2] == ["--contestant"]:
        contest(sys.argv[2], Task(**json.loads(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    split = lambda cast: lambda text: [cast(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--sizes", type=split(int))
    parser.add_argument("--l1", type=split(float), default=[1e-2, 2e-2, 3e-2, 6e-2])
    parser.add_argument("--batch", type=split(int), default=[2048], help="one or, to compare, more")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warm", type=int, default=0)
    parser.add_argument("--start", type=Path, help="keep the state behind --warm, or use it again")
    parser.add_argument("--rounds", type=int, default=3)
    mode = parser.add_mutually_exclusive_group()
    for name in ("ladder", "curve", "memory", "precision", "kinds"):
        mode.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sae_cpu.jsonl")
    parser.add_argument("--activations", type=Path, default=ROOT / "outputs/demo/activations")
    args = parser.parse_args()
    task = Task(
        sizes=args.sizes or ([512] if args.curve else [128, 256, 512, 1024]),
        l1=args.l1[2:3] if args.curve else args.l1,
        batch=2048, steps=args.steps, warm=args.warm, activations=str(args.activations),
    )  # fmt: skip
    tasks = [at_batch(task, batch) for batch in args.batch]
    contestants = LADDER if args.ladder else KINDS if args.kinds else PEERS
    results = []
    for task in tasks:
        if args.curve:
            results.append(curve(task, args.rounds))
        elif args.memory:
            results.append(memory(task))
        elif args.precision:
            results.append(precision(task))
        else:
            with tempfile.TemporaryDirectory() as folder:
                if task.warm:
                    path = args.start or Path(folder) / "start.safetensors"
                    task.start = str(path)
                    if not path.exists():
                        run("warm-up", task)
                results.append(compare(task, contestants, args.rounds))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        for result in results:
            file.write(json.dumps({"machine": machine(), **result}) + "\n")


if __name__ == "__main__":
    main()
