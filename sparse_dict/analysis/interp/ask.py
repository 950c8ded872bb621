"""Can features be put into words? Asks about all cases, within a cap."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from sparse_dict.analysis.comparison import Comparison
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
from sparse_dict.analysis.source import open_source
from sparse_dict.config import AnalyzeConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import lock

log = logging.getLogger(__name__)

ANSWERS = Path("interp") / "answers.jsonl"


@dataclass
class Found:
    """Everything that could be asked."""

    results: list[Result] = field(default_factory=list)  # finished ones, in the cases' order
    spent: float = 0.0
    stopped: str | None = None  # why the others are missing
    chosen: int = 0  # features that were to be asked about


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
    """Interpret all cases, as far as the cap and the endpoint allow; answers are kept in `path`."""
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
    source = open_source(config, comparison.study, settings.n_tokens)
    chosen = cases(settings, config.seed, comparison, source)
    if not chosen:
        raise UserError("no feature is active in enough excerpts: raise interp.n_tokens")
    return ask(chosen, settings, Path(config.analysis_dir) / ANSWERS)


def each(results: Sequence[Result]) -> pd.DataFrame:
    """One row per feature."""
    return pd.DataFrame(
        {
            "feature": [result.case.name for result in results],
            "group": [result.case.group for result in results],
            "explanation": [result.explanation or "(none)" for result in results],
            "simulation": [result.simulation for result in results],
            "detection": [result.detection for result in results],
            "unreadable answers": [result.malformed for result in results],
        }
    )
