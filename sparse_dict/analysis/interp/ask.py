"""Can features be told in words? Asks about all cases, within a cap, and reports the scores."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.harvested import open_source
from sparse_dict.analysis.interp.cases import cases
from sparse_dict.analysis.interp.llm import CapReached, Client
from sparse_dict.analysis.interp.questions import (
    EXPLANATION_CHARACTERS,
    Case,
    Result,
    explain,
    follow_ups,
    interpret,
    read_explanation,
)
from sparse_dict.analysis.measures.intervals import bootstrap
from sparse_dict.analysis.report.page import MISSING, Section, Table
from sparse_dict.config import AnalyzeConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files, lock

log = logging.getLogger(__name__)

ANSWERS = Path("interp") / "answers.jsonl"


@dataclass
class Found:
    """Everything that could be asked."""

    results: list[Result] = field(default_factory=list)  # finished ones, in the cases' order
    spent: float = 0.0
    stopped: str | None = None  # why the others are missing


@dataclass(frozen=True)
class Estimate:
    """What is still to be sent."""

    requests: int
    answered: int  # requests that need not be sent
    tokens_in: float
    tokens_out: float  # at most
    cost: float


def estimate(cases: Sequence[Case], client: Client) -> Estimate:
    """What asking about `cases` takes, by the prompts' characters and the longest answers."""
    requests = answered = 0
    tokens_in = tokens_out = 0.0
    for case in cases:
        first = explain(case)
        known = client.known(first)
        if known is None:
            explanation = "x" * (EXPLANATION_CHARACTERS // 2)
        else:
            explanation = read_explanation(known)
        for question in [first, *(follow_ups(case, explanation) if explanation else [])]:
            if client.known(question) is not None:
                answered += 1
                continue
            requests += 1
            tokens_in += question.tokens
            tokens_out += question.max_tokens
    return Estimate(requests, answered, tokens_in, tokens_out, client.cost(tokens_in, tokens_out))


def ask(cases: Sequence[Case], settings: InterpConfig, path: Path) -> Found:
    """Interpret all cases, as far as the cap and the endpoint allow; answers are kept in `path`.

    Raises:
        UserError: the key is missing, or another process asks.
    """
    found: dict[int, Result] = {}
    stopped: str | None = None
    with lock.holding(path.parent), Client(settings, path) as client:
        plan = estimate(cases, client)
        log.info(
            "interp: %d requests to %s (%d more are answered already), about %.3g tokens in and at "
            "most %.3g out: up to about %.4g; %.4g spent before, interp.max_cost=%g",
            plan.requests, settings.base_url, plan.answered, plan.tokens_in, plan.tokens_out,
            plan.cost, client.spent, settings.max_cost,
        )  # fmt: skip
        pool = ThreadPoolExecutor(settings.parallel)
        try:
            futures = {pool.submit(interpret, case, client): i for i, case in enumerate(cases)}
            with Progress("interpreting", len(cases), "features") as progress:
                for future in as_completed(futures):
                    try:
                        found[futures[future]] = future.result()
                    except UserError as error:
                        stopped = stopped or str(error)
                        # Cases whose answers are all there are still finished; after the cap
                        # also those that cost less.
                        if not isinstance(error, CapReached):
                            client.stop()
                    progress.advance(1)
        finally:
            client.stop()  # Ctrl-C: what is under way is waited for, and nothing more is sent
            pool.shutdown(cancel_futures=True)
        if stopped is not None:
            log.warning("interp: %d of %d features: %s", len(found), len(cases), stopped)
        return Found([found[i] for i in sorted(found)], client.spent, stopped)


# --- report ---------------------------------------------------------------------------------------


def by_group(results: Sequence[Result]) -> pd.DataFrame:
    """Mean scores of each group with 95 % intervals, bootstrap over features."""
    rows = []
    for group in dict.fromkeys(result.case.group for result in results):
        members = [result for result in results if result.case.group == group]
        row: dict[str, object] = {"group": group, "features": len(members)}
        for name in ("simulation", "detection"):
            values = np.array([getattr(result, name) for result in members])
            values = values[np.isfinite(values)]
            low = high = float("nan")
            if len(values) > 1:
                interval = bootstrap([values], lambda samples: float(samples[0].mean()))
                low, high = interval.low, interval.high
            row[name] = float(values.mean()) if len(values) else float("nan")
            row[f"{name}, low"], row[f"{name}, high"] = low, high
        row["unreadable answers"] = sum(result.malformed for result in members)
        rows.append(row)
    return pd.DataFrame(rows)


def told(groups: pd.DataFrame) -> pd.DataFrame:
    """`by_group` for people: each mean with its interval in one column."""
    table = groups[["group", "features"]].copy()
    for name in ("simulation", "detection"):
        columns = (groups[name], groups[f"{name}, low"], groups[f"{name}, high"])
        table[name] = [
            f"{mean:.2f}" + (f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else "")
            for mean, low, high in zip(*columns, strict=True)
        ]
    return table.assign(**{"unreadable answers": groups["unreadable answers"]})


def each(results: Sequence[Result]) -> pd.DataFrame:
    """One row a feature."""
    return pd.DataFrame(
        {
            "feature": [result.case.name for result in results],
            "group": [result.case.group for result in results],
            "explanation": [result.explanation or "(none)" for result in results],
            "simulation": [result.simulation for result in results],
            "detection": [result.detection for result in results],
        }
    )


def section(comparison: Comparison, config: AnalyzeConfig) -> Section:
    """Explanations and scores; `interp.csv`, and all prompts and answers in ANSWERS."""
    title = "Features in words"
    settings, folder = config.settings(InterpConfig), Path(config.analysis_dir)
    assert settings is not None
    try:
        source = open_source(config, comparison.study, settings.n_tokens)
        chosen = cases(settings, config.seed, comparison, source)
        if not chosen:
            raise UserError("no feature is active in enough excerpts: raise interp.n_tokens")
        found = ask(chosen, settings, folder / ANSWERS)
    except UserError as error:
        log.warning("no interp: %s", error)
        return Section(title, [MISSING.format(error)])
    text = (
        f"The chat model {settings.model} reads {settings.examples} excerpts of {settings.width} "
        "tokens in which a feature is highest and explains it in a line; the scores are taken on "
        "other excerpts. Simulation is the correlation between the activations that it predicts "
        f"from the explanation, token by token in {settings.simulate} excerpts, and the true ones "
        "(after Bills et al. 2023, with integers for probabilities); a constant prediction "
        "counts as 0. Detection is the balanced accuracy in telling "
        f"{settings.detect // 2} excerpts with the feature from as many without (Paulo et al. "
        "2024); 0.5 is chance. The directions of the baselines count as active where they are "
        "positive and among the largest codes of a token, as many as the dictionaries' L0. "
        "Features active in too few excerpts or in almost all were not asked about. All prompts "
        f"and answers are in {ANSWERS}; at the configured prices they cost {found.spent:.4g}."
    )
    result = Section(title, [text])
    if found.stopped is not None:
        result.blocks.append(
            f"Only {len(found.results)} of {len(chosen)} were finished: {found.stopped}. What is "
            "there is kept; the same command goes on from here."
        )
    if found.results:
        table = each(found.results)
        files.write_text(folder / "interp.csv", table.to_csv(index=False))
        result.blocks += [
            Table("Mean scores, with 95 % intervals over features", told(by_group(found.results))),
            Table("All explanations", table, fold=len(table) > 12),
        ]
    return result
