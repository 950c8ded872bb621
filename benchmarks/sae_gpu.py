"""Train 64 dictionaries on one GPU: this project against its peers.

    python benchmarks/sae_gpu.py        # 512..4096 x 4 l1 x 4 seeds
    python benchmarks/sae_gpu.py --step # ms a step with and without a graph, no peers

Needs a GPU, the activations of a study and, for the peers, `pip install sae-lens
dictionary-learning`. As in `sae_cpu.py`, whose contestants these are, each runs in a process of its
own, in turn. All rows lie on the GPU beforehand for the peers; ours reads them from disk while it
is timed. What `torch.compile` takes is not timed. The last lines are the share of the GPU's bf16
peak that ours reaches: the five products of a step, 10 * d_in * dict_size FLOP a row, against one
large product.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sae_contestants import Task, configs  # noqa: E402
from benchmarks.sae_cpu import compare  # noqa: E402

OURS = ["ours", "ours, compiled", "ours, compiled, bf16"]
PEERS = ["dictionary_learning", "sae_lens"]
WARM = 20  # steps that are not timed


def bf16_peak(size: int = 8192, products: int = 50) -> float:
    """FLOP per second of one large bf16 product."""
    import torch

    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    out = torch.empty_like(a)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i in range(2 * products):  # the first half is not timed
        if i == products:
            start.record()
        torch.mm(a, a, out=out)
    end.record()
    torch.cuda.synchronize()
    return products * 2 * size**3 / (start.elapsed_time(end) / 1000)


def step(task: Task, count: int, *, graph: bool = True, compiled: bool = False, **sae: str) -> dict:
    """Milliseconds of one step of all dictionaries of `task`, in this process.

    `host_ms` is when Python is through with a step: the device is waited for at the end alone.
    """
    import torch

    from sparse_dict.activations.store import Activations
    from sparse_dict.sae import step_torch
    from sparse_dict.sae.batches import batches
    from sparse_dict.sae.rows import Rows
    from sparse_dict.sae.scaling import Scaling
    from sparse_dict.sae.schedule import hyper
    from sparse_dict.sae.state import State

    activations, device = Activations.open(Path(task.activations)), torch.device(task.device)
    grid = configs(task, "unused", **sae)
    usual = step_torch.BEFORE_CAPTURE
    step_torch.BEFORE_CAPTURE = usual if graph else 10**9
    width = activations.d_in
    states = [State.initial(config, width, width, device) for config in grid]
    dense = step_torch.DenseStep(states, compiled=compiled)
    feed = batches(
        Rows(activations, grid[0].training), Scaling.of(grid[0].activations, activations), device,
        batch_size=task.batch, first_step=0, last_step=count,
    )  # fmt: skip
    marks = []
    for number, x in enumerate(feed, start=1):
        if number in (1, WARM + 1):
            torch.cuda.synchronize()
            marks.append(time.perf_counter())
        dense(x, x, [hyper(config, number, width) for config in grid], number * task.batch)
    marks.append(time.perf_counter())
    torch.cuda.synchronize()
    marks.append(time.perf_counter())
    step_torch.BEFORE_CAPTURE = usual
    ms, host_ms = (1e3 * (end - marks[1]) / (count - WARM) for end in (marks[3], marks[2]))
    return {
        "dictionaries": len(grid), "batch": task.batch, "graph": graph, "compiled": compiled, **sae,
        "ms": ms, "host_ms": host_ms, "rows_per_second": 1e3 * task.batch / ms,
        "first_steps_s": marks[1] - marks[0],
    }  # fmt: skip


def steps(activations: str) -> list[dict]:
    """The recorded run's grid (docs/reproduction.md), one dictionary, and 64 at large batches."""
    paper = Task(
        sizes=[2**n for n in range(7, 14)], l1=[5e-3, 1.5e-2], repeat=2, batch=256, steps=10**5,
        activations=activations, device="cuda:0",
    )  # fmt: skip
    one = replace(paper, sizes=[512], l1=[5e-3], repeat=1)
    large = replace(
        paper, sizes=[512, 1024, 2048, 4096], l1=[1e-2, 2e-2, 3e-2, 6e-2], repeat=4, batch=2048
    )
    runs: list[tuple[Task, int, dict[str, Any]]] = [
        (paper, 200, {"graph": False}), (paper, 800, {}), (paper, 400, {"precision": "bf16"}),
        (one, 400, {"graph": False}), (one, 400, {}),
        (large, 100, {"graph": False}), (large, 100, {}), (paper, 800, {"compiled": True}),
    ]  # fmt: skip
    rows = []
    for task, count, how in runs:
        rows.append(step(task, count, **how))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse the command line and run the comparison."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    split = lambda cast: lambda text: [cast(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--sizes", type=split(int), default=[512, 1024, 2048, 4096])
    parser.add_argument("--l1", type=split(float), default=[1e-2, 2e-2, 3e-2, 6e-2])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestants", type=split(str), default=[*OURS, *PEERS])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sae_gpu.jsonl")
    parser.add_argument("--activations", type=Path, default=ROOT / "outputs/demo/activations")
    parser.add_argument("--step", action="store_true", help="time a step alone")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here, and this benchmark compares on one")
    task = Task(
        sizes=args.sizes, l1=args.l1, repeat=args.seeds, batch=args.batch, steps=args.steps,
        activations=str(args.activations), device="cuda:0",
    )  # fmt: skip
    if args.step:
        result = {"mode": "step", "rows": steps(str(args.activations))}
    else:
        result = against_peers(task, args.contestants, args.rounds)
    result["machine"] = torch.cuda.get_device_name(0)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result) + "\n")


def against_peers(task: Task, contestants: list[str], rounds: int) -> dict:
    """Compare, and say how much of the GPU ours uses."""
    result = compare(task, contestants, rounds)
    features = sum(task.sizes) * len(task.l1) * task.repeat
    result["bf16_peak"] = bf16_peak()
    print(f"measured bf16 peak {result['bf16_peak'] / 1e12:.0f} TFLOP/s")
    for name in [name for name in OURS if name in contestants]:
        numbers = result["contestants"][name]
        numbers["flop_per_second"] = numbers["rows_per_second"] * 10 * 128 * features
        share = numbers["flop_per_second"] / result["bf16_peak"]
        print(f"{name}: {numbers['flop_per_second'] / 1e12:.1f} TFLOP/s, {share:.1%} of it")
    return result


if __name__ == "__main__":
    main()
