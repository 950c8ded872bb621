"""What becomes of each feature in larger dictionaries, in every seed."""

from collections import defaultdict
from itertools import pairwise, permutations
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import splitting
from sparse_dict.analysis.measures.splitting import Step
from sparse_dict.analysis.study import Chain, Entry
from sparse_dict.analysis.tables import MOST_SEEDS


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Parents and fates at the chosen level in every seed, and which splits other seeds make."""
    main = context.comparison.main
    if main is None:
        return {}
    x = context.evaluation_rows()
    y = x if context.study.target is None else context.evaluation_rows(of=context.targets)
    ends, courses, others = [], [], []
    of: dict[Entry, dict[str, Any]] = defaultdict(dict)  # columns of features
    known: list[tuple[Chain, list[Step]]] = []
    for chain in context.comparison.same_but_seed(main)[:MOST_SEEDS]:
        steps, seed = [], {"seed": chain.seed}
        for small, large in pairwise(chain.entries):
            dictionaries = small.trained.dictionary, large.trained.dictionary
            steps.append(step := splitting.step(*dictionaries, (small.alive, large.alive), x, y))
            sizes = {"from": small.size, "to": large.size}
            ends.append(seed | sizes | splitting.shares(step, large.alive))
            n = np.bincount(step.parent[step.parent >= 0], minlength=small.size)
            of[small] |= {"fate": step.fate, "children": n, "split_gain": step.gain}
            of[large] |= {"parent": step.parent, "parent_cosine": step.cosine}
            of[large] |= {"parent_active": step.given}
        course = zip(chain.entries, splitting.course(steps), strict=True)
        courses += [seed | {"size": entry.size} | counts for entry, counts in course]
        known.append((chain, steps))
    for (mine, steps), (theirs, their_steps) in permutations(known, 2):
        own, other = ([entry.decoder for entry in one.entries] for one in (mine, theirs))
        for k, both in enumerate(zip(steps, their_steps, strict=True)):
            parents, children = ((own[j], other[j]) for j in (k, k + 1))
            pair = {"seed": mine.seed, "other_seed": theirs.seed, "from": mine.entries[k].size}
            others.append(pair | splitting.repeated(*both, parents, children))
    features = [entry.features(**columns) for entry, columns in of.items()]
    return {
        "features": pd.concat(features, ignore_index=True), "splits": pd.DataFrame(ends),
        "split_courses": pd.DataFrame(courses), "split_replication": pd.DataFrame(others),
    }  # fmt: skip
