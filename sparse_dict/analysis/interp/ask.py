"""Can features be put into words? Asks about all cases, within a cap, and reports the scores."""

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
from sparse_dict.analysis.interp.llm import CapReached, Client, Question
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
    """Everything that could be asked, or what stands in the way."""

    results: list[Result] = field(default_factory=list)  # finished ones, in the cases' order
    spent: float = 0.0
    stopped: str | None = None  # why the others are missing
    chosen: int = 0  # features that were to be asked about
    missing: str | None = None  # why nothing could be asked


def to_send(cases: Sequence[Case], client: Client) -> tuple[list[Question], int]:
    """What asking about `cases` still sends, and how many requests are answered already.

    Where there is no explanation yet, the questions that follow it hold one of a usual length.
    """
    questions: list[Question] = []
    for case in cases:
        first = explain(case)
        known = client.known(first)
        usual = "x" * (EXPLANATION_CHARACTERS // 2)
        explanation = usual if known is None else read_explanation(known)
        questions += [first, *(follow_ups(case, explanation) if explanation else [])]
    found = [question for question in questions if client.known(question) is None]
    return found, len(questions) - len(found)


def ask(cases: Sequence[Case], settings: InterpConfig, path: Path) -> Found:
    """Interpret all cases, as far as the cap and the endpoint allow; answers are kept in `path`.

    Raises:
        UserError: the key is missing, or another process asks.
    """
    found: dict[int, Result] = {}
    stopped: str | None = None
    with lock.holding(path.parent), Client(settings, path) as client:
        questions, answered = to_send(cases, client)
        tokens_in = sum(question.tokens for question in questions)
        tokens_out = sum(question.max_tokens for question in questions)
        log.info(
            "interp: %d requests to %s (%d more are answered already), about %.3g tokens in and at "
            "most %.3g out: up to about %.4g; %.4g spent before, interp.max_cost=%g",
            len(questions), settings.base_url, answered, tokens_in, tokens_out,
            client.cost(tokens_in, tokens_out), client.spent, settings.max_cost,
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
            client.stop()  # Ctrl-C: answers under way are waited for, and nothing more is sent
            pool.shutdown(cancel_futures=True)
        if stopped is not None:
            log.warning("interp: %d of %d features: %s", len(found), len(cases), stopped)
        results = [found[i] for i in sorted(found)]
        return Found(results, client.spent, stopped, len(cases))


def about(comparison: Comparison, config: AnalyzeConfig) -> Found:
    """Ask about features of the study and directions of simpler bases; answers go to ANSWERS."""
    settings = config.settings(InterpConfig)
    assert settings is not None
    try:
        source = open_source(config, comparison.study, settings.n_tokens)
        chosen = cases(settings, config.seed, comparison, source)
        if not chosen:
            raise UserError("no feature is active in enough excerpts: raise interp.n_tokens")
        return ask(chosen, settings, Path(config.analysis_dir) / ANSWERS)
    except UserError as error:
        log.warning("no interp: %s", error)
        return Found(missing=str(error))


# --- report ---------------------------------------------------------------------------------------


UNREADABLE = "unreadable answers"


def each(results: Sequence[Result]) -> pd.DataFrame:
    """One row per feature."""
    return pd.DataFrame(
        {
            "feature": [result.case.name for result in results],
            "group": [result.case.group for result in results],
            "explanation": [result.explanation or "(none)" for result in results],
            "simulation": [result.simulation for result in results],
            "detection": [result.detection for result in results],
            UNREADABLE: [result.malformed for result in results],
        }
    )


def means(features: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of each group of `each` with 95 % intervals, bootstrap over features."""
    columns = {
        "features": ("feature", "size"),
        "simulation": ("simulation", _mean),
        "detection": ("detection", _mean),
        UNREADABLE: (UNREADABLE, "sum"),
    }
    return features.groupby("group", sort=False).agg(**columns).reset_index()


def _mean(scores: pd.Series) -> str:
    values = scores[np.isfinite(scores)].to_numpy()
    if len(values) < 2:
        return f"{values.mean():.2f}" if len(values) else "nan"
    interval = bootstrap([values], lambda samples: float(samples[0].mean()))
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def section(found: Found, settings: InterpConfig, folder: Path) -> Section:
    """Explanations and scores; writes `interp.csv` to `folder`."""
    title = "Features in words"
    if found.missing is not None:
        return Section(title, [MISSING.format(found.missing)])
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
            f"Only {len(found.results)} of {found.chosen} were finished: {found.stopped}. What is "
            "there is kept; the same command goes on from here."
        )
    if found.results:
        features = each(found.results)
        table = features.drop(columns=UNREADABLE)
        files.write_text(folder / "interp.csv", table.to_csv(index=False))
        result.blocks += [
            Table("Mean scores, with 95 % intervals over features", means(features)),
            Table("All explanations", table, fold=len(table) > 12),
        ]
    return result
