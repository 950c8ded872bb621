"""`python -m sparse_dict.regimes FOLDER`: the MLP's regime and the spread of features over neurons.

FOLDER holds finished studies side by side, each of another language model, with dictionaries of
several sizes and sparsities (docs/neuron_basis.md). What is printed compares them as Markdown; all
dictionaries go to `regimes.csv`, and the picture to `regimes.png`, both in FOLDER.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from typing_extensions import TypedDict

from sparse_dict.activations.store import MANIFEST, Regime
from sparse_dict.analysis import study
from sparse_dict.analysis.measures.effective_neurons import Floats, random_simpson, simpson_neurons
from sparse_dict.analysis.measures.mcs import max_cosine, normalised
from sparse_dict.analysis.report import figures
from sparse_dict.errors import UserError
from sparse_dict.lm import folder as lm_folder
from sparse_dict.storage import files, records

THRESHOLD = 0.9  # an MCS above it is high, as in the post
# Columns of mean effective neurons.
HIGH, LOW, DEAD = "neurons_high", "neurons_low", "neurons_dead"
RANDOM = "neurons_random"
FEW = 5  # means over fewer features are not shown


class Harvest(TypedDict, total=False):
    """What is read of a harvest's manifest."""

    layer: records.Count
    site: records.Line
    pre_activations: list[Regime]


class Losses(TypedDict):
    """What is read of a language model's losses."""

    val_loss: records.Number


class Trained(TypedDict):
    """What is read of a language model's record."""

    losses: Losses


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison and write its files; 1 with one line if that cannot be done."""
    parser = argparse.ArgumentParser("python -m sparse_dict.regimes", description="compare studies")
    parser.add_argument("folder", type=Path, help="holds the studies: outputs/neuron_basis")
    parser.add_argument("--l0", type=float, default=6.0, help="compare at this L0 (default 6)")
    given = parser.parse_args(argv)
    try:
        table = dictionaries(given.folder)
    except UserError as error:
        sys.stderr.write(f"regimes: {error}\n")
        return 1
    files.write_text(given.folder / "regimes.csv", table.to_csv(index=False))
    compared = at_l0(table, given.l0)
    with figures.style():
        figures.save(picture(table, compared, given.l0), given.folder, "regimes")
    largest = table[table["size"] == table["size"].max()].drop(columns=RANDOM)
    sys.stdout.write(f"At an L0 of {given.l0:g}:\n\n{markdown(compared)}\n")
    sys.stdout.write(f"Size {largest['size'].iloc[0]}, by L1:\n\n{markdown(largest)}")
    return 0


def dictionaries(folder: Path) -> pd.DataFrame:
    """One row for each dictionary that has a larger one, of all studies in `folder`.

    Columns: study, val_loss, std and linear (`pre_activations.measure` of the harvested layer),
    size, l1, l0, fvu, mmcs with the next larger dictionary, high (features with an MCS above
    `THRESHOLD`), dead (features never active on the evaluation rows), the mean effective neurons
    of features with high MCS, of the others that are active and of the others that never are, and
    the exact expectation for random directions.

    Raises:
        UserError: no study has a finished dictionary, or one was not trained on one mlp_post.
    """
    studies = sorted({path.parents[2] for path in folder.glob("*/sae/*/metrics.json")})
    rows = [row for found in studies for row in _study(found)]
    if not rows:
        raise UserError(f"{folder} holds no study with finished dictionaries")
    table = pd.DataFrame(rows)
    return table.sort_values(["linear", "study", "size", "l1"], ascending=[False, True, True, True])


def _study(folder: Path) -> Iterator[dict[str, object]]:
    path = folder / "activations" / MANIFEST
    manifest = records.read(path, Harvest)
    regimes = {m["layer"]: m for m in manifest.get("pre_activations", [])}
    layer = manifest.get("layer")
    if layer not in regimes or manifest.get("site") != "mlp_post":
        raise UserError(f"{path} records no pre-activations of an mlp_post: harvest again")
    loss = records.read(folder / "lm" / lm_folder.RECORD, Trained)["losses"]["val_loss"]
    found = study.load(folder / "sae")
    for entry, larger in (pair for chain in found.chains for pair in pairwise(chain.entries)):
        mcs = max_cosine(normalised(entry.decoder), normalised(larger.decoder))
        neurons, high = simpson_neurons(entry.decoder), mcs > THRESHOLD
        yield {
            "study": folder.name,
            "val_loss": loss,
            "std": regimes[layer]["std"],
            "linear": regimes[layer]["linear"],
            "size": entry.size,
            "l1": entry.l1,
            "l0": entry.metrics["l0"],
            "fvu": entry.metrics["fvu"],
            "mmcs": float(mcs.mean()),
            "high": int(high.sum()),
            "dead": int((~entry.alive).sum()),
            HIGH: _mean(neurons[high]),
            LOW: _mean(neurons[~high & entry.alive]),
            DEAD: _mean(neurons[~high & ~entry.alive]),
            RANDOM: random_simpson(found.d_in),
        }


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) >= FEW else float("nan")


def at_l0(table: pd.DataFrame, l0: float) -> pd.DataFrame:
    """Each study and size at one L0: columns interpolated linearly in log L0 between the L1.

    ``nan`` where the L0 is outside of what was trained.
    """
    rows = []
    kept = ["study", "val_loss", "std", "linear", "size"]
    for _, group in table.groupby(["study", "size"], sort=False):
        group = group.sort_values("l0")
        row = group.iloc[0][kept].to_dict()
        for column in ("fvu", "mmcs", "high", "dead", HIGH, LOW, DEAD):
            known = group[group[column].notna() & (group["l0"] > 0)]
            x, y = np.log(known["l0"].to_numpy(float)), known[column].to_numpy(float)
            row[column] = (
                np.interp(np.log(l0), x, y, left=np.nan, right=np.nan) if len(x) else np.nan
            )
        rows.append(row)
    return pd.DataFrame(rows)


FORMATS = {"std": ".2f", "linear": ".0%", "val_loss": ".2f", "size": "d", "l1": "g", "l0": ".1f"}
FORMATS |= {"fvu": ".3f", "high": ".0f", "mmcs": ".2f", "dead": ".0f"}
FORMATS |= {HIGH: ".0f", LOW: ".0f", DEAD: ".0f"}


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown; what is not known is left empty."""

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    def cell(column: str, value: Any) -> str:
        return "" if pd.isna(value) else format(value, FORMATS.get(column, ""))

    head = line(column.replace("_", " ") for column in table.columns)
    body = [line(map(cell, table.columns, row)) for row in table.itertuples(index=False)]
    return head + line("---" for _ in table.columns) + "".join(body)


def picture(table: pd.DataFrame, compared: pd.DataFrame, l0: float) -> Figure:
    """Effective neurons against L0 by study, and at one L0 against what is linear in z."""
    figure, (axes,) = figures.grid(1, 2, 3.6, sharey=True)
    size = table["size"].max()
    names = list(dict.fromkeys(table["study"]))
    for name, colour in zip(names, figures.shades(len(names)), strict=True):
        rows = table[(table["study"] == name) & (table["size"] == size)].sort_values("l0")
        label = f"{name}: {rows['linear'].iloc[0]:.0%} linear"
        axes[0].plot(rows["l0"], rows[HIGH], color=colour, marker="o", ms=4, lw=1, label=label)
        axes[0].plot(rows["l0"], rows[LOW], color=colour, marker="x", ms=4, lw=0.8, ls=":")
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_xlabel("L0: features active on a row, mean")
    axes[0].set_ylabel("effective neurons, mean")
    axes[0].set_title(f"size {size}: MCS > {THRESHOLD:g} (solid), others in use (dotted)")
    chosen = compared[compared["size"] == size]
    for column, label, colour, marker in (
        (HIGH, f"MCS > {THRESHOLD:g}", figures.BLUE, "o"),
        (LOW, "others in use", figures.ORANGE, "x"),
        (DEAD, "dead", figures.GREY, "s"),
    ):
        style = {"color": colour, "marker": marker, "ls": "", "ms": 5}
        axes[1].plot(chosen["linear"], chosen[column], label=label, **style)
    for axis in axes:
        axis.axhline(table[RANDOM].iloc[0], color="black", lw=0.8, ls="--")
    axes[1].plot([], [], color="black", lw=0.8, ls="--", label="random directions")
    axes[0].legend(title="study", loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[1].set_xlabel("share of the hidden activation linear in z")
    axes[1].set_title(f"size {size}, at L0 {l0:g}")
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
