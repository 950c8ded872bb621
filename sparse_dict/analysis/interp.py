"""Can features be told in words? Explanations by a chat model, and how well they predict.

A model reads excerpts in which a feature is active and explains it in a line. Two scores measure
the explanation on other excerpts. Simulation (Bills et al. 2023, "Language models can explain
neurons in language models"): told the explanation alone, the model writes an integer from 0 to 10
for each token; the score is the correlation with the true activations over all tokens. (They take
the expectation over the model's probabilities, which few endpoints give.) Detection (Paulo et al.
2024, "Automatically interpreting millions of features in large language models"): the model tells
excerpts with the feature from excerpts without; the score is the balanced accuracy.

Baselines are the directions of `baselines`, each cut to the k codes of largest magnitude on a
token, of which the positive ones count; k is the dictionaries' L0, so that all are equally sparse.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sparse_dict import files, lock
from sparse_dict.analysis import baselines
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.contexts import CHUNK_VALUES, Source, open_source, printable
from sparse_dict.analysis.intervals import bootstrap
from sparse_dict.analysis.llm import CapReached, Client, Question
from sparse_dict.analysis.report import Section, Table
from sparse_dict.config import AnalyzeConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.progress import Progress

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Encode = Callable[[Floats], Floats]  # rows (n, d_in) to activations (n, size), none negative

ANSWERS = Path("interp") / "answers.jsonl"
CANDIDATES = 3  # looked at for each one explained, since some are active in too few excerpts
BATCH = 5  # excerpts in one question of detection, as Paulo et al. have it
SCALE = 10  # the largest activation in words
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


@dataclass
class Result:
    """What came out for a case; a score is nan where it cannot be told."""

    case: Case
    explanation: str = ""
    simulation: float = float("nan")
    detection: float = float("nan")
    malformed: int = 0  # answers that could not be read, and count for nothing


@dataclass
class Found:
    """Everything that could be asked."""

    results: list[Result] = field(default_factory=list)  # finished ones, in the cases' order
    spent: float = 0.0
    stopped: str | None = None  # why the others are missing


# --- questions and answers ------------------------------------------------------------------------


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


def simulate(explanation: str, excerpt: Excerpt) -> Question:
    """Asks for the activation on each token of an excerpt."""
    lines = "\n".join(f"{number}\t{token}" for number, token in enumerate(excerpt.tokens, 1))
    text = f"Explanation: {explanation}\n\nTokens:\n{lines}"
    return Question(SIMULATE, text, LINE_TOKENS * (len(excerpt.tokens) + 1))


def detect(explanation: str, excerpts: Sequence[Excerpt]) -> Question:
    """Asks in which excerpts the feature is active."""
    lines = "\n".join(f"{number}. {''.join(e.tokens)}" for number, e in enumerate(excerpts, 1))
    text = f"Explanation: {explanation}\n\nExcerpts:\n{lines}"
    return Question(DETECT, text, LINE_TOKENS * (len(excerpts) + 1))


def follow_ups(case: Case, explanation: str) -> list[Question]:
    """Everything that is asked once there is an explanation: simulations, then detection."""
    batches = [case.detect[i : i + BATCH] for i in range(0, len(case.detect), BATCH)]
    return [simulate(explanation, e) for e in case.simulate] + [
        detect(explanation, batch) for batch in batches
    ]


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


def balanced_accuracy(told: Sequence[bool], true: Sequence[bool]) -> float:
    """Mean of the shares told right among the active and among the inactive; 0.5 is chance."""
    x, y = np.asarray(told, bool), np.asarray(true, bool)
    if not y.any() or y.all():
        return float("nan")
    return float((x[y].mean() + (~x[~y]).mean()) / 2)


def interpret(case: Case, client: Client) -> Result:
    """Explain a case and score the explanation.

    Raises:
        UserError: the endpoint gives no more answers, or the cap is reached.
    """
    result = Result(case, read_explanation(client.ask(explain(case))))
    if not result.explanation:
        result.malformed = 1
        return result
    simulated: list[float] = []
    true: list[float] = []
    for excerpt in case.simulate:
        answer = client.ask(simulate(result.explanation, excerpt))
        values = read_numbers(answer, len(excerpt.tokens), SCALE)
        if values is None:
            result.malformed += 1
        else:
            simulated += values
            true += excerpt.values.tolist()
    told: list[bool] = []
    active: list[bool] = []
    for start in range(0, len(case.detect), BATCH):
        batch = case.detect[start : start + BATCH]
        values = read_numbers(client.ask(detect(result.explanation, batch)), len(batch), 1)
        if values is None:
            result.malformed += 1
        else:
            told += [value == 1 for value in values]
            active += [bool(e.values.max() > 0) for e in batch]
    result.simulation = correlation(simulated, true)
    result.detection = balanced_accuracy(told, active)
    return result


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
                    if future.cancelled():
                        continue
                    try:
                        found[futures[future]] = future.result()
                    except UserError as error:
                        stopped = stopped or str(error)
                        if not isinstance(error, CapReached):
                            # After the cap, cases whose answers are there can still be finished.
                            pool.shutdown(wait=False, cancel_futures=True)
                    progress.advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
        if stopped is not None:
            log.warning("interp: %d of %d features: %s", len(found), len(cases), stopped)
        return Found([found[i] for i in sorted(found)], client.spent, stopped)


# --- what is asked about --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Owner:
    """A dictionary or baseline, and the columns of its activations that may be asked about."""

    group: str
    name: str
    encode: Encode
    size: int
    columns: tuple[int, ...]


def cases(config: AnalyzeConfig, comparison: Comparison, source: Source) -> list[Case]:
    """Up to `interp.per_group` features of each group and baseline, drawn at random.

    Left out are those active in too few excerpts (or in too many) to ask about. Memory: 4 bytes
    for each token read and each of CANDIDATES x per_group x groups columns.

    Raises:
        UserError: a baseline cannot be fitted.
    """
    settings = config.interp
    width = min(settings.width, source.text.shape[1])
    kept = source.text.shape[1] // width * width
    windows = source.text[:, :kept].reshape(-1, width)
    # The corpus repeats itself: what is held out must not stand among the examples too.
    fresh = np.sort(np.unique(windows, axis=0, return_index=True)[1])
    order = np.random.default_rng(config.seed).permutation(fresh)
    halves = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])

    owners = [*_features(config, comparison), *_bases(config, comparison, source)]
    codes = _read(owners, source)[:, :, :kept].reshape(-1, len(windows), width)
    tokenizer = source.lm.tokenizer
    words = {int(t): printable(tokenizer.token_bytes(int(t))) for t in np.unique(windows)}
    texts = {int(i): tuple(words[int(t)] for t in windows[i]) for i in fresh}

    found: list[Case] = []
    taken: dict[str, int] = {}
    row = -1
    for owner in owners:
        for column in owner.columns:
            row += 1
            if taken.get(owner.group, 0) == settings.per_group:
                continue
            rng = np.random.default_rng([config.seed, row])
            case = _case(owner, column, codes[row], texts, halves, settings, rng)
            if case is not None:
                found.append(case)
                taken[owner.group] = taken.get(owner.group, 0) + 1
    return found


def _case(
    owner: _Owner,
    column: int,
    values: Floats,
    texts: dict[int, tuple[str, ...]],
    halves: tuple[NDArray[np.int64], NDArray[np.int64]],
    settings: InterpConfig,
    rng: np.random.Generator,
) -> Case | None:
    """The excerpts to ask about, of `values` (windows, width); None if too few are active."""
    peaks = values.max(1)
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
    told = rng.permutation(np.concatenate([shown, rng.choice(idle, n, replace=False)]))

    def excerpts(places: NDArray[np.int64]) -> tuple[Excerpt, ...]:
        return tuple(Excerpt(texts[int(i)], values[i].copy()) for i in places)

    return Case(
        owner.group, f"{owner.name}/{column}", float(peaks[examples].max()), excerpts(examples),
        excerpts(np.concatenate([active[:m], others])), excerpts(told),
    )  # fmt: skip


def _features(config: AnalyzeConfig, comparison: Comparison) -> Iterator[_Owner]:
    """Candidates among the living features of the main chain: those with a high MCS, and others.

    The largest dictionary has no MCS. In a study without chains: features of the first dictionary.
    """
    chain, threshold = comparison.main, comparison.settings.threshold
    groups: dict[str, list[tuple[int, int]]] = {}  # pairs of dictionary and feature
    entries = chain.entries[:-1] if chain else comparison.study.entries[:1]
    for i, entry in enumerate(entries):
        alive = np.flatnonzero(entry.alive)
        if chain is None:
            groups.setdefault("features", []).extend((i, int(j)) for j in alive)
            continue
        mcs = comparison.mcs(entry)
        for j in alive[np.isfinite(mcs[alive])]:
            high = mcs[j] > threshold
            label = f"features, MCS above {threshold:g}" if high else "features, other"
            groups.setdefault(label, []).append((i, int(j)))
    rng = np.random.default_rng(config.seed)
    for label in sorted(groups):
        members = groups[label]
        for pick in rng.permutation(len(members))[: CANDIDATES * config.interp.per_group]:
            i, column = members[pick]
            entry = entries[i]
            encode = entry.trained.dictionary.encode
            yield _Owner(label, entry.name, encode, entry.size, (column,))


def _bases(config: AnalyzeConfig, comparison: Comparison, source: Source) -> Iterator[_Owner]:
    """Candidates among the directions of each baseline, fitted on the text that is read here."""
    settings = config.interp
    if not settings.baselines:
        return
    chain = comparison.main
    entries = chain.entries[:-1] if chain else comparison.study.entries[:1]
    k = max(round(float(np.mean([float(e.metrics["l0"]) for e in entries]))), 1)
    n_contexts, n_ctx = source.text.shape
    wanted = max(min(config.baselines.rows // n_ctx, n_contexts), 1)
    text = source.text[np.arange(wanted) * n_contexts // wanted]
    step = max(CHUNK_VALUES // (comparison.study.d_in * n_ctx), 1)
    x = np.concatenate([_rows(source, text[i : i + step]) for i in range(0, wanted, step)])
    for method in settings.baselines:
        basis = baselines.fit(method, x, config.seed)
        rng = np.random.default_rng(config.seed)
        size = len(basis.directions)
        chosen = rng.permutation(size)[: CANDIDATES * settings.per_group]
        label = baselines.LABELS[method]
        yield _Owner(label, method, sparse(basis, k), size, tuple(chosen.tolist()))


def sparse(basis: baselines.Basis, k: int) -> Encode:
    """The positive ones among the k codes of largest magnitude of a row."""

    def encode(x: Floats) -> Floats:
        codes = basis.encode(x)
        size = np.abs(codes)
        if k < codes.shape[1]:
            cut = np.partition(size, -k, axis=1)[:, -k, None]
            codes = np.where(size >= cut, codes, 0)
        return np.maximum(codes, 0)

    return encode


def _rows(source: Source, text: NDArray[np.int32]) -> Floats:
    """The model's activations (tokens, d_in) on `text` (contexts, n_ctx)."""
    model = source.lm.model
    with torch.inference_mode():
        tokens = torch.from_numpy(text.astype(np.int64)).to(model.embed.weight.device)
        found = model.activations(tokens, source.layer, source.site)
    rows: Floats = found.flatten(0, 1).float().cpu().numpy()
    return rows


def _read(owners: Sequence[_Owner], source: Source) -> Floats:
    """Activations of all candidates on all the text, (candidates, contexts, n_ctx)."""
    n_contexts, n_ctx = source.text.shape
    rows = np.cumsum([0, *(len(owner.columns) for owner in owners)])
    codes = np.empty((int(rows[-1]), n_contexts, n_ctx), np.float32)
    # A dictionary has an owner for each of its candidates; it encodes once.
    alike: dict[str, list[int]] = {}
    for i, owner in enumerate(owners):
        alike.setdefault(owner.name, []).append(i)
    step = max(CHUNK_VALUES // (max(owner.size for owner in owners) * n_ctx), 1)
    with Progress("reading for interp", n_contexts * n_ctx, "tokens") as progress:
        for start in range(0, n_contexts, step):
            x = _rows(source, source.text[start : start + step])
            for members in alike.values():
                found = owners[members[0]].encode(x)
                for i in members:
                    part = found[:, list(owners[i].columns)].T
                    codes[rows[i] : rows[i + 1], start : start + step] = part.reshape(
                        len(part), -1, n_ctx
                    )
            progress.advance(len(x))
    return codes


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
    settings, folder = config.interp, Path(config.analysis_dir)
    try:
        chosen = cases(config, comparison, open_source(config, comparison.study))
        if not chosen:
            raise UserError("no feature is active in enough excerpts: raise contexts.n_tokens")
        found = ask(chosen, settings, folder / ANSWERS)
    except UserError as error:
        log.warning("no interp: %s", error)
        return Section(title, [baselines.UNTOLD.format(error)])
    text = (
        f"{settings.model} reads {settings.examples} excerpts of {settings.width} tokens in which "
        "a feature is highest and explains it in a line; the scores are taken on other excerpts. "
        "Simulation is the correlation between the activations that it predicts from the "
        f"explanation, token by token in {settings.simulate} excerpts, and the true ones (after "
        "Bills et al. 2023, with integers for probabilities); a constant prediction counts as 0. "
        "Detection is the balanced accuracy in telling "
        f"{settings.detect // 2} excerpts with the feature from as many without (Paulo et al. "
        "2024); 0.5 is chance. The directions of the baselines count as active where they are "
        "positive and among the largest codes of a token, as many as the dictionaries' L0. "
        "Features active in too few excerpts or in almost all were not asked about."
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
            Table("Mean scores, with 95 % intervals over features", by_group(found.results)),
            Table("All explanations", table, fold=len(table) > 12),
        ]
    return result
