"""Train 64 dictionaries on one GPU: this project against its peers.

    python benchmarks/sae_gpu.py        # 512..4096 x 4 l1 x 4 seeds

Needs a GPU, the activations of `make demo` and `pip install sae-lens dictionary-learning`. As in
`sae_cpu.py`, whose contestants these are, each runs in a process of its own, in turn. All rows lie
on the GPU beforehand for the peers; ours reads them from disk while it is timed. What
`torch.compile` takes is not timed. The last lines are the share of the GPU's bf16 peak that ours
reaches: the five products of a step, 10 * d_in * dict_size FLOP a row, against one large product.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.sae_contestants import Task  # noqa: E402
from benchmarks.sae_cpu import compare  # noqa: E402

OURS = ["ours", "ours, compiled", "ours, compiled, bf16"]
PEERS = ["dictionary_learning", "sae_lens"]


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
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here, and this benchmark compares on one")
    task = Task(
        sizes=args.sizes, l1=args.l1, repeat=args.seeds, batch=args.batch, steps=args.steps,
        activations=str(args.activations), device="cuda:0",
    )  # fmt: skip
    result = compare(task, args.contestants, args.rounds)
    features = sum(args.sizes) * len(args.l1) * args.seeds
    result["machine"], result["bf16_peak"] = torch.cuda.get_device_name(0), bf16_peak()
    print(f"{result['machine']}: measured bf16 peak {result['bf16_peak'] / 1e12:.0f} TFLOP/s")
    for name in [name for name in OURS if name in args.contestants]:
        numbers = result["contestants"][name]
        numbers["flop_per_second"] = numbers["rows_per_second"] * 10 * 128 * features
        share = numbers["flop_per_second"] / result["bf16_peak"]
        print(f"{name}: {numbers['flop_per_second'] / 1e12:.1f} TFLOP/s, {share:.1%} of it")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
