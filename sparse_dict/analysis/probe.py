"""The end of `experiment=probe`: a table and picture of its ladder (a rung per L1 or k); advice."""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sparse_dict.config import ActivationsConfig
from sparse_dict.sae import folder as folders
from sparse_dict.sae.usefulness import ENOUGH, Metrics, axis, recommended

# Overrides of the probe itself, which are no part of the command that it recommends.
OWN = ("experiment", "sae", "seed", "sae.dict_size", "sae.l1", "sae.k", "sae.l0", "hydra.mode")
OWN_SECTIONS = ("training.", "tracking.", "optimizer.")


def of_neurons(rungs: Sequence[Metrics]) -> list[float]:
    """FVU of the neurons that lie furthest from their means, as many as each rung's L0.

    On the evaluation rows of the rungs; nan for transcoders: no neuron maps a site to another.

    Raises:
        UserError: the activations are not there.
    """
    from sparse_dict.activations.side_by_side import open_all
    from sparse_dict.analysis.measures.bases import Rows, around, at_sparsity, neurons
    from sparse_dict.sae.scaling import Scaling

    sae, folders = rungs[0]["config"]["sae"], rungs[0]["config"]["activations_dir"]
    if sae.get("target"):
        return [math.nan] * len(rungs)
    named = [folders] if isinstance(folders, str) else folders
    x = open_all(*map(Path, named)).at(sae.get("site"))
    scaling = Scaling.of(ActivationsConfig(**rungs[0]["config"]["activations"]), x)
    basis = neurons((x.mean / scaling.balance).astype("f4"))
    start = x.rows - rungs[0]["eval_rows"]
    rows = Rows(lambda *ends: x.read(*ends) / scaling.balance, start, x.rows, x.d_in)
    ks = sorted({min(k, x.d_in) for k in around(m["l0"] for m in rungs)})
    left = sum(basis.errors(part, basis.encode(part), ks).sum(0) for part in rows.chunks())
    mean = rows.mean()
    whole = sum(float(((part - mean) ** 2).sum()) for part in rows.chunks())
    return [float(at_sparsity(ks, left[None] / whole, m["l0"])[0]) for m in rungs]


def table(rungs: Sequence[Metrics], neurons: Sequence[float]) -> list[str]:
    """A line for each rung, sparsest last; beside its FVU that of as many neurons."""
    key = axis(rungs[0])
    lines = [f"{key:>8} {'FVU':>7} {'neurons':>8} {'L0':>7} {'dead':>6}"]
    for m, theirs in zip(rungs, neurons, strict=True):
        numbers = f"{m['fvu']:>7.3f} {theirs:>8.3f} {m['l0']:>7.1f} {m['dead']:>6}"
        lines.append(f"{_level(m):>8g} {numbers}")
    return lines


def beside_neurons(rungs: Sequence[Metrics], neurons: Sequence[float]) -> str:
    """What the comparison says of the rung that is recommended, or of all."""
    chosen = recommended(rungs)
    pairs = [(m["fvu"], n) for m, n in zip(rungs, neurons, strict=True) if chosen in (None, m)]
    text = "neurons: FVU of as many neurons as L0, those furthest from their means"
    if any(math.isnan(theirs) for _, theirs in pairs):
        return f"{text}; of transcoders there is none."
    if all(ours >= theirs for ours, theirs in pairs):
        return f"{text}. They leave less than the dictionary: train longer, or with more features."
    return f"{text}."


def _level(m: Metrics) -> float:
    return float(m["config"]["sae"][axis(m)])


def advice(rungs: Sequence[Metrics], overrides: Sequence[str], kind: str) -> list[str]:
    """What to do after a ladder of `kind`, in lines; the last is a command."""
    key, size = axis(rungs[0]), rungs[0]["dict_size"]
    kept = [text for text in overrides if not _own(text.lstrip("+~").partition("=")[0])]
    words = " ".join([*kept, *([f"sae={kind}"] if kind != "untied" else [])])
    chosen = recommended(rungs)
    if chosen is None:
        lower = ",".join(f"{_level(m) / 32:g}" for m in rungs)
        why = "No value is usable: all explain nothing, have an L0 below 1, or are mostly dead."
        if key == "k":
            return [why, "Try sae.init=aligned, fewer features, or activations.centering=mean."]
        return [why, f"python train_sae.py experiment=probe {words} sae.{key}={lower}"]
    level = _level(chosen)
    lines = [
        f"{key} {level:g}: FVU {chosen['fvu']:.2f} with {chosen['l0']:.0f} active features a row; "
        f"the sparsest that explains {ENOUGH:.0%} of what the best of these does."
    ]
    if chosen in (rungs[0], rungs[-1]):
        lines.append("It is at an end of the values tried: values beyond may be better.")
    levels = [f"{level * factor:g}" for factor in (0.5, 1, 2)]
    if key == "k":
        levels = [str(round(level * factor)) for factor in (0.5, 1, 2) if level > 1]
    sizes = [size, 2 * size, 4 * size]
    seconds = max(m["seconds"] for m in rungs)
    speed = sum(m["dict_size"] * m["n_activations"] for m in rungs) / seconds
    hours = sum(sizes) * len(levels) * 2 * 1e6 / speed / 3600
    time = f"{hours:.1f} h" if hours >= 1 else f"{max(60 * hours, 1):.0f} min"
    lines.append(f"At this speed the grid below takes {time} a million of training.n_activations.")
    grid = f"sae.dict_size={_list(sizes)} sae.{key}={_list(levels)} seed=0,1"
    return [*lines, f"python train_sae.py -m {words} {grid}".replace("  ", " ")]


def _list(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def _own(key: str) -> bool:
    return key in OWN or key.startswith(OWN_SECTIONS)


def draw(rungs: Sequence[Metrics], neurons: Sequence[float], path: Path) -> None:
    """FVU, L0 and the share of dead features by level, the recommended rung marked.

    Dashed, the FVU of as many neurons.
    """
    import matplotlib.pyplot as plt

    from sparse_dict.analysis.report import figures
    from sparse_dict.analysis.study import NAMES

    levels = [_level(m) for m in rungs]
    chosen = recommended(rungs)
    with figures.style():
        figure, axes = plt.subplots(1, 3, figsize=(figures.WIDTH, 2.4), squeeze=False)
        for panel, (name, values) in zip(
            axes[0],
            {
                "FVU: variance unexplained": [m["fvu"] for m in rungs],
                "L0: active features a row": [max(m["l0"], 0.1) for m in rungs],
                "share of features dead": [m["dead"] / m["dict_size"] for m in rungs],
            }.items(),
            strict=True,
        ):
            panel.plot(levels, values, "o-", color=figures.BLUE, ms=4)
            if chosen is not None:
                panel.axvline(_level(chosen), color=figures.ORANGE, ls="--", lw=1)
            panel.set_xscale("log")
            panel.set_xticks(levels[1::2], [f"{level:g}" for level in levels[1::2]])
            panel.minorticks_off()
            panel.set_title(name)
            panel.set_xlabel(NAMES[axis(rungs[0])])
        label = "as many neurons"
        axes[0, 0].plot(levels, neurons, "--", color=figures.GREY, lw=1, label=label)
        axes[0, 0].legend()
        axes[0, 0].set_ylim(0, None)
        axes[0, 1].set_yscale("log")
        axes[0, 2].set_ylim(0, 1)
        figures.save(figure, path.parent, path.name)


class Recommend(Callback):
    """Prints what a finished ladder says."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """A table, a picture and a command for each kind and size in the probe's folder."""
        folder = Path(str(config.hydra.sweep.dir))
        found: dict[tuple[str, bool, int, str], list[Metrics]] = defaultdict(list)
        for path in sorted(folder.glob(f"*/{folders.METRICS}")):
            m: Metrics = folders.read_metrics(path.parent)
            sae = m["config"]["sae"]
            at = " to ".join(sae[key] for key in ("site", "target") if sae.get(key))
            found[m["activation"], m["tied"], m["dict_size"], at].append(m)
        overrides = [str(text) for text in config.hydra.overrides.task]
        kind = str(config.hydra.runtime.choices["sae"])
        for (activation, _tied, size, at), rungs in found.items():
            rungs.sort(key=_level)
            place = f"-{at.replace('/', '-').replace(' ', '-')}" if at else ""
            name = f"probe-{activation}-{size}{place}"
            neurons = of_neurons(rungs)
            draw(rungs, neurons, folder / name)
            of = f", {at}" if at else ""
            lines = [f"{kind}, {size} features, {rungs[0]['d_in']} wide{of}"]
            lines += [*table(rungs, neurons), beside_neurons(rungs, neurons)]
            lines += [f"picture: {folder / name}.png", "", *advice(rungs, overrides, kind)]
            sys.stdout.write("\n".join(lines) + "\n")
