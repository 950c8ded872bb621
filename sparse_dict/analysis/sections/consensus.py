"""A dictionary of what recurs over seeds, and whether another half of the seeds gives the same."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis import harvested
from sparse_dict.analysis.claim import SEVERAL_SEEDS
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.frame import Analysis
from sparse_dict.analysis.measures import gaussian_rows, random_directions
from sparse_dict.analysis.measures.consensus import (
    BATCH,
    STEPS,
    Features,
    Index,
    consensus,
    fvu,
    pool,
    refit,
)
from sparse_dict.analysis.measures.mcs import Floats, match, max_cosine
from sparse_dict.analysis.reconstruction_loss import (
    MEAN,
    ORIGINAL,
    Replacement,
    held_out,
    losses,
    recovered,
)
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Block, Table
from sparse_dict.analysis.sections import truth
from sparse_dict.analysis.study import Entry, Study, kin, rows, seed_groups
from sparse_dict.config import ConsensusConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as folders
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.imported.measured import measured
from sparse_dict.storage import files

TOGETHER, SINGLE, POOLED = "consensus", "single, as large", "pooled, as large"
METHODS = (TOGETHER, SINGLE, POOLED)
TRUE = 0.9  # cosine with a toy's true feature, above which that is found
MOST = 16_384  # features clustered at a time: a GiB of distances
FOLDER = "consensus"  # in the analysis' folder: the consensus dictionary of all seeds
PANELS = {
    "pw_mcc": "PW-MCC with the consensus of the other half",
    "fvu": "FVU at the same k",
    "recovered": "loss recovered",
    "precision": "share of features that are true",
    "recall": "share of true features found",
    "features": "features",
}


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The split-half test by number of seeds, and the dictionary of all, which is written.

    Raises:
        UserError: there are too many features, or the activations are not there.
    """
    settings, sides = context.settings(ConsensusConfig), _sides(context)
    group = [entry for side in sides for entry in side]
    if len(group) < 2:
        return {}
    living = sum(int(entry.alive.sum()) for entry in group)
    if living > MOST:
        raise UserError(f"{living:,} features exceed the {MOST:,} clustered")
    activations, evaluation = context.activations, context.evaluation_rows()
    x = activations.read(0, min(BATCH * STEPS, activations.rows))
    truths = truth.read(context) if truth.is_toy(context) else None
    of_loss, why = None, ""
    if activations.manifest is not None and truths is None:
        try:
            of_loss = _loss(context)
        except UserError as error:
            why = str(error)
    fewer, found = min(map(len, sides)), []
    pairs = [(n, pair) for n in _sizes(fewer) for pair in range(min(settings.halves, fewer // n))]
    with Progress("consensus", len(pairs), "pairs of halves") as progress:
        for n, pair in pairs:
            chosen = slice(n * pair, n * (pair + 1))
            halves = [_half(side[chosen], settings, x, i) for i, side in enumerate(sides)]
            for method in METHODS:
                row = _row([half[method] for half in halves], evaluation, truths, of_loss)
                found.append({"seeds": n, "pair": pair, "of": method, **row})
            progress.advance(1)
    together, recurs = _consensus(group, settings)
    whole = refit(together, _bias(group), _k(group), x)
    _write(context, group, whole, settings)
    described = {
        "seeds": len(group), "size": group[0].size, "setting": group[0].setting,
        "halved": rows(sides[0][0]) != rows(sides[1][0]), "k": _k(group),
        "features": len(recurs), "everywhere": int((recurs == len(group)).sum()),
        **_missed(whole.W_dec, group, settings.cosine), "loss_missing": why,
    }  # fmt: skip
    if truths is not None:
        described["true"] = _share(truths, whole.W_dec)
        described["true_alone"] = float(np.mean([_share(truths, e.decoder) for e in group]))
    return {"consensus": pd.DataFrame(found), "consensus_of_all": pd.DataFrame([described])}


def groups(study: Study) -> Iterator[tuple[list[Entry], list[Entry]]]:
    """Dictionaries of one size and kind in two groups, in the order in which they are compared.

    Two halves of the seeds; or, where seeds were trained on either half of the rows, the two halves
    of the rows, seeds in opposite orders.
    """
    for alike in seed_groups(study):
        yield alike[: len(alike) // 2], alike[len(alike) // 2 :]
    halves: dict[Any, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(study.entries, key=lambda e: e.seed):
        half, split = rows(entry)
        halves[entry.size, kin(entry), split][half].append(entry)
    for of in halves.values():
        if of["half_a"] and of["half_b"]:
            yield of["half_a"], of["half_b"][::-1]


def _sides(context: Context) -> tuple[list[Entry], list[Entry]]:
    """The largest groups to compare; among equals of the chosen level, then of the largest size."""
    main = context.comparison.main

    def rank(sides: tuple[list[Entry], list[Entry]]) -> tuple[int, bool, int]:
        entry = sides[0][0]
        chosen = main is not None and (entry.family, entry.level) == (main.family, main.level)
        return sum(map(len, sides)), chosen, entry.size

    return max(groups(context.study), key=rank, default=([], []))


def _sizes(n: int) -> list[int]:
    """How many seeds a side has: 1, 2, 4 ... up to n; none if n is 1, where nothing recurs."""
    return [1 << i for i in range(n.bit_length()) if n > 1]


def _k(group: Sequence[Entry]) -> int:
    return max(round(float(np.mean([entry.metrics["l0"] for entry in group]))), 1)


def _bias(group: Sequence[Entry]) -> Floats:
    return np.mean([entry.trained.dictionary.b_dec for entry in group], axis=0)


def _consensus(group: Sequence[Entry], settings: ConsensusConfig) -> tuple[Features, Index]:
    members = [entry.trained.dictionary for entry in group]
    return consensus(members, [entry.alive for entry in group], settings.cosine, settings.share)


def _half(
    group: Sequence[Entry], settings: ConsensusConfig, x: Floats, seed: int
) -> dict[str, Dictionary]:
    """The consensus of `group`, and dictionaries as large from its first member and from all."""
    members, alive = [e.trained.dictionary for e in group], [e.alive for e in group]
    together, _ = _consensus(group, settings)
    n = len(together.b_enc)
    single, _ = pool(members[:1], alive[:1])
    energy = np.square(members[0].encode(x[:16_384])[:, alive[0]]).sum(0)
    pooled, _ = pool(members, alive)
    drawn = np.random.default_rng(seed).permutation(len(pooled.b_enc))[:n]
    parts = (together, single.chosen(np.argsort(-energy)[:n]), pooled.chosen(drawn))
    k, bias = _k(group), _bias(group)
    return {name: refit(part, bias, k, x) for name, part in zip(METHODS, parts, strict=True)}


def _row(
    halves: Sequence[Dictionary], x: Floats, truths: Floats | None,
    of_loss: Callable[[Dictionary], float] | None,
) -> dict[str, float]:  # fmt: skip
    """The numbers of one method on one pair of halves, means over both."""
    small, large = sorted((half.W_dec for half in halves), key=len)
    _, cosine = match(small, large)
    laws = [gaussian_rows.Law.of(rows) for rows in (small, large)]
    row = {
        "features": (len(small) + len(large)) / 2,
        "pw_mcc": cosine.mean(),
        "random": random_directions.max_mean(small.shape[1], len(large)),
        "gaussian": gaussian_rows.mcs(laws[0], laws[1:], 2048).mean(),
        "above": (cosine > TRUE).mean(),
        "fvu": np.mean([fvu(half, x) for half in halves]),
    }
    if of_loss is not None:
        row["recovered"] = np.mean([of_loss(half) for half in halves])
    if truths is not None:
        row["precision"] = np.mean([_share(half.W_dec, truths) for half in halves])
        row["recall"] = np.mean([_share(truths, half.W_dec) for half in halves])
    return {key: float(value) for key, value in row.items()}


def _share(directions: Floats, others: Floats) -> float:
    """The share of some directions that are among others."""
    return float((truth.mcs(directions, others, 2048) > TRUE).mean())


def _loss(context: Context) -> Callable[[Dictionary], float]:
    """Loss recovered of mean-ablation by a dictionary.

    Raises:
        UserError: the language model or its text is not there.
    """
    manifest, config = context.activations.manifest, context.config
    assert manifest is not None
    place, lm = harvested.place(manifest, context.study.site), harvested.model(manifest, config)
    tokens = context.settings(ConsensusConfig).tokens
    text, _ = held_out(manifest, Path(config.cache_dir), lm.n_ctx, tokens)

    def of(dictionary: Dictionary) -> float:
        how = Replacement(("it",), lambda x: [dictionary.reconstruct(x)])
        found = losses(lm.model, text, place, context.activations.mean, [how])
        return recovered(found["it"], found[ORIGINAL], found[MEAN]).value

    return of


def _missed(W_dec: Floats, group: Sequence[Entry], bar: float) -> dict[str, float]:
    """How many of the consensus' features single dictionaries lack, and their living features."""
    every = [int((max_cosine(W_dec, e.decoder) < bar).sum()) for e in group]
    living = [int((max_cosine(W_dec, e.decoder[e.alive]) < bar).sum()) for e in group]
    return {
        "missed": float(np.mean(every)), "missed_least": min(every), "missed_most": max(every),
        "missed_alive": float(np.mean(living)),
    }  # fmt: skip


def _write(
    context: Context, group: Sequence[Entry], found: Dictionary, settings: ConsensusConfig
) -> None:
    """Write the consensus of all seeds as a dictionary's folder, which any analysis can read."""
    made = {"consensus": {"seeds": len(group), "cosine": settings.cosine, "share": settings.share}}
    metrics, fire_count = measured(found, context.activations, "topk", made)
    hook = files.read_json(group[0].trained.folder / folders.CONFIG).get("metadata") or {}
    # This goes to the final folder, not to the partial one: an earlier file there is overwritten.
    home = Path(context.config.analysis_dir) / FOLDER
    (home / folders.METRICS).unlink(missing_ok=True)
    folders.write(home, found, fire_count, metrics, str(hook.get("hook_name", "unknown")))


def show(context: Context) -> Iterator[Block]:
    """What the dictionary of all seeds holds, and the split-half test."""
    others, settings = context.tables.others, context.settings(ConsensusConfig)
    if "consensus" not in others:
        yield MISSING.format(f"needs {SEVERAL_SEEDS.what}")
        return
    table, of = others["consensus"], others["consensus_of_all"].iloc[0]
    differ = "the seed, on either half of the rows," if of["halved"] else "the seed"
    found = ""
    if "true" in of:
        found = (
            f" It finds {of['true']:.0%} of the true features, a single dictionary of {of['size']} "
            f"{of['true_alone']:.0%} on average."
        )
    yield (
        f"Of {of['seeds']} dictionaries that differ in {differ} ({of['size']} features, "
        f"{of['setting']}; cosine {settings.cosine:g}, more than {settings.share:.0%} of the "
        f"seeds, k = {of['k']}) the consensus has {of['features']} features; {of['everywhere']} "
        f"recur in every seed. A single dictionary lacks {of['missed']:.0f} of them on average "
        f"({of['missed_least']} to {of['missed_most']}; cosine below {settings.cosine:g}), its "
        f"features ever active {of['missed_alive']:.0f}.{found} It is the folder {FOLDER} beside "
        "this report."
    )
    if of["loss_missing"]:
        yield f"The language model's loss is missing: {of['loss_missing']}."
    if table.empty:
        yield "The split-half test needs four seeds."
        return
    title = f"Consensus of seeds: {of['size']} features, {of['setting']}"
    yield context.figure("consensus", draw(table, title))
    means = table.drop(columns="pair").groupby(["seeds", "of"], sort=False).mean()
    yield Table("Split halves", means.reset_index())


def draw(table: pd.DataFrame, title: str) -> Figure:
    """Agreement of halves, error, loss or recall, and number of features, by number of seeds."""
    figure, axes = figures.grid(2, 2, 5.2, sharex=True)
    chosen = [column for column in PANELS if column in table][:4]
    colours = dict(zip(METHODS, (figures.BLUE, figures.ORANGE, figures.GREY), strict=True))
    sizes = sorted(table["seeds"].unique())
    for axis, column in zip(axes.flat, chosen, strict=True):
        sns.lineplot(
            table, x="seeds", y=column, hue="of", style="of", markers=True, dashes=False,
            palette=colours, errorbar=("pi", 100), ax=axis,
        )  # fmt: skip
        axis.set(title=PANELS[column], ylabel="", xlabel="seeds S in each half")
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(s) for s in sizes])
        if column in ("fvu", "features"):
            axis.set_ylim(0, 1.08 * float(table[column].max()))
        else:
            axis.set_ylim(min(0.0, float(table[column].min())), 1.03)
    nulls = table[table["of"] == TOGETHER].groupby("seeds")[["random", "gaussian"]].mean()
    for column, colour in (("random", "black"), ("gaussian", figures.PURPLE)):
        axes[0, 0].plot(nulls.index, nulls[column], color=colour, ls="--", lw=0.8)
    figures.below(figure, axes[0, 0], 3)
    figure.suptitle(title)
    return figure


def _of_autoencoders(context: Context) -> bool:
    return context.study.target is None


ANALYSIS = Analysis("consensus", show, (), measure, applies=_of_autoencoders)
