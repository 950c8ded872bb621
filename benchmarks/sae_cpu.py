"""Train a grid of dictionaries on two CPU cores: this project against its peers.

    python benchmarks/sae_cpu.py                       # 128..1024 x 4 l1, 16 dictionaries
    python benchmarks/sae_cpu.py --sizes 512,1024,2048,4096,8192 --l1 3e-2
    python benchmarks/sae_cpu.py --curve               # cost per dictionary, 1 to 64 of them

Needs `make demo` (the activations) and, for the peers, `pip install sae-lens dictionary-learning`.
Every contestant runs in a process of its own, one at a time, in turn for several rounds; its
training alone is timed (not imports, reading the data into memory, or evaluation), from the same
initial values, on the same batches, with the same loss up to the peers' conventions. FVU and L0
are those of the final weights on held-out rows. The result is appended as a line of JSON to --out.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEED = 0
EVAL_ROWS = 32_768
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def configs(args: argparse.Namespace, folder: Path) -> list:
    """One of our configs per dictionary, with the decoder's gradient treated as the peers do."""
    from sparse_dict import config as c

    training = c.SAETrainingConfig(
        n_activations=args.steps * args.batch, batch_size=args.batch, eval_rows=EVAL_ROWS,
        l1_warmup_steps=0, dead_window=10**6, snapshots=0, log_every=100, checkpoint_every=10**6,
    )  # fmt: skip
    return [
        c.TrainSAEConfig(
            name="bench", study_dir=str(folder), device="cpu", seed=SEED,
            tracking=c.TrackingConfig(mode="disabled", project="p", entity=None, tags=[]),
            activations_dir=str(args.activations),
            activations=c.ActivationsConfig(scaling="rms"),
            sae=c.SAEConfig(
                dict_size=size, activation="relu", tied=False, init="independent",
                l1=l1, l1_scaling="none", k=32, l0=0.0, threshold=0.01, bandwidth=0.01,
                dead="none", resample_every=2500, aux_k=64, aux_coefficient=1 / 32,
                strategy="plain", freeze_above=0.9,
                perturb_every=500, perturb_noise=0.5, perturb_share=0.75,
                precision="bf16" if args.contestant == "ours-bf16" else "fp32",
                project_gradient=True,
            ),
            optimizer=c.AdamConfig(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, warmup_steps=0),
            training=training,
        )
        for size in args.sizes
        for l1 in args.l1
        for _ in range(args.repeat)
    ]  # fmt: skip


def ours(args: argparse.Namespace) -> tuple[float, list, list]:
    """Seconds, L0s and FVUs of our trainer, by what the command line calls."""
    from sparse_dict.sae import ensemble, kernel, stage
    from sparse_dict.tracking import open_run  # noqa: F401  imported before the clock starts

    kernel.load(kernel.padded(128))
    seconds = 0.0
    train = ensemble.train

    def timed(*a: object) -> None:
        nonlocal seconds
        start = time.perf_counter()
        train(*a)
        seconds = time.perf_counter() - start

    ensemble.train = timed
    with tempfile.TemporaryDirectory() as folder:
        grid = configs(args, Path(folder))
        outcomes = stage.train_many(grid, [Path(folder) / str(i) for i in range(len(grid))])
    return seconds, [m["l0"] for m in outcomes], [m["fvu"] for m in outcomes]


def peer(args: argparse.Namespace) -> tuple[float, list, list]:
    """The same of a peer, fed from memory."""
    import torch

    from sparse_dict.activations.store import Activations
    from sparse_dict.sae.state import State

    activations = Activations.open(args.activations)
    rows = activations.rows - EVAL_ROWS
    scale = activations.rms
    data = torch.from_numpy(activations.read(0, min(rows, args.steps * args.batch))) / scale
    starts = [State.initial(c, 128, torch.device("cpu")) for c in configs(args, Path())]
    grid = configs(args, Path())

    def batches():
        for step in range(args.steps):
            at = step * args.batch % (len(data) - args.batch)
            yield data[at : at + args.batch]

    if args.contestant == "dictionary_learning":
        from dictionary_learning.trainers.standard import StandardTrainer
        from dictionary_learning.training import trainSAE

        made = []

        class Same(StandardTrainer):
            """Their trainer from our initial values, without the bias that the post lacks."""

            def __init__(self, **kwargs: object) -> None:
                super().__init__(**kwargs)
                start = starts[len(made)]
                with torch.no_grad():
                    self.ae.encoder.weight.copy_(start.W_enc)
                    self.ae.decoder.weight.copy_(start.W_dec.T)
                    self.ae.encoder.bias.copy_(start.b)
                self.ae.bias.requires_grad_(False)
                made.append(self.ae)

        trainers = [
            dict(
                trainer=Same, steps=args.steps, activation_dim=128, dict_size=c.sae.dict_size,
                layer=2, lm_name="x", lr=1e-3, l1_penalty=c.sae.l1 * 128, warmup_steps=0,
                sparsity_warmup_steps=None, seed=SEED, device="cpu",
            )
            for c in grid
        ]  # fmt: skip
        start = time.perf_counter()
        trainSAE(batches(), trainers, args.steps, device="cpu")
        seconds = time.perf_counter() - start
        weights = [(a.encoder.weight, a.encoder.bias, a.decoder.weight.T) for a in made]
    else:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
        from sae_lens.training.multi_sae_trainer import MultiSAETrainer

        saes = {}
        for i, (c, first) in enumerate(zip(grid, starts, strict=True)):
            sae = StandardTrainingSAE(
                StandardTrainingSAEConfig(
                    d_in=128, d_sae=c.sae.dict_size, l1_coefficient=c.sae.l1 * 128,
                    apply_b_dec_to_input=False,
                )
            )  # fmt: skip
            with torch.no_grad():
                sae.W_enc.copy_(first.W_enc.T)
                sae.W_dec.copy_(first.W_dec)
                sae.b_enc.copy_(first.b)
                sae.b_dec.zero_()
            sae.b_dec.requires_grad_(False)
            saes[str(i)] = sae
        trainer = MultiSAETrainer(
            SAETrainerConfig(
                total_training_samples=args.steps * args.batch,
                train_batch_size_samples=args.batch, lr=1e-3, lr_end=1e-3,
            ),
            saes, {name: "x" for name in saes}, ({"x": batch} for batch in batches()),
        )  # fmt: skip
        start = time.perf_counter()
        trainer.fit()
        seconds = time.perf_counter() - start
        weights = [(s.W_enc.T, s.b_enc, s.W_dec) for s in saes.values()]
    x = torch.from_numpy(activations.read(rows, activations.rows)) / scale
    l0, fvu = [], []
    variance = (activations.rms**2 - (activations.mean**2).mean()) / scale**2
    with torch.no_grad():
        for W_enc, b, W_dec in weights:
            codes = torch.relu(x @ W_enc.T + b)
            l0.append(float((codes > 0).sum(1).float().mean()))
            fvu.append(float((codes @ W_dec - x).square().mean() / variance))
    return seconds, l0, fvu


def contest(args: argparse.Namespace) -> None:
    """Run one contestant in this process and print its result."""
    seconds, l0, fvu = (ours if args.contestant.startswith("ours") else peer)(args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps(dict(seconds=seconds, l0=l0, fvu=fvu, peak_mib=peak)))


def run(args: argparse.Namespace, contestant: str, repeat: int = 1) -> dict:
    """Run one contestant in a process of its own."""
    command = [
        sys.executable, __file__, "--contestant", contestant,
        "--sizes", ",".join(map(str, args.sizes)), "--l1", ",".join(map(str, args.l1)),
        "--batch", str(args.batch), "--steps", str(args.steps), "--repeat", str(repeat),
        "--activations", str(args.activations),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        sys.exit(f"{contestant} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def machine() -> str:
    """The processor's name and the number of cores."""
    try:
        names = [s for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s]
        return f"{names[0].split(': ')[1]}, {len(names)} cores"
    except (OSError, IndexError):
        return platform.processor()


def compare(args: argparse.Namespace) -> dict:
    """All contestants in turn for several rounds; prints medians and ratios."""
    contestants = ["ours", "ours-bf16", "dictionary_learning", "sae_lens"]
    runs: dict[str, list[dict]] = {name: [] for name in contestants}
    for round_ in range(args.rounds):
        for name in contestants:
            runs[name].append(run(args, name))
            print(f"round {round_ + 1} {name}: {runs[name][-1]['seconds']:.1f} s", flush=True)
    grid = [(size, l1) for size in args.sizes for l1 in args.l1]
    rows = args.steps * args.batch
    result = {"grid": grid, "batch": args.batch, "steps": args.steps, "machine": machine()}
    reference = statistics.median(r["seconds"] for r in runs["ours"])
    print(f"{'contestant':<20} {'rows/s':>8} {'x slower than ours':>19} {'peak MiB':>9}  "
          f"{'worst FVU gap':>13} {'worst L0 gap':>12}")  # fmt: skip
    for name in contestants:
        seconds = statistics.median(r["seconds"] for r in runs[name])
        ratios = [
            r["seconds"] / o["seconds"] for r, o in zip(runs[name], runs["ours"], strict=True)
        ]
        last, ours_last = runs[name][-1], runs["ours"][-1]
        gaps = {
            key: max(abs(a / b - 1) for a, b in zip(last[key], ours_last[key], strict=True))
            for key in ("fvu", "l0")
        }
        result[name] = dict(
            seconds=seconds, rows_per_second=rows / seconds, ratio=statistics.median(ratios),
            peak_mib=last["peak_mib"], gaps=gaps, l0=last["l0"], fvu=last["fvu"],
            all_seconds=[r["seconds"] for r in runs[name]],
        )  # fmt: skip
        print(f"{name:<20} {rows / seconds:>8.0f} {statistics.median(ratios):>19.2f} "
              f"{last['peak_mib']:>9.0f}  {gaps['fvu']:>13.2%} {gaps['l0']:>12.2%}")  # fmt: skip
    result["ours_seconds"] = reference
    return result


def curve(args: argparse.Namespace) -> dict:
    """Seconds per dictionary for ensembles of growing number."""
    points = []
    for count in (1, 4, 16, 64):
        seconds = statistics.median(
            run(args, "ours", repeat=count)["seconds"] for _ in range(args.rounds)
        )
        points.append((count, seconds / count))
        print(f"{count:>3} dictionaries of {args.sizes[0]}: {seconds / count:.2f} s each")
    return {"size": args.sizes[0], "curve": points, "machine": machine(), "steps": args.steps}


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    split = lambda cast: lambda text: [cast(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--sizes", type=split(int), default=[128, 256, 512, 1024])
    parser.add_argument("--l1", type=split(float), default=[1e-2, 2e-2, 3e-2, 6e-2])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/sae_cpu.jsonl")
    parser.add_argument("--activations", type=Path, default=ROOT / "outputs/demo/activations")
    args = parser.parse_args()
    if args.contestant:
        contest(args)
        return
    if args.curve:
        args.sizes, args.l1 = [512], [3e-2]
    result = curve(args) if args.curve else compare(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open("a") as file:
        file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
