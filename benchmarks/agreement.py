"""How soon do two dictionaries agree? Seconds, steps and rows, by batch size, rate and schedule.

    python benchmarks/agreement.py                    # after `make demo`, about ten minutes
    python benchmarks/agreement.py --batch 64,128 --lr 1e-3,3e-3 --rows 1e6,2e6,4e6
    python benchmarks/agreement.py --peers --rows 4e6   # SAELens and dictionary_learning

Sizes 256 and 512 are trained on the demo's activations at L1 2.56, from scratch for each length,
since a schedule belongs to a length. What counts is how many of the 256 features have a cosine
above .9 with one of the 512. Settings that share a batch size and a length are trained in one
pass; a setting's seconds are its part of the pass. Each line of --out is one training; the table
at the end says for each setting when 70 % of the features agreed, between two lengths by
interpolation on the logarithm of the rows. Peers keep their own defaults (rate, batch, warm-up) and
get the same objective: the L1 coefficient in their units, no bias of the decoder.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZES = (256, 512)
L1 = 2.56
WANTED = 0.7


def trained(batch: int, rows: int, settings: list[tuple[float, str]], activations: str) -> Any:
    """A result for each (learning rate, schedule), trained together."""
    from hydra import compose, initialize_config_dir

    from sparse_dict.analysis.measures.mcs import max_cosine, normalised
    from sparse_dict.launch.jobs import typed
    from sparse_dict.sae import stage
    from sparse_dict.sae.folder import read

    def config(lr: float, schedule: str, size: int) -> Any:
        overrides = [
            "experiment=demo", "tracking.mode=disabled", f"activations_dir={activations}",
            f"training.batch_size={batch}", f"training.n_activations={rows}",
            "training.snapshots=0", f"sae.l1={L1}", "sae.l1_scaling=none", f"sae.dict_size={size}",
            f"optimizer.lr={lr}", f"optimizer.schedule={schedule}",
        ]  # fmt: skip
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return typed(compose("train_sae", overrides))

    grid = [config(lr, schedule, size) for lr, schedule in settings for size in SIZES]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(i) for i in range(len(grid))]
        outcomes = []
        for outcome in stage.train_many(grid, paths):
            if isinstance(outcome, Exception):
                raise outcome
            outcomes.append(outcome)
        decoders = [normalised(read(path).dictionary.W_dec) for path in paths]
    for i, (lr, schedule) in enumerate(settings):
        small, large = outcomes[2 * i : 2 * i + 2]
        mcs = max_cosine(decoders[2 * i], decoders[2 * i + 1])
        yield {
            "batch": batch, "lr": lr, "schedule": schedule, "rows": rows,
            "steps": -(-rows // batch), "seconds": small["seconds"] / len(settings),
            "above": float((mcs > 0.9).mean()), "mmcs": float(mcs.mean()),
            "fvu": small["fvu"], "l0": small["l0"], "dead": small["dead"],
            "dead_of_512": large["dead"],
        }  # fmt: skip


def batches(activations: str, rows: int, batch: int) -> Iterator[Any]:
    """(batch, d_in) each of the scaled activations, beginning again after the last row."""
    import torch

    from sparse_dict.activations.store import Activations

    opened = Activations.open(Path(activations))
    last = opened.rows - batch
    for step in range(-(-rows // batch)):
        start = step * batch % last
        yield torch.from_numpy(opened.read(start, start + batch)).div_(opened.rms)


def sae_lens(activations: str, rows: int, size: int) -> Any:
    """SAELens' standard SAE by its trainer: batches of 4,096 at 3e-4, without warm-up."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.training.multi_sae_trainer import MultiSAETrainer

    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=128, d_sae=size, l1_coefficient=L1, apply_b_dec_to_input=False
        )
    )
    sae.b_dec.requires_grad_(False)
    trainer = MultiSAETrainer(
        SAETrainerConfig(total_training_samples=rows, train_batch_size_samples=4096, lr_end=3e-5),
        {"x": sae}, {"x": "x"}, ({"x": x} for x in batches(activations, rows, 4096)),
    )  # fmt: skip
    trainer.fit()
    return sae.W_dec.detach().numpy()


def dictionary_learning(activations: str, rows: int, size: int) -> Any:
    """dictionary_learning's `StandardTrainer`: 1e-3 after 1,000 steps, L1 after 2,000.

    It sets no batch size; 1,024 makes steps enough for both.
    """
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.training import trainSAE

    made: list[Any] = []

    class Kept(StandardTrainer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.ae.bias.requires_grad_(False)
            made.append(self.ae)

    steps = -(-rows // 1024)
    trainer = dict(
        trainer=Kept, steps=steps, activation_dim=128, dict_size=size, layer=2, lm_name="x",
        l1_penalty=L1, device="cpu",
    )  # fmt: skip
    trainSAE(batches(activations, rows, 1024), [trainer], steps, device="cpu")
    return made[0].decoder.weight.detach().T.numpy()


def peers(activations: str, rows: int) -> Iterator[dict[str, Any]]:
    """A result of each peer at its defaults."""
    from sparse_dict.analysis.measures.mcs import max_cosine, normalised

    for train in (sae_lens, dictionary_learning):
        started = time.monotonic()
        small, large = (normalised(train(activations, rows, size)) for size in SIZES)
        mcs = max_cosine(small, large)
        yield {
            "peer": train.__name__, "rows": rows, "seconds": time.monotonic() - started,
            "above": float((mcs > 0.9).mean()), "mmcs": float(mcs.mean()),
        }  # fmt: skip


def reached(lengths: list[dict[str, Any]]) -> dict[str, float] | None:
    """Rows, steps and seconds at which `WANTED` agreed; None if it never did."""
    before = None
    for now in sorted(lengths, key=lambda line: line["rows"]):
        if now["above"] >= WANTED:
            if before is None:
                return {key: now[key] for key in ("rows", "steps", "seconds")}
            part = (WANTED - before["above"]) / (now["above"] - before["above"])
            return {
                key: math.exp(math.log(before[key]) * (1 - part) + math.log(now[key]) * part)
                for key in ("rows", "steps", "seconds")
            }
        before = now
    return None


def main() -> None:
    """Train all, print the table."""
    parser = argparse.ArgumentParser(description="time to agreement")
    numbers = lambda text: [float(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--batch", type=numbers, default=[64, 128, 256, 512])
    parser.add_argument("--lr", type=numbers, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--schedule", default="constant,linear,cosine")
    parser.add_argument("--rows", type=numbers, default=[1e6, 2e6, 4e6, 8e6])
    parser.add_argument("--activations", default=str(ROOT / "outputs/demo/activations"))
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/agreement.jsonl"))
    parser.add_argument("--peers", action="store_true")
    given = parser.parse_args()
    if given.peers:
        for rows in map(int, given.rows):
            for line in peers(given.activations, rows):
                print(line, flush=True)
                with Path(given.out).open("a") as file:
                    file.write(json.dumps(line) + "\n")
        return
    settings = list(product(given.lr, given.schedule.split(",")))
    lines: list[dict[str, Any]] = []
    for batch, rows in product(map(int, given.batch), map(int, given.rows)):
        started = time.monotonic()
        for line in trained(batch, rows, settings, given.activations):
            lines.append(line)
            with Path(given.out).open("a") as file:
                file.write(json.dumps(line) + "\n")
        print(f"batch {batch}, {rows:,} rows: {time.monotonic() - started:.0f} s", flush=True)
    print("| batch | lr | schedule | steps | rows | seconds | above .9 at the longest | FVU | L0 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for batch, (lr, schedule) in product(map(int, given.batch), settings):
        own = [
            line for line in lines
            if (line["batch"], line["lr"], line["schedule"]) == (batch, lr, schedule)
        ]  # fmt: skip
        at, last = reached(own), own[-1]
        when = (
            f"{at['steps']:,.0f} | {at['rows']:,.0f} | {at['seconds']:.1f}" if at else "- | - | -"
        )
        print(
            f"| {batch} | {lr:g} | {schedule} | {when} | {last['above']:.0%} | {last['fvu']:.3f} "
            f"| {last['l0']:.1f} |"
        )


if __name__ == "__main__":
    main()
