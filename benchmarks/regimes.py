"""The MLP's regime and the spread of features over neurons, in studies of several language models.

    python benchmarks/regimes.py outputs/neuron_basis

The folder holds finished studies side by side, each of another language model, with dictionaries
of several sizes and L1 (docs/neuron_basis.md). What is printed compares them at one L0; all
dictionaries go to `regimes.csv`, and the picture to `regimes.png`, both in that folder.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sparse_dict import open_study  # noqa: E402
from sparse_dict.analysis.measures.effective_neurons import random_simpson  # noqa: E402
from sparse_dict.analysis.report import figures  # noqa: E402
from sparse_dict.errors import UserError  # noqa: E402
from sparse_dict.storage import files  # noqa: E402

THRESHOLD = 0.9  # an MCS above it is high, as in the post
# Columns of mean effective neurons, by what features they are of.
GROUPS = {"neurons_high": f"MCS > {THRESHOLD:g}", "neurons_low": "others in use"}
GROUPS |= {"neurons_dead": "dead"}
FEW = 5  # means over fewer features are not shown


def dictionaries(folder: Path) -> pd.DataFrame:
    """A row a dictionary that has a larger one, of all studies in `folder`.

    Columns: study, val_loss, std and linear (`pre_activations.measure` of the harvested layer),
    size, l1, l0, fvu, mmcs with the next larger dictionary, high (features with an MCS above
    `THRESHOLD`), dead (features never active on the evaluation rows), and the mean effective
    neurons of features with high MCS, of the others that are active and of the others that never
    are.

    Raises:
        UserError: no study has a finished dictionary, or one was not trained on one mlp_post.
    """
    homes = sorted({path.parents[2] for path in folder.glob("*/sae/*/metrics.json")})
    if not homes:
        raise UserError(f"{folder} holds no study with finished dictionaries")
    table = pd.DataFrame([row for home in homes for row in _study(home)])
    return table.sort_values(["linear", "study", "size", "l1"], ascending=[False, True, True, True])


def _study(home: Path) -> list[dict[str, Any]]:
    path = home / "activations" / "manifest.json"
    manifest = files.read_json(path)
    regimes = {measured["layer"]: measured for measured in manifest.get("pre_activations", [])}
    layer = manifest.get("layer")
    if layer not in regimes or manifest.get("site") != "mlp_post":
        raise UserError(f"{path} records no pre-activations of an mlp_post: harvest again")
    loss = files.read_json(home / "lm" / "lm.json")["losses"]["val_loss"]
    tables = open_study(home)
    of = {"study": home.name, "val_loss": loss, **{k: regimes[layer][k] for k in ("std", "linear")}}
    features = tables.joined(tables.dictionaries[tables.dictionaries["next_size"] > 0])
    rows = []
    for _, one in features.groupby("dictionary", sort=False):
        high, alive = one["next_mcs"] > THRESHOLD, one["alive"]
        row = {**of, **one.iloc[0][["size", "l1", "l0", "fvu"]]}
        row |= {"mmcs": one["next_mcs"].mean(), "high": high.sum(), "dead": (~alive).sum()}
        for name, group in zip(GROUPS, (high, ~high & alive, ~high & ~alive), strict=True):
            row[name] = one["neurons"][group].mean() if group.sum() >= FEW else np.nan
        rows.append(row)
    return rows


def at_l0(table: pd.DataFrame, l0: float) -> pd.DataFrame:
    """Each study and size at one L0: columns interpolated linearly in log L0 between the L1.

    ``nan`` where the L0 is outside of what was trained.
    """
    rows = []
    for _, group in table.groupby(["study", "size"], sort=False):
        group = group.sort_values("l0")
        row = group.iloc[0][["study", "val_loss", "std", "linear", "size"]].to_dict()
        for column in ("fvu", "mmcs", "high", "dead", *GROUPS):
            known = group[group[column].notna() & (group["l0"] > 0)]
            x, y = np.log(known["l0"].to_numpy(float)), known[column].to_numpy(float)
            row[column] = (
                np.interp(np.log(l0), x, y, left=np.nan, right=np.nan) if len(x) else np.nan
            )
        rows.append(row)
    return pd.DataFrame(rows)


def picture(table: pd.DataFrame, compared: pd.DataFrame, l0: float, neurons: int) -> Figure:
    """Effective neurons against L0 by study, and at one L0 against what is linear in z."""
    figure, (axes,) = figures.grid(1, 2, 3.6, sharey=True)
    size = table["size"].max()
    names = list(dict.fromkeys(table["study"]))
    for name, colour in zip(names, figures.shades(len(names)), strict=True):
        rows = table[(table["study"] == name) & (table["size"] == size)].sort_values("l0")
        label = f"{name}: {rows['linear'].iloc[0]:.0%} linear"
        high, low = (rows[column] for column in ("neurons_high", "neurons_low"))
        axes[0].plot(rows["l0"], high, color=colour, marker="o", ms=4, lw=1, label=label)
        axes[0].plot(rows["l0"], low, color=colour, marker="x", ms=4, lw=0.8, ls=":")
    axes[0].set_xscale("log", base=2)
    axes[0].xaxis.set_major_formatter("{x:g}")
    axes[0].set_xlabel("L0: features active on a row, mean")
    axes[0].set_ylabel("effective neurons, mean")
    axes[0].set_title(f"size {size}: MCS > {THRESHOLD:g} (solid), others in use (dotted)")
    chosen = compared[compared["size"] == size]
    looks = ((figures.BLUE, "o"), (figures.ORANGE, "x"), (figures.GREY, "s"))
    for (column, label), (colour, marker) in zip(GROUPS.items(), looks, strict=True):
        style = {"color": colour, "marker": marker, "ls": "", "ms": 5}
        axes[1].plot(chosen["linear"], chosen[column], label=label, **style)
    for axis in axes:
        label = "random directions" if axis is axes[1] else None
        axis.axhline(random_simpson(neurons), color="black", lw=0.8, ls="--", label=label)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    axes[1].set_xlabel("share of the hidden activation linear in z")
    axes[1].set_title(f"size {size}, at L0 {l0:g}")
    return figure


def main() -> None:
    """Print the comparison and write its files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="holds the studies")
    parser.add_argument("--l0", type=float, default=6.0, help="compare at this L0 (default 6)")
    given = parser.parse_args()
    table = dictionaries(given.folder)
    compared = at_l0(table, given.l0)
    files.write_text(given.folder / "regimes.csv", table.to_csv(index=False))
    first = open_study(given.folder / table["study"].iloc[0])
    with figures.style():
        drawn = picture(table, compared, given.l0, first.about.d_in)
        figures.save(drawn, given.folder, "regimes")
    print(f"At an L0 of {given.l0:g}:\n\n{compared.round(3).to_string(index=False)}\n")
    print(table[table["size"] == table["size"].max()].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
