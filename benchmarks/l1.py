"""Does one L1 give a similar L0 on activations of other widths? Ladders on several, as one table.

    python benchmarks/l1.py demo=outputs/demo/activations          # after `make demo`
    python benchmarks/l1.py --toys 64,256,1024                     # toys of these widths
    python benchmarks/l1.py mlp=FOLDER:576:2112 --centering none,mean

Each activations are NAME=FOLDER, a harvest or any folder of .npy files, and if need be the columns
START:STOP that are meant. A dictionary of 256 features is trained for each rung and centering, with
`sae.l1_scaling=d_in`, all others as `experiment=demo` but for a constant batch and rate. A line has
the L0 of each rung, and what the middle rung's L1 would be undivided, and divided by sqrt(d_in).
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RUNGS = (1.28, 2.56, 5.12, 10.24)  # of l1, divided by the width


def rows_of(source: str, count: int) -> Any:
    """(count, width) of FOLDER or FOLDER:START:STOP, or of a toy that is `source` wide."""
    from sparse_dict.activations.store import Activations
    from sparse_dict.activations.toy import Toy
    from sparse_dict.config import ToyData

    if source.isdecimal():
        width = int(source)
        data = ToyData(
            d_in=width, n_features=2 * width, n_active=5, decay=1 - 0.64 / width,
            correlated=False, value="product",
        )  # fmt: skip
        toy = Toy(data, 0)
        return np.concatenate([toy.rows(4096)[0] for _ in range(-(-count // 4096))])[:count]
    folder, *columns = source.split(":")
    opened = Activations.open(Path(folder))
    rows = opened.read(0, min(count, opened.rows))
    return np.ascontiguousarray(rows[:, slice(*map(int, columns))] if columns else rows)


def ladder(rows: Any, centering: str, n: int, lr: str) -> list[dict[str, Any]]:
    """The metrics of each rung, trained together on `n` of `rows`."""
    from hydra import compose, initialize_config_dir

    from sparse_dict.launch.jobs import typed
    from sparse_dict.sae import stage

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rows").mkdir()
        np.save(folder / "rows" / "rows.npy", rows)
        grid = []
        for l1 in RUNGS:
            overrides = [
                "experiment=demo", "tracking.mode=disabled", f"activations_dir={folder / 'rows'}",
                f"activations.centering={centering}", "activations.scaling=rms",
                f"training.n_activations={n}", "training.eval_rows=4096", "training.snapshots=0",
                f"sae.l1={l1}", "sae.l1_scaling=d_in", "sae.dict_size=256", f"optimizer.lr={lr}",
            ]  # fmt: skip
            with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
                grid.append(typed(compose("train_sae", overrides)))
        found = stage.train_many(grid, [folder / str(i) for i in range(len(grid))])
    if failed := [outcome for outcome in found if isinstance(outcome, Exception)]:
        raise failed[0]
    return [outcome for outcome in found if isinstance(outcome, dict)]


def main() -> None:
    """Train all, print the table."""
    from sparse_dict.activations.store import Moments, mean_to_spread

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("activations", nargs="*", metavar="NAME=FOLDER[:START:STOP]")
    parser.add_argument("--toys", default="", metavar="WIDTH,WIDTH")
    parser.add_argument("--centering", default="none", metavar="none,mean")
    parser.add_argument("--rows", type=float, default=60_000, help="that are there")
    parser.add_argument("--train", type=float, default=100_000, help="rows seen in training")
    parser.add_argument("--lr", default="3e-3", help="of 128 columns; lower of wider ones")
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/l1.jsonl"))
    given = parser.parse_args()
    sources = dict(text.partition("=")[::2] for text in given.activations)
    sources |= {f"toy {width}": width for width in given.toys.split(",") if width}
    print("| activations | d_in | mean/spread | centred | L0 at " + " | ".join(map(str, RUNGS))
          + " | dead at 2.56 | 2.56 undivided, over sqrt(d_in) |")  # fmt: skip
    print("|---" * (7 + len(RUNGS)) + "|")
    for name, source in sources.items():
        rows = rows_of(source, int(given.rows))
        moments = Moments(rows.shape[1])
        moments.add(rows)
        d_in, ratio = rows.shape[1], mean_to_spread(moments.mean, moments.rms())
        for centering in given.centering.split(","):
            found = ladder(rows, centering, int(given.train), given.lr)
            l0 = " | ".join(f"{m['l0']:.1f}" for m in found)
            print(f"| {name} | {d_in} | {ratio:.2f} | {centering} | {l0} | {found[1]['dead']} "
                  f"| {2.56 / d_in:.4f}, {2.56 / math.sqrt(d_in):.3f} |", flush=True)  # fmt: skip
            with Path(given.out).open("a") as file:
                for m in found:
                    line = {"activations": name, "d_in": d_in, "ratio": ratio}
                    line |= {"centering": centering, "lr": given.lr, "rows": given.train}
                    line |= {key: m[key] for key in ("l1", "l0", "fvu", "dead")}
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
