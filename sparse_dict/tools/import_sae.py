"""`python -m sparse_dict.import_sae SOURCE DEST --activations DIR`: a dictionary made elsewhere.

SOURCE is a folder of SAELens, dictionary_learning or sparsify, or OWNER/REPOSITORY/FOLDER on the
Hugging Face hub. DEST becomes a folder of ours, such as outputs/NAME/sae/FOLDER, measured on the
last rows of DIR, so that every analysis can use it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_dict.activations.store import Activations
from sparse_dict.errors import UserError, printable, reading
from sparse_dict.sae import folder as folders
from sparse_dict.sae import imported
from sparse_dict.sae.imported.measured import measured
from sparse_dict.sae.imported.parts import scaled
from sparse_dict.sae.origin import of_activations
from sparse_dict.storage import lock, records
from sparse_dict.storage.output import Output
from sparse_dict.tools import ending

READ = 1 << 16  # rows at a time whose norm is taken
OUTPUT = Output(
    "import_sae", None, folders.METRICS,
    lambda dest: {} if (dest / folders.METRICS).exists() else None, "folder",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Import one dictionary."""
    parser = argparse.ArgumentParser(
        "python -m sparse_dict.import_sae", description="import a dictionary made elsewhere"
    )
    parser.add_argument("source", help="its folder, or OWNER/REPOSITORY/FOLDER on the hub")
    parser.add_argument("dest", type=Path, help="a new folder, such as outputs/NAME/sae/FOLDER")
    parser.add_argument(
        "--activations", type=Path, required=True, metavar="DIR",
        help="rows to measure it on, of the model and site that it was trained on",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="its seed, if its own config does not say it")
    given = parser.parse_args(argv)
    with lock.holding(given.dest):
        metrics = run(given.source, given.dest, given.activations, given.seed)
    sys.stdout.write(
        f"{given.dest}: {metrics['dict_size']} features, FVU {metrics['fvu']:.4f}, "
        f"L0 {metrics['l0']:.2f}, {metrics['dead']} dead on {metrics['eval_rows']:,} rows\n"
    )
    return 0


def run(source: str, dest: Path, activations_dir: Path, seed: int | None = None) -> dict[str, Any]:
    """Import the dictionary `source` into `dest`, and measure it; returns its metrics."""
    if dest.resolve() == Path(source).expanduser().resolve():
        raise UserError(f"{dest} is what is imported: choose another folder")
    if OUTPUT.is_finished(dest, {}):
        raise UserError(f"{dest} holds a dictionary already: choose another folder, or delete it")
    foreign, activations = imported.read(source), Activations.open(activations_dir)
    d_in = len(foreign.dictionary.W_enc)
    if d_in != activations.d_in:
        raise UserError(
            f"{source} is of activations {d_in} wide, {activations_dir} holds rows of "
            f"{activations.d_in}"
        )
    if foreign.by_mean_norm:
        pieces = range(0, activations.rows, READ)
        parts = (activations.read(at, min(at + READ, activations.rows)) for at in pieces)
        norms = np.concatenate([np.linalg.norm(part, axis=1) for part in parts])
        scaled(foreign.dictionary, d_in**0.5 / norms.mean(dtype=np.float64))
    said, rows = foreign.origin, of_activations(activations)
    if said.differs(rows):
        told = f"{source} says that it is of {said}, but {activations_dir} holds rows of {rows}"
        sys.stderr.write(
            f"import_sae: WARNING: {printable(told)}: unless both are the same, its numbers here "
            "say nothing about it\n"
        )
    hook = None if said.elsewhere(rows) else rows.hook or said.hook
    seed = foreign.seed if seed is None else seed
    metrics, fire_count = measured(
        foreign.dictionary, activations, foreign.kind, {"imported": foreign.format},
        l1=foreign.l1, seed=seed,
    )  # fmt: skip
    metrics["source"] = source
    with reading(Path(source)):
        records.fitting(metrics, folders.Metrics)
    OUTPUT.begin(dest)
    folders.write(dest, foreign.dictionary, fire_count, metrics, hook)
    return metrics


if __name__ == "__main__":
    ending(main)
