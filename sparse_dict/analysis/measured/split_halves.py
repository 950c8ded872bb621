"""The consensus of all seeds, and what two halves of the seeds have in common."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measured import true_features
from sparse_dict.analysis.measured.reconstruction_loss import MEAN, ORIGINAL, on_held_out, recovered
from sparse_dict.analysis.measures import recurring
from sparse_dict.analysis.measures.mcs import max_cosine
from sparse_dict.analysis.measures.recurring import Member
from sparse_dict.analysis.study import Entry, kin, rows, seed_groups
from sparse_dict.config import ConsensusConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.sae import folder as folders
from sparse_dict.sae.folder import Dictionary
from sparse_dict.sae.imported.measured import measured
from sparse_dict.storage import files

TRUE = 0.9  # cosine with a toy's true feature, above which that is found
MOST = 16_384  # features clustered at a time: a GiB of distances
FOLDER = "consensus"  # in the analysis' folder: the consensus dictionary of all seeds
Number = Callable[[Dictionary], float]


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """The split-half test by number of seeds, and the dictionary of all, which is written."""
    settings, sides = context.settings(ConsensusConfig), _sides(context)
    group = [entry for side in sides for entry in side]
    if not group:
        return {}
    living = sum(int(entry.alive.sum()) for entry in group)
    if living > MOST:
        raise UserError(f"{living:,} features exceed the {MOST:,} clustered")
    activations = context.activations
    numbers, why = _numbers(context)
    x = activations.read(0, min(recurring.BATCH * recurring.STEPS, activations.rows))
    members = [[Member(e.trained.dictionary, e.alive, e.metrics["l0"]) for e in s] for s in sides]
    how = settings.cosine, settings.share
    fewer, found = min(map(len, sides)), []
    counts = [1 << i for i in range(fewer.bit_length())] if fewer > 1 else []  # 1, 2, 4 ...
    pairs = [(n, pair) for n in counts for pair in range(min(settings.halves, fewer // n))]
    with Progress("consensus", len(pairs), "pairs of halves") as progress:
        for n, pair in pairs:
            chosen = slice(n * pair, n * (pair + 1))
            both = [recurring.half(side[chosen], *how, x, i) for i, side in enumerate(members)]
            for method in both[0]:
                halves = [half[method] for half in both]
                means = {key: float(np.mean([*map(of, halves)])) for key, of in numbers.items()}
                agree = recurring.agreement(halves, TRUE)
                found.append({"seeds": n, "pair": pair, "of": method, **agree, **means})
            progress.advance(1)
    together, recurs = recurring.consensus(every := [*members[0], *members[1]], *how)
    whole = recurring.refit(together, every, x)
    _write(context, group, whole, settings)
    near = [max_cosine(whole.W_dec, entry.decoder) for entry in group]
    of_living = [max_cosine(whole.W_dec, entry.decoder[entry.alive]) for entry in group]
    lacks, living_lack = ((np.array(of) < settings.cosine).sum(1) for of in (near, of_living))
    described = {
        "seeds": len(group), "size": group[0].size, "setting": group[0].setting, "k": whole.k,
        "halved": rows(sides[0][0]) != rows(sides[1][0]),
        "features": len(recurs), "in_every_seed": int((recurs == len(group)).sum()),
        "lacking": lacks.mean(), "lacking_least": lacks.min(), "lacking_most": lacks.max(),
        "lacking_of_living": living_lack.mean(), "loss_missing": why,
    }  # fmt: skip
    if "recall" in numbers:
        described["true"] = numbers["recall"](whole)
        described["true_alone"] = np.mean([numbers["recall"](e.trained.dictionary) for e in group])
    return {"consensus": pd.DataFrame(found), "consensus_of_all": pd.DataFrame([described])}


def _numbers(context: Context) -> tuple[dict[str, Number], str]:
    """What is measured of each dictionary, and why the model's loss is not, if it might be."""
    found: dict[str, Number] = {"fvu": partial(recurring.fvu, x=context.evaluation_rows())}
    if true_features.is_toy(context):
        true = true_features.read(context)
        found["precision"] = lambda it: float((max_cosine(it.W_dec, true) > TRUE).mean())
        found["recall"] = lambda it: float((max_cosine(true, it.W_dec) > TRUE).mean())
    elif context.activations.manifest is not None:
        try:
            take, _ = on_held_out(context, context.settings(ConsensusConfig).tokens)
        except UserError as error:
            return found, str(error)

        def loss(dictionary: Dictionary) -> float:
            found = take(lambda x: [("it", dictionary.reconstruct(x))])
            return recovered(found["it"], found[ORIGINAL], found[MEAN]).value

        found["recovered"] = loss
    return found, ""


def _sides(context: Context) -> tuple[list[Entry], list[Entry]]:
    """Dictionaries of one size and kind in two groups, in the order in which they are compared.

    Two halves of the seeds; or, where seeds were trained on either half of the rows, the two halves
    of the rows, seeds in opposite orders. The largest such groups; among equals of the chosen
    level, then of the largest size.
    """
    found = [(g[: len(g) // 2], g[len(g) // 2 :]) for g in seed_groups(context.study)]
    by_half: dict[object, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(context.study.entries, key=lambda e: e.seed):
        half, split = rows(entry)
        by_half[entry.size, kin(entry), split][half].append(entry)
    found += [(of["half_a"], of["half_b"][::-1]) for of in by_half.values()]
    main = context.comparison.main

    def rank(sides: tuple[list[Entry], list[Entry]]) -> tuple[int, bool, int]:
        entry = sides[0][0]
        chosen = main is not None and (entry.family, entry.level) == (main.family, main.level)
        return sum(map(len, sides)), chosen, entry.size

    return max((sides for sides in found if all(sides)), key=rank, default=([], []))


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
