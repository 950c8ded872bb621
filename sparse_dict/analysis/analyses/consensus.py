"""A dictionary of what recurs over seeds, and whether another half of the seeds gives the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sparse_dict.analysis import harvested, seeds
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measures import random_directions
from sparse_dict.analysis.measures.consensus import (
    BATCH,
    STEPS,
    Index,
    Part,
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
)
from sparse_dict.analysis.reconstruction_loss import recovered as recovered_share
from sparse_dict.analysis.report import figures
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.analysis.sections import truth
from sparse_dict.analysis.study import Entry
from sparse_dict.config import ConsensusConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as folders
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.imported.measured import measured
from sparse_dict.storage import files

TOGETHER, SINGLE, POOLED = "consensus", "single, as large", "pooled, as large"
METHODS = (TOGETHER, SINGLE, POOLED)
MOST = 16_384  # features clustered at a time: a GiB of distances
FOLDER = "consensus"  # in the analysis' folder: the consensus dictionary of all seeds


@dataclass(frozen=True)
class Half:
    """What one half of the seeds gives: a refitted dictionary for each of METHODS."""

    made: dict[str, Dictionary]
    members: tuple[Entry, ...]


def section(context: Context) -> Section:
    """The split-half test by number of seeds, and the dictionary of all; `consensus.csv`."""
    title, settings = "What recurs over seeds", context.settings(ConsensusConfig)
    sides = _sides(context)
    group = [*sides[0], *sides[1]]
    if context.study.target is not None:
        return Section(title, ["This needs autoencoders; these dictionaries are transcoders."])
    if len(group) < 2:
        return Section(title, ["The study has one seed for each setting; train with -m seed=0,1."])
    living = sum(int(entry.alive.sum()) for entry in group)
    if living > MOST:
        return Section(
            title, [MISSING.format(f"{living:,} features exceed the {MOST:,} clustered")]
        )
    try:
        activations = context.activations
        truths = truth.read(context) if truth.is_toy(context) else None
    except UserError as error:
        return Section(title, [MISSING.format(error)])
    x = activations.read(0, min(BATCH * STEPS, activations.rows))
    held_out = context.evaluation_rows()
    recovered, why = _loss(context)
    rows = []
    fewer = min(map(len, sides))
    pairs = [
        (size, pair)
        for size in _sizes(fewer)
        for pair in range(min(settings.halves, fewer // size))
    ]
    with Progress("consensus", len(pairs), "pairs of halves") as progress:
        for size, pair in pairs:
            chosen = slice(size * pair, size * (pair + 1))
            halves = [_half(side[chosen], settings, x, i) for i, side in enumerate(sides)]
            rows += [
                _row(method, size, pair, halves, held_out, truths, recovered) for method in METHODS
            ]
            progress.advance(1)
    whole, recurs = _consensus(group, settings)
    written = refit(whole, _bias(group), _k(group), x)
    _write(context, group, written, settings)
    first = group[0]
    missed = _missed(written.W_dec, group, settings.cosine)
    text = (
        f"{len(group)} dictionaries that differ in {_differ(sides)} ({first.size} features, "
        f"{first.setting}). Living decoder rows are clustered by average linkage until the mean "
        f"cosine of two clusters is below {settings.cosine:g}; a cluster with rows of more than "
        f"{settings.share:.0%} of the seeds becomes a feature, the mean of its rows. Each "
        "dictionary below has its encoder refitted with its directions fixed, as TopK with the "
        f"members' mean L0 (k = {_k(group)}), so all are compared at the same k. Two dictionaries "
        "with as many features stand beside it: “single”, the features of one seed that carry the "
        "most squared activation; “pooled”, features drawn at random from all seeds."
    )
    everywhere = int((recurs == len(group)).sum())
    answer = (
        f"The consensus of all {len(group)} seeds has {len(recurs)} features; {everywhere} recur "
        f"in every seed. A single dictionary of {first.size} lacks {missed.mean():.0f} of them on "
        f"average ({missed.min()} to {missed.max()}; cosine below {settings.cosine:g})"
    )
    if truths is not None:
        found = truth.mcs(truths, written.W_dec, 2048) > 0.9
        alone = [float((truth.mcs(truths, e.decoder, 2048) > 0.9).mean()) for e in group]
        answer += (
            f". It finds {found.mean():.0%} of the true features, a single dictionary of "
            f"{first.size} {np.mean(alone):.0%} on average"
        )
    result = Section(title, [text, answer + f". It is the folder {FOLDER} beside this report."])
    if why:
        result.blocks.append(f"The language model's loss is missing: {why}.")
    if not rows:
        result.blocks.append("The split-half test needs four seeds.")
        return result
    table = pd.DataFrame(rows)
    files.write_text(context.folder / "consensus.csv", table.to_csv(index=False))
    result.blocks += [
        context.draw(
            "consensus", picture(table, first, truths is not None),
            "Consensus of seeds: does the other half give the same?",
            "Each number of seeds S against S others. Dashed: random directions. A consensus that "
            "finds real features agrees better with that of other seeds as S grows.",
        ),
        Table("Split halves", table.drop(columns=["pair"]).groupby(["seeds", "of"], sort=False)
              .mean().reset_index()),
    ]  # fmt: skip
    return result


def _sides(context: Context) -> tuple[list[Entry], list[Entry]]:
    """The largest groups to compare; among equals of the chosen level, then of the largest size."""
    main = context.comparison.main

    def rank(sides: tuple[list[Entry], list[Entry]]) -> tuple[int, bool, int]:
        entry = sides[0][0]
        chosen = main is not None and (entry.family, entry.level) == (main.family, main.level)
        return sum(map(len, sides)), chosen, entry.size

    return max(seeds.sides(context.study), key=rank, default=([], []))


def _differ(sides: tuple[list[Entry], list[Entry]]) -> str:
    """In what the dictionaries of both sides differ."""
    if seeds.rows(sides[0][0]) == seeds.rows(sides[1][0]):
        return "the seed"
    return "the seed, on either half of the rows,"


def _sizes(n: int) -> list[int]:
    """How many seeds a side has: 1, 2, 4 ... up to n; none if n is 1, where nothing recurs."""
    return [1 << i for i in range(n.bit_length()) if n > 1]


def _k(group: Sequence[Entry]) -> int:
    return max(round(float(np.mean([entry.metrics["l0"] for entry in group]))), 1)


def _bias(group: Sequence[Entry]) -> Floats:
    return np.mean([entry.trained.dictionary.b_dec for entry in group], axis=0)


def _consensus(group: Sequence[Entry], settings: ConsensusConfig) -> tuple[Part, Index]:
    members = [entry.trained.dictionary for entry in group]
    return consensus(members, [entry.alive for entry in group], settings.cosine, settings.share)


def _half(group: Sequence[Entry], settings: ConsensusConfig, x: Floats, seed: int) -> Half:
    """The consensus of `group`, and dictionaries as large from its first member and from all."""
    members = [entry.trained.dictionary for entry in group]
    together, _ = _consensus(group, settings)
    n = len(together.b_enc)
    single, _ = pool(members[:1], [group[0].alive])
    energy = np.square(members[0].encode(x[:16_384])[:, group[0].alive]).sum(0)
    pooled, _ = pool(members, [entry.alive for entry in group])
    drawn = np.random.default_rng(seed).permutation(len(pooled.b_enc))[:n]
    parts = (together, single.chosen(np.argsort(-energy)[:n]), pooled.chosen(drawn))
    k, bias = _k(group), _bias(group)
    made = {name: refit(part, bias, k, x) for name, part in zip(METHODS, parts, strict=True)}
    return Half(made, tuple(group))


def _row(
    method: str, size: int, pair: int, halves: Sequence[Half], x: Floats,
    truths: Floats | None, recovered: Callable[[Dictionary], float] | None,
) -> dict[str, object]:  # fmt: skip
    """The numbers of one method on one pair of halves, means over both."""
    both = sorted((half.made[method] for half in halves), key=lambda d: len(d.b_enc))
    _, cosine = match(both[0].W_dec, both[1].W_dec)
    row: dict[str, object] = {
        "seeds": size,
        "pair": pair,
        "of": method,
        "features": float(np.mean([len(d.b_enc) for d in both])),
        "pw_mcc": float(cosine.mean()),
        "above": float((cosine > 0.9).mean()),
        "fvu": float(np.mean([fvu(d, x) for d in both])),
    }
    if recovered is not None:
        row["recovered"] = float(np.mean([recovered(d) for d in both]))
    if truths is not None:
        row["precision"] = float(
            np.mean([(max_cosine(d.W_dec, truths) > 0.9).mean() for d in both])
        )
        row["recall"] = float(np.mean([(max_cosine(truths, d.W_dec) > 0.9).mean() for d in both]))
    return row


def _loss(context: Context) -> tuple[Callable[[Dictionary], float] | None, str]:
    """Loss recovered of mean-ablation by a dictionary; None, and why, without a language model."""
    config, settings = context.config, context.settings(ConsensusConfig)
    manifest = context.activations.manifest
    if manifest is None or truth.is_toy(context):
        return None, ""
    try:
        place, lm = harvested.place(manifest, context.study.site), harvested.model(manifest, config)
        text, _ = held_out(manifest, Path(config.cache_dir), lm.n_ctx, settings.tokens)
    except UserError as error:
        return None, str(error)

    def recovered(dictionary: Dictionary) -> float:
        how = Replacement(("it",), lambda x: [dictionary.reconstruct(x)])
        found = losses(lm.model, text, place, context.activations.mean, [how])
        return recovered_share(found["it"], found[ORIGINAL], found[MEAN]).value

    return recovered, ""


def _missed(W_dec: Floats, group: Sequence[Entry], bar: float) -> Floats:
    """How many of the consensus' features each single dictionary lacks, (seeds,)."""
    return np.array([(max_cosine(W_dec, e.decoder) < bar).sum() for e in group])


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


def picture(table: pd.DataFrame, first: Entry, toy: bool) -> Figure:
    """Agreement of halves, error, loss or recall, and number of features, by number of seeds."""
    panels = {
        "pw_mcc": "PW-MCC with the consensus of the other half",
        "fvu": "FVU at the same k",
        **({"recovered": "loss recovered"} if "recovered" in table else {}),
        **({"precision": "share of features that are true"} if toy else {}),
        **({"recall": "share of true features found"} if toy else {}),
        "features": "features",
    }
    chosen = list(panels)[:4]
    figure, axes = figures.grid(2, 2, 5.2, sharex=True)
    colours = dict(zip(METHODS, (figures.BLUE, figures.ORANGE, figures.GREY), strict=True))
    for axis, column in zip(axes.flat, chosen, strict=False):
        sns.lineplot(
            table, x="seeds", y=column, hue="of", style="of", markers=True, dashes=False,
            palette=colours, errorbar=("pi", 100), ax=axis,
        )  # fmt: skip
        axis.get_legend().remove()
        axis.set_title(panels[column])
        axis.set_ylabel("")
        axis.set_xscale("log", base=2)
        sizes = sorted(table["seeds"].unique())
        axis.set_xticks(sizes, [str(s) for s in sizes])
        axis.set_xlabel("seeds S in each half")
        if column in ("pw_mcc", "recall", "precision", "recovered"):
            axis.set_ylim(min(0.0, float(table[column].min())), 1.03)
        else:
            axis.set_ylim(0, 1.08 * float(table[column].max()))
    for axis in axes.flat[len(chosen) :]:
        axis.axis("off")
    d, n = first.decoder.shape[1], int(table["features"].mean())
    axes[0, 0].axhline(random_directions.max_mean(d, n), color="black", ls="--", lw=0.8)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    figure.suptitle(f"Consensus of seeds: {first.size} features, {first.setting}")
    return figure


ANALYSIS = Analysis("consensus", section)
