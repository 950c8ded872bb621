"""What a chat model is asked about a feature, how its answers are read, and the scores.

A model reads excerpts in which a feature is active and explains it in a line. Two scores measure
the explanation on other excerpts. Simulation (Bills et al. 2023, "Language models can explain
neurons in language models"): given the explanation alone, the model writes an integer from 0 to 10
for each token; the score is the correlation with the true activations over all tokens. (They take
the expectation over the model's probabilities, which few endpoints give.) Detection (Paulo et al.
2024, "Automatically interpreting millions of features in large language models"): the model tells
excerpts with the feature from excerpts without; the score is the balanced accuracy.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.interp.llm import CapReached, Client, Question
from sparse_dict.config import InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import lock

Floats = NDArray[np.float32]

log = logging.getLogger(__name__)

BATCH = 5  # excerpts in one question of detection, as Paulo et al. have it
SCALE = 10  # the largest activation, as prompts and answers write it
EXPLANATION_CHARACTERS = 300  # longer ones are cut
EXPLANATION_TOKENS = 120
LINE_TOKENS = 8  # of an answer's line: a number, a tab, a number, a line break

EXPLAIN = (
    "You study one feature of a language model: a direction that is active on some tokens of a "
    "text. You are given excerpts. Tokens on which the feature is active stand between << and >>, "
    f"and below each excerpt they are listed with their activation, from 1 to {SCALE}. Say what "
    "the feature responds to: the tokens themselves, what comes before them, or the subject. "
    "Answer with one line of at most 25 words and nothing else."
)
SIMULATE = (
    "A feature of a language model is active on some tokens of a text; what it responds to is "
    "explained to you in a line. You are given the numbered tokens of one excerpt, in order. "
    f"Predict the activation on every token, an integer from 0 (inactive) to {SCALE} (highest); "
    "most tokens have 0. Answer with one line for each token and nothing else: its number, a tab, "
    "the activation."
)
DETECT = (
    "A feature of a language model is active on some tokens of a text; what it responds to is "
    "explained to you in a line. You are given numbered excerpts. Predict for each whether the "
    "feature is active on any of its tokens. Answer with one line for each excerpt and nothing "
    "else: its number, a tab, then 1 if it is active and 0 if not."
)
UNREADABLE = "unreadable answers"  # a column
LINE = re.compile(r"\s*(\d{1,6})\s*[\t :.,=|]\s*(\d{1,6})\s*")


@dataclass(frozen=True, eq=False)
class Excerpt:
    """A stretch of text and the activation of one feature on each of its tokens."""

    tokens: tuple[str, ...]  # printable
    values: Floats  # as many


@dataclass(frozen=True, eq=False)
class Case:
    """One feature or direction, with all that is asked about it."""

    group: str
    name: str  # DICTIONARY/INDEX or BASELINE/INDEX
    largest: float  # activation in the part that explanations are made from
    examples: tuple[Excerpt, ...]
    simulate: tuple[Excerpt, ...]
    detect: tuple[Excerpt, ...]


def explain(case: Case) -> Question:
    """Asks for an explanation."""
    parts = []
    for number, excerpt in enumerate(case.examples, 1):
        levels = np.ceil(np.clip(excerpt.values / case.largest, 0, 1) * SCALE).astype(int)
        pairs = list(zip(excerpt.tokens, levels.tolist(), strict=True))
        text = "".join(f"<<{token}>>" if level else token for token, level in pairs)
        active = ", ".join(f'"{token}": {level}' for token, level in pairs if level)
        parts.append(f"Excerpt {number}: {text}\nActive: {active}")
    return Question(EXPLAIN, "\n\n".join(parts), EXPLANATION_TOKENS)


def follow_ups(case: Case, explanation: str) -> Iterator[tuple[Question, int, list[float]]]:
    """Everything that is asked once there is an explanation: simulations, then detection.

    Each with the largest number that answers it, and the true ones.
    """

    def question(system: str, what: str, lines: list[str]) -> Question:
        text = f"Explanation: {explanation}\n\n{what}:\n" + "\n".join(lines)
        return Question(system, text, LINE_TOKENS * (len(lines) + 1))

    for excerpt in case.simulate:
        lines = [f"{number}\t{token}" for number, token in enumerate(excerpt.tokens, 1)]
        yield question(SIMULATE, "Tokens", lines), SCALE, excerpt.values.tolist()
    for start in range(0, len(case.detect), BATCH):
        batch = case.detect[start : start + BATCH]
        lines = [f"{number}. {''.join(e.tokens)}" for number, e in enumerate(batch, 1)]
        yield question(DETECT, "Excerpts", lines), 1, [float(e.values.max() > 0) for e in batch]


def read_explanation(answer: str) -> str:
    """The explanation on one line, cut if it is long; "" if there is none."""
    text = " ".join(answer.split())
    return re.sub(r"^explanation:\s*", "", text, flags=re.IGNORECASE)[:EXPLANATION_CHARACTERS]


def read_numbers(answer: str, n: int, most: int) -> list[int] | None:
    """The numbers of lines 1 to n, each from 0 to `most`; None unless each is there just once."""
    found: dict[int, int] = {}
    for line in answer.splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            continue
        number, value = int(match[1]), int(match[2])
        if number in found or value > most:
            return None
        found[number] = value
    return [found[i + 1] for i in range(n)] if set(found) == set(range(1, n + 1)) else None


def correlation(simulated: Sequence[float], true: Sequence[float]) -> float:
    """Pearson's; a constant simulation explains nothing and gets 0, a constant truth nan."""
    x, y = np.asarray(simulated, float), np.asarray(true, float)
    if len(y) < 2 or np.ptp(y) == 0:
        return float("nan")
    return 0.0 if np.ptp(x) == 0 else float(np.corrcoef(x, y)[0, 1])


def balanced_accuracy(detected: Sequence[float], true: Sequence[float]) -> float:
    """Mean of the shares that are right among the active and the inactive; 0.5 is chance."""
    from sklearn.metrics import balanced_accuracy_score

    return float(balanced_accuracy_score(true, detected)) if len({*true}) > 1 else float("nan")


def interpret(case: Case, client: Client) -> dict[str, Any]:
    """Explain a case and score the explanation: a row of the table of all features.

    A score is nan where it is not defined; answers that could not be read count for nothing.
    """
    explanation, unreadable = read_explanation(client.ask(explain(case))), 0
    said: dict[int, tuple[list[int], list[float]]] = {SCALE: ([], []), 1: ([], [])}
    for question, most, true in follow_ups(case, explanation) if explanation else ():
        if (values := read_numbers(client.ask(question), len(true), most)) is None:
            unreadable += 1
        else:
            said[most][0].extend(values)
            said[most][1].extend(true)
    return {
        "feature": case.name,
        "group": case.group,
        "explanation": explanation or "(none)",
        "simulation": correlation(*said[SCALE]),
        "detection": balanced_accuracy(*said[1]),
        UNREADABLE: unreadable if explanation else 1,
    }


@dataclass
class Found:
    """Everything that could be asked."""

    results: list[dict[str, Any]]  # a row for each that is finished, in the cases' order
    spent: float
    stopped: str | None  # why the others are missing
    chosen: int  # features that were to be asked about


def to_send(cases: Sequence[Case], client: Client) -> tuple[list[Question], int]:
    """What asking about `cases` still sends, and how many requests are answered already.

    Where there is no explanation yet, the questions that follow it hold one of a usual length.
    """
    questions: list[Question] = []
    for case in cases:
        questions.append(explain(case))
        known, usual = client.known(questions[-1]), "x" * (EXPLANATION_CHARACTERS // 2)
        if explanation := usual if known is None else read_explanation(known):
            questions += [question for question, *_ in follow_ups(case, explanation)]
    found = [question for question in questions if client.known(question) is None]
    return found, len(questions) - len(found)


def ask(cases: Sequence[Case], settings: InterpConfig, path: Path) -> Found:
    """Interpret all cases, as far as the cap and the endpoint allow; answers are kept in `path`."""
    found: dict[int, dict[str, Any]] = {}
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
