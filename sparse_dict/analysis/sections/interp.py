"""Explanations of features by a chat model, where `interp.base_url` names one."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.analysis.claim import Claim, Found, Lies, Need
from sparse_dict.analysis.context import Analysis, Blocks, Context
from sparse_dict.analysis.interp import questions
from sparse_dict.analysis.interp.cases import cases, found_again
from sparse_dict.analysis.interp.questions import UNREADABLE
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.measures.intervals import bootstrap
from sparse_dict.analysis.report.page import Table
from sparse_dict.analysis.source import open_source
from sparse_dict.analysis.tables import Tables
from sparse_dict.config import InterpConfig
from sparse_dict.errors import UserError

KEY = "interp"
ANSWERS = Path(KEY) / "answers.jsonl"  # in the analysis' folder: every prompt and answer
FEWEST = 5  # features of each sort with a score


def asked(context: Context) -> questions.Found:
    """What the chat model says, which costs money: it is asked where this is measured alone."""
    settings, config = context.settings(InterpConfig), context.config
    source = open_source(config, context.study, settings.n_tokens)
    chosen = cases(context, source)
    if not chosen:
        raise UserError("no feature is active in enough excerpts: raise interp.n_tokens")
    return questions.ask(chosen, settings, Path(config.analysis_dir) / ANSWERS)


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Explanations and scores, a row a feature; none without a chat model."""
    if context.settings(InterpConfig).base_url is None:
        return {}
    return {KEY: pd.DataFrame(context.once(asked).results)}


def show(context: Context) -> Blocks:
    """Who was asked what, mean scores, and all explanations."""
    if KEY not in context.tables.others:
        return
    settings, found, table = (
        context.settings(InterpConfig), context.once(asked), context.tables.others[KEY]
    )  # fmt: skip
    yield (
        f"{settings.model} read {settings.examples} excerpts of {settings.width} tokens for each "
        f"explanation, predicted activations in {settings.simulate} others, and told "
        f"{settings.detect // 2} with the feature from as many without. All prompts and answers "
        f"are in {ANSWERS}; at the configured prices they cost {found.spent:.4g}."
    )
    if found.stopped is not None:
        yield (
            f"Only {len(found.results)} of {found.chosen} were finished: {found.stopped}. What is "
            "there is kept; the same command goes on from here."
        )
    if len(table):
        yield Table("Mean scores, with 95 % intervals over features", means(table))
        every = table.drop(columns=UNREADABLE)
        yield Table("All explanations", every, fold=len(table) > 12)


def means(features: pd.DataFrame) -> pd.DataFrame:
    """Mean scores of each group with 95 % intervals, bootstrap over features."""

    def mean(scores: "pd.Series[Any]") -> str:
        values = scores.dropna().to_numpy(float)
        if len(values) < 2:
            return f"{values.mean():.2f}" if len(values) else "nan"
        return f"{bootstrap([values], lambda drawn: float(drawn[0].mean())):.2f}"

    columns: dict[str, Any] = {"features": ("feature", "size")}
    columns |= {score: (score, mean) for score in ("simulation", "detection")}
    columns[UNREADABLE] = (UNREADABLE, "sum")
    return features.groupby("group", sort=False).agg(**columns).reset_index()


def _readable(study: Tables) -> Found:
    table = study.others[KEY]
    groups = (found_again(study.threshold), bases.LABELS["random"])
    parts = [table[table["group"] == group] for group in groups]
    high, random = (part["detection"].dropna().to_numpy(float) for part in parts)
    if min(len(high), len(random)) < FEWEST:
        numbers = f"{len(high)} features and {len(random)} random directions"
        return Found(f"only {numbers} have a score; needs {FEWEST} of each")
    found = bootstrap([high, random], lambda drawn: float(drawn[0].mean() - drawn[1].mean()))
    simulation = [float(np.nanmean(part["simulation"])) for part in parts]
    here = (
        f"detection {high.mean():.2f} against {random.mean():.2f} of random directions, "
        "simulation {:.2f} against {:.2f}".format(*simulation)
    )
    return Found(here, Lies(0)(found), found)


CHAT = Need(
    "a chat model to ask; the text itself is in features.html",
    "python analyze.py {name} interp.base_url=http://localhost:8000/v1 interp.model=MODEL",
    lambda study: KEY in study.others,
)
CLAIMS = (
    Claim("text_readable", judge=_readable, needs=(CHAT,), living=False, bars={"fewest": FEWEST}),
)
ANALYSIS = Analysis(KEY, show, CLAIMS, measure)
