"""Explanations of features by a chat model, where `interp.base_url` names one."""

import numpy as np

from sparse_dict.analysis.claims import Claim, Statement, verdict
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.interp import ask
from sparse_dict.analysis.interp.cases import found_again
from sparse_dict.analysis.measures import bases
from sparse_dict.analysis.measures.intervals import bootstrap
from sparse_dict.analysis.report.page import Section
from sparse_dict.config import InterpConfig

FEWEST = 5  # features of each sort with a score

READABLE = Statement(
    "text_readable",
    "The text that features found again are active on has something in common, in words",
    "7",
    "readable",
    "A chat model explains features from the text that they are most active on. Its mean detection "
    "score (balanced accuracy in telling held-out excerpts with the feature from others) for "
    "features with MCS above the threshold, less that for random directions: holds if the 95 % "
    "interval lies above 0, does not hold if below. Needs a chat model (interp.base_url), random "
    f"directions among interp.baselines, and {FEWEST} scores of each.",
)


def section(context: Context) -> Section | None:
    """The explanations with their scores; None without a chat model to ask."""
    settings = context.settings(InterpConfig)
    if settings.base_url is None:
        return None
    return ask.section(context.explanations, settings, context.folder)


def claims(context: Context) -> list[Claim]:
    """Whether explanations of features predict better than those of random directions."""
    if context.settings(InterpConfig).base_url is None:
        return [
            READABLE.undecided(
                "cannot be decided here: no chat model was asked (interp.base_url); the text "
                "itself is in features.html"
            )
        ]
    found = context.explanations
    if found.missing is not None:
        return [READABLE.undecided(found.missing)]
    table = ask.each(found.results)
    groups = (found_again(context.comparison.settings.threshold), bases.LABELS["random"])
    high, random = (table[table["group"] == group] for group in groups)
    detection = [part["detection"].dropna().to_numpy(float) for part in (high, random)]
    fewest = min(map(len, detection))
    if fewest < FEWEST:
        numbers = f"{len(detection[0])} features and {len(detection[1])} random directions"
        return [READABLE.undecided(f"only {numbers} have a score; needs {FEWEST} of each")]
    estimate = bootstrap(detection, lambda parts: float(parts[0].mean() - parts[1].mean()))
    ours = "detection {:.2f} against {:.2f} of random directions, simulation {:.2f} against {:.2f}"
    simulation = [float(np.nanmean(part["simulation"])) for part in (high, random)]
    ours = ours.format(*(float(part.mean()) for part in detection), *simulation)
    return [READABLE.decided(ours, estimate, verdict(estimate, 0))]


ANALYSIS = Analysis("interp", section, (READABLE,), claims)
