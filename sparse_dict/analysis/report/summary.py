"""A study in four sentences: what was trained, what was found, against what, and what is open."""

from collections.abc import Sequence

import numpy as np

from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN, Lies
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import provenance
from sparse_dict.analysis.sections.baselines import standing
from sparse_dict.analysis.study import LABELS, number
from sparse_dict.analysis.tables import Tables
from sparse_dict.sae.architectures import axes


def alarm(tables: Tables) -> str | None:
    """The warning that dictionaries explain nothing, with what to change; None if not needed."""
    if not (why := tables.useless()):
        return None
    axis = (tables.dictionaries if tables.level.empty else tables.level)["axis"].iloc[0]
    return f"{why}: nothing can be concluded from them. Train new ones with {axes()[axis].remedy}."


def sentences(context: Context) -> list[str]:
    """What was trained, what was found, how it stands to simple bases, what cannot be said."""
    return [_trained(context), _found(context), _against_simple(context), _unsaid(context)]


def _span(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _trained(context: Context) -> str:
    entries = context.study.entries
    sizes = [str(size) for size in sorted({e.size for e in entries})]
    levels = [
        f"{label} {_span([number(v) for v in values])}"
        for axis, label in LABELS.items()
        if (values := sorted({e.level for e in entries if e.axis == axis}))
    ]
    seeds, n = len({e.seed for e in entries}), len(entries)
    # Of rows, each of which may be seen several times.
    visits = max(int(e.metrics.get("n_activations") or 0) for e in entries)
    return (
        f"{n} sparse {'dictionary' if n == 1 else 'dictionaries'} of {_span(sizes)} features "
        f"({'; '.join(levels)}; {seeds} {'seed' if seeds == 1 else 'seeds'}) learned in {visits:,} "
        f"visits to {provenance.subject(context.config, context.study)}."
    )


def _found(context: Context) -> str:
    comparison, chain = context.comparison, context.comparison.main
    if why := context.tables.useless():
        return f"Nothing was found: {why}."
    if chain is None:
        return "No two dictionaries differ only in size, so none was compared with a larger one."
    shown, threshold = context.tables.shown, comparison.settings.threshold
    every, alive = shown["found"].dropna(), shown.loc[shown["alive"], "mcs_alive"] > threshold
    fvu, l0 = (float(np.mean([e.metrics[key] for e in chain.entries])) for key in ("fvu", "l0"))
    text = (
        f"At {chain.setting}, where {fvu:.0%} of the variance is left unexplained by {l0:.3g} "
        f"active features a row, {every.sum():.0f} of {len(every)} features, {alive.sum()} of the "
        f"{len(alive)} ever active, are found again in larger dictionaries, almost unchanged "
        f"(cosine above {threshold:g})"
    )
    claims = context.claims
    if claims:
        held = [sum(c.verdict == verdict for c in claims) for verdict in (HOLDS, FAILS)]
        agree = [sum(c.agrees is outcome for c in claims) for outcome in (True, False)]
        text += (
            f"; of {len(claims)} claims {held[0]} hold and {held[1]} do not; {agree[0]} of these "
            f"verdicts agree with the post or paper that makes the claim, {agree[1]} do not"
        )
    return f"{text}."


def _against_simple(context: Context) -> str:
    """How dictionaries stand to the best simple basis, or why that is not known."""
    by_fvu = standing(context.tables, "baselines")
    if not by_fvu:
        on = context.config.is_on("baselines")
        why = context.missing.get("baselines", "none was fitted" if on else "baselines is off")
        simple = "simple bases (neurons, PCA, ICA, NMF)"
        return f"How dictionaries stand to {simple} was not measured: {why}."
    best, less = by_fvu
    words = {HOLDS: "better", FAILS: "worse", OPEN: "neither better nor worse, that one could tell"}
    text = (
        f"Beside the best simple basis at equal sparsity ({best['basis']}), the dictionaries at "
        f"this level reconstruct {words[Lies(0)(less)]} ({best['ours']:.2f} of the variance "
        f"unexplained against {best['theirs']:.2f})"
    )
    if not (by_loss := standing(context.tables, "loss_recovered")):
        return f"{text}; by the model's loss this was not measured."
    best, less = by_loss
    better = {HOLDS: "more", FAILS: "less", OPEN: "neither more nor less"}[Lies(0)(less)]
    return (
        f"{text}, and {better} of the model's loss is recovered than by {best['basis']} "
        f"({1 - best['ours']:.0%} against {1 - best['theirs']:.0%})."
    )


def _unsaid(context: Context) -> str:
    beyond = "whether other models, layers or texts give the same"
    if context.tables.useless():
        return f"Nothing can be said on the claims, nor {beyond}."
    undecided = [claim for claim in context.claims if claim.verdict == OPEN]
    lacking = [claim for claim in undecided if claim.interval is None]
    if not undecided:
        return f"It cannot be said {beyond}."
    text = f"{len(undecided)} claims stay undecided"
    if lacking:
        text += (
            f", {len(lacking)} of them because the study lacks what they need, such as "
            f"“{lacking[0].claim}” ({lacking[0].ours})"
        )
    return f"{text}; and it cannot be said {beyond}."
