"""The end of `experiment=probe`: tables and a picture of its kinds of dictionaries, and advice."""

import logging
import math
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from sparse_dict.config import ActivationsConfig
from sparse_dict.sae import folder as folders
from sparse_dict.sae.usefulness import ENOUGH, SPARSE, Metrics, axis, recommended

log = logging.getLogger(__name__)

TARGETS = (16, 32, 64)  # active features a row, at which kinds and bases are compared
FITTED = 20_000  # rows that ICA is fitted on, at most
LEAST = 1_000_000  # rows that the command trains on, or each three times
# Overrides of the probe itself, which are no part of the command that it recommends.
OWN = ("sae", "seed", "sae.dict_size", "sae.l1", "sae.k", "sae.l0", "training.n_activations")

Kinds = Mapping[str, Sequence[Metrics]]  # the levels of each kind, the sparsest first
Bases = Mapping[str, Sequence[float]]  # FVU of each simple basis at the targets


def kind(m: Metrics) -> str:
    """What `sae=` chooses it."""
    return m["activation"] if m["activation"] != "relu" else "tied" if m["tied"] else "untied"


def level(m: Metrics) -> float:
    """The value of what makes it sparse."""
    return float(m["config"]["sae"][axis(m)])


def at_targets(rungs: Sequence[Metrics]) -> list[float]:
    """FVU at the targets between the levels of a kind, along log L0; nan beyond them."""
    if not (living := sorted((m["l0"], m["fvu"]) for m in rungs if m["l0"] > 0)):
        return [np.nan] * len(TARGETS)
    l0s, fvus = np.array(living).T
    return [*np.interp(np.log(TARGETS), np.log(l0s), fvus, np.nan, np.nan)]


def simple_bases(m: Metrics) -> tuple[int, Bases]:
    """How many rows the activations have, and FVU of neurons and ICA at the targets.

    On the evaluation rows of a dictionary; none for transcoders: no basis maps a site to another.
    """
    from sparse_dict.activations.side_by_side import open_all
    from sparse_dict.analysis.measures import bases
    from sparse_dict.sae.scaling import Scaling

    sae, folders = m["config"]["sae"], m["config"]["activations_dir"]
    named = [folders] if isinstance(folders, str) else folders
    x = open_all(*map(Path, named)).at(sae.get("site"))
    if sae.get("target"):
        return x.rows, {}
    balance = Scaling.of(ActivationsConfig(**m["config"]["activations"]), x).balance
    start, d = x.rows - m["eval_rows"], x.d_in
    seen, rows = x.read(0, min(start, FITTED)) / balance, x.read(start, x.rows) / balance
    whole, ks = bases.deviations(rows).sum(), [min(k, d) for k in TARGETS]
    simple = {"neurons": bases.neurons((x.mean / balance).astype("f4"))}
    if bases.affordable(["ica"], d) and len(seen) >= 2 * d:
        simple["ica"] = bases.fit("ica", seen, 0)
    found = {}
    for name, basis in simple.items():
        parts = bases.chunks(rows)
        left = sum(basis.errors(part, basis.encode(part), ks).sum(0) for part in parts)
        found[bases.LABELS[name]] = [*(left / whole)]
    return x.rows, found


def table(kinds: Kinds, simple: Bases) -> list[str]:
    """A line for each dictionary, and FVU at the targets of each kind and simple basis."""
    lines = [f"{'':<12} {'':>8} {'FVU':>7} {'L0':>7} {'dead':>6}"]
    for name, m in ((name, m) for name, rungs in kinds.items() for m in rungs):
        numbers = f"{m['fvu']:>7.3f} {m['l0']:>7.1f} {m['dead']:>6}"
        lines.append(f"{name:<12} {f'{axis(m)} {level(m):g}':>8} {numbers}")
    lines += ["", f"{'FVU at L0':<18} " + " ".join(f"{k:>7}" for k in TARGETS)]
    for name, values in {**{k: at_targets(v) for k, v in kinds.items()}, **simple}.items():
        shown = " ".join("      -" if math.isnan(fvu) else f"{fvu:>7.3f}" for fvu in values)
        lines.append(f"{name:<18} {shown}")
    return lines


def advice(kinds: Kinds, rows: int, overrides: Sequence[str]) -> list[str]:
    """What to do next, in lines; the last is a command, and before it how long that takes."""
    every = [m for rungs in kinds.values() for m in rungs]
    chosen = recommended(every)
    if chosen is None:
        return [
            "None is usable: all explain nothing, have an L0 below 1, or are mostly dead. Raise "
            "training.n_activations, or try sae.init=aligned or activations.centering=mean."
        ]
    key, at, size = axis(chosen), level(chosen), chosen["dict_size"]
    lines = [
        f"{kind(chosen)}, {key} {at:g}: FVU {chosen['fvu']:.2f} with {chosen['l0']:.0f} active "
        f"features a row; the sparsest that explains {ENOUGH:.0%} of what the best of these does "
        f"with at most {SPARSE:.0%} of its features active."
    ]
    if chosen in (kinds[kind(chosen)][0], kinds[kind(chosen)][-1]):
        lines.append("It is at an end of the values tried: values beyond may be better.")
    levels = [f"{at * factor:g}" for factor in (0.5, 1, 2)]
    if key == "k":
        levels = [str(round(at * factor)) for factor in (0.5, 1, 2) if at > 1]
    sizes, n = [size // 2, size, 2 * size], int(float(f"{max(3 * rows, LEAST):.2g}"))
    seconds = max(m["seconds"] for m in every)
    speed = sum(m["dict_size"] * m["n_activations"] for m in every) / seconds
    minutes = sum(sizes) * len(levels) * 2 * n / speed / 60
    time = f"{minutes / 60:.1f} h" if minutes >= 60 else f"{max(minutes, 1):.0f} min"
    words = " ".join([*_kept(overrides), f"sae={kind(chosen)}"])
    grid = f"sae.dict_size={_list(sizes)} sae.{key}={_list(levels)} seed=0,1"
    return [
        *lines,
        f"At this speed the next command, {6 * len(levels)} dictionaries, takes {time}:",
        f"python train_sae.py -m {words} {grid} training.n_activations={n}",
    ]


def _kept(overrides: Sequence[str]) -> list[str]:
    """Those that are part of the command, as the shell takes them."""
    kept = []
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        if key == "experiment":
            beside = [name for name in value.strip("[]").split(",") if name != "probe"]
            text = f"experiment={beside[0] if len(beside) == 1 else f'[{_list(beside)}]'}"
            key = key if beside else "sae"
        if key not in OWN and not key.startswith(("sparsity", "hydra.")):
            kept.append(shlex.quote(text))
    return kept


def _list(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def draw(kinds: Kinds, simple: Bases, path: Path) -> None:
    """FVU against L0, a line for each kind, the dictionary that is recommended marked."""
    import matplotlib.pyplot as plt

    from sparse_dict.analysis.report import figures

    with figures.style():
        figure, panel = plt.subplots(figsize=(5.2, 3.4))
        for name, rungs in kinds.items():
            points = np.reshape([(m["l0"], m["fvu"]) for m in rungs if m["l0"] > 0], (-1, 2))
            panel.plot(*points.T, "o-", ms=4, label=name)
        for name, values in simple.items():
            panel.plot(TARGETS, values, "--", lw=1, label=name)
        if (m := recommended([m for rungs in kinds.values() for m in rungs])) is not None:
            panel.plot(m["l0"], m["fvu"], "o", ms=11, mfc="none", color=figures.ORANGE)
        panel.set(xscale="log", ylim=(0, None), xlabel="L0: active features a row")
        panel.set_ylabel("FVU: variance unexplained")
        panel.legend()
        figures.save(figure, path.parent, path.name)


class Recommend(Callback):
    """Prints what the finished dictionaries of a probe say."""

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Tables, a picture and a command for each size and site in the probe's folder."""
        folder = Path(str(config.hydra.sweep.dir))
        found: dict[tuple[int, str], dict[str, list[Metrics]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for path in sorted(folder.glob(f"*/{folders.METRICS}")):
            m: Metrics = folders.read_metrics(path.parent)
            sae = m["config"]["sae"]
            at = " to ".join(sae[key] for key in ("site", "target") if sae.get(key))
            found[m["dict_size"], at][kind(m)].append(m)
        overrides = [str(text) for text in config.hydra.overrides.task]
        for (size, at), kinds in found.items():
            for rungs in kinds.values():
                rungs.sort(key=lambda m: m["l0"])
            any_one = next(iter(kinds.values()))[0]
            log.info("comparing with neurons and ICA")
            rows, simple = simple_bases(any_one)
            place = f"-{at.replace('/', '-').replace(' ', '-')}" if at else ""
            path = folder / f"probe-{size}{place}"
            draw(kinds, simple, path)
            of = f", {at}" if at else ""
            lines = [f"{size} features of activations {any_one['d_in']} wide{of}"]
            lines += [*table(kinds, simple), "", f"picture: {path}.png", ""]
            sys.stdout.write("\n".join([*lines, *advice(kinds, rows, overrides)]) + "\n")
