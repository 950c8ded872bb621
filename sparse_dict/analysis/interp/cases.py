"""Which features and directions of the baselines a chat model is asked about, and on which text.

Baselines are the directions of `measures.bases`, each cut to the k codes of largest magnitude on a
token, of which the positive ones count; k is the dictionaries' L0, so that all are equally sparse.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.features.top_contexts import Code, Encode, codes
from sparse_dict.analysis.interp.questions import Case, Excerpt
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.source import Floats, Source
from sparse_dict.analysis.study import Entry
from sparse_dict.config import InterpConfig

CANDIDATES = 3  # looked at for each one explained, since some are active in too few excerpts
# A feature or direction: its group, its dictionary or baseline, and its codes, never negative
Candidate = tuple[str, str, Code]


def cases(context: Context, source: Source) -> list[Case]:
    """Up to `interp.per_group` features of each group and baseline, drawn at random.

    Left out are those active in too few excerpts (or in too many) to ask about.
    """
    settings, seed = context.settings(InterpConfig), context.config.seed
    text = source.text[:, source.place.skip_first :]  # what has activations
    width = min(settings.width, text.shape[1])
    kept = text.shape[1] // width * width
    windows = text[:, :kept].reshape(-1, width)
    # The corpus repeats itself: what is held out must not stand among the examples too.
    fresh = np.sort(np.unique(windows, axis=0, return_index=True)[1])
    order = np.random.default_rng(seed).permutation(fresh)
    halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])

    main = context.comparison.main
    # the largest has no MCS
    entries = main.entries[:-1] if main else context.study.entries[:1]
    candidates = [*_features(context, entries), *_bases(settings, seed, entries, source)]
    read = codes([code for *_, code in candidates], source, "reading for interp")
    words = source.words(np.unique(windows).tolist())
    texts = {int(i): tuple(words[int(t)] for t in windows[i]) for i in fresh}

    found: list[Case] = []
    for row, candidate in enumerate(candidates):
        if sum(case.group == candidate[0] for case in found) == settings.per_group:
            continue
        rng = np.random.default_rng([seed, row])
        values = read[[row]].toarray().reshape(text.shape)[:, :kept].reshape(windows.shape)
        case = _case(candidate, values, texts, halves, settings, rng)
        if case is not None:
            found.append(case)
    return found


def _case(
    candidate: Candidate,
    values: Floats,
    texts: dict[int, tuple[str, ...]],
    halves: tuple[NDArray[np.int64], NDArray[np.int64]],
    settings: InterpConfig,
    rng: np.random.Generator,
) -> Case | None:
    """The excerpts to ask about, of `values` (windows, width); None if too few are active."""
    peaks, (group, owner, code) = values.max(1), candidate
    first, held = (half[np.argsort(-peaks[half], kind="stable")] for half in halves)
    active, idle = held[peaks[held] > 0], held[peaks[held] == 0]
    n, m = settings.detect // 2, settings.simulate // 2
    examples = first[: settings.examples][peaks[first[: settings.examples]] > 0]
    if len(examples) < settings.examples or len(active) < max(n, m) or len(idle) < max(n, m):
        return None
    # Bills et al. simulate the highest excerpts and random ones alike.
    others = rng.choice(np.setdiff1d(held, active[:m]), m, replace=False)
    # Paulo et al. take active excerpts from all quantiles of the activation.
    shown = np.array([rng.choice(part) for part in np.array_split(active, n)])
    mixed = rng.permutation(np.concatenate([shown, rng.choice(idle, n, replace=False)]))

    def excerpts(places: NDArray[np.int64]) -> tuple[Excerpt, ...]:
        return tuple(Excerpt(texts[int(i)], values[i].copy()) for i in places)

    return Case(
        group,
        f"{owner}/{code.index}",
        largest=float(peaks[examples].max()),
        examples=excerpts(examples),
        simulate=excerpts(np.concatenate([active[:m], others])),
        detect=excerpts(mixed),
    )


def found_again(threshold: float) -> str:
    """The group of features with a high MCS."""
    return f"features, MCS above {threshold:g}"


def _features(context: Context, entries: Sequence[Entry]) -> Iterator[Candidate]:
    """Candidates among the living features of some dictionaries: of high MCS, and others.

    In a study without larger dictionaries there is one group.
    """
    tables, named = context.tables, {entry.name: entry for entry in entries}
    rows, most = tables.features, CANDIDATES * context.settings(InterpConfig).per_group
    living = rows[rows["alive"] & rows["dictionary"].isin([*named])]
    living = living.sort_values("dictionary", key=lambda n: n.map([*named].index), kind="stable")
    group = pd.Series("features", living.index)
    if context.comparison.main:
        living = living.dropna(subset="mcs")
        high, found = living["mcs"] > tables.threshold, found_again(tables.threshold)
        group = high.map({True: found, False: "features, other"})
    rng = np.random.default_rng(context.config.seed)
    for label, members in living.groupby(group):  # sorted
        chosen: Any = members.iloc[rng.permutation(len(members))[:most]]
        for name, column in zip(chosen["dictionary"], chosen["feature"].tolist(), strict=True):
            entry = named[name]
            code = Code(entry.trained.dictionary.encode, entry.size, column)
            yield str(label), name, code


def _bases(
    settings: InterpConfig, seed: int, entries: Sequence[Entry], source: Source
) -> Iterator[Candidate]:
    """Candidates among the directions of each baseline, fitted on the text that is read here."""
    l0s = [float(entry.metrics["l0"]) for entry in entries]
    k, (n_contexts, n_ctx) = max(round(float(np.mean(l0s))), 1), source.text.shape
    wanted = max(min(settings.rows // n_ctx, n_contexts), 1)
    x = source.rows(np.arange(wanted) * n_contexts // wanted)
    x = x.reshape(-1, x.shape[-1])
    for method in bases.affordable(settings.baselines, x.shape[1]):
        basis = bases.fit(method, x, seed)
        encode, size = sparse(basis, k), len(basis.directions)
        drawn = np.random.default_rng(seed).permutation(size)[: CANDIDATES * settings.per_group]
        for column in drawn.tolist():
            yield bases.LABELS[method], method, Code(encode, size, column)


def sparse(basis: bases.Basis, k: int) -> Encode:
    """The positive ones among the k codes of largest magnitude of a row."""
    return lambda x: next(bases.largest(basis.encode(x), [k])).clip(min=0)
