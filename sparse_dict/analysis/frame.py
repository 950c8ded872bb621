"""How a report is made: everything is measured into tables, then judged, then shown.

An analysis is a line of `ANALYSES` in ``config/analysis.py`` and a module ``sections/NAME.py``,
whose `ANALYSIS` says what it measures, what it claims, and how it is shown.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pandas as pd

from sparse_dict.analysis import analyses, tables
from sparse_dict.analysis import context as old
from sparse_dict.analysis.claim import Claim, Found, Judged, Need, judge, judged
from sparse_dict.analysis.columns import COLUMNS
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.report import overview, texts
from sparse_dict.analysis.report.page import MISSING, Block, Section
from sparse_dict.config import ANALYSES
from sparse_dict.errors import UserError
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files

log = logging.getLogger(__name__)


def _always(_context: Context) -> bool:
    return True


@dataclass(frozen=True)
class Analysis:
    """A section of the report, and the claims that belong to it.

    What keeps it from being measured or shown it raises as a `UserError`; the section then says
    that it is missing, and why, and its claims stay undecided for that reason.
    """

    name: str
    show: Callable[[Context], Iterable[Block]]  # what stands in the section, in order
    claims: tuple[Claim, ...] = ()
    # Further columns of the three tables, with their keys, or tables of its own, by name.
    measure: Callable[[Context], Mapping[str, pd.DataFrame]] | None = None
    pairs: bool = False  # whether it needs `Tables.pairs`
    applies: Callable[[Context], bool] = _always  # whether this study can have it at all


def load() -> list["Analysis | old.Analysis"]:
    """All analyses, in the report's order."""
    return [_module(name).ANALYSIS for name in ANALYSES]


def _module(name: str) -> Any:
    new = f"sparse_dict.analysis.sections.{name}"
    return import_module(new if find_spec(new) else f"{analyses.__name__}.{name}")


def measure(context: Context) -> None:
    """Fill `context.tables`, with what the analyses that are on measure besides.

    Raises:
        UserError: one-to-one matching would not fit in memory, or lacks activations.
    """
    chosen = [a for a in load() if isinstance(a, Analysis) and _is_on(context, a)]
    comparisons = [context.comparison, *map(context.comparison_of, context.study.beside)]
    context.tables = tables.measure(
        comparisons, context.config.name, _pairs(context, chosen), context.fingerprints
    )
    for analysis in chosen:
        if analysis.measure is None:
            continue
        try:
            found = analysis.measure(context)
        except UserError as error:
            log.warning("%s: %s", analysis.name, error)
            context.missing[analysis.name] = str(error)
            continue
        for name, frame in found.items():
            if name in COLUMNS:
                joined = getattr(context.tables, name).merge(frame, how="left")
                setattr(context.tables, name, joined)
            else:
                context.tables.others[name] = frame


def _pairs(context: Context, chosen: Iterable[Analysis]) -> bool:
    """Whether an analysis that is on needs pairs; `agreement` is one that is to be ported."""
    return context.config.is_on("agreement") or any(a.pairs for a in chosen)


def _is_on(context: Context, analysis: "Analysis | old.Analysis") -> bool:
    return context.config.is_on(analysis.name) and analysis.applies(context)


def verdicts(context: Context, analysis: "Analysis | old.Analysis") -> list[Judged]:
    """The claims of an analysis: undecided where it is off or missing, none if it cannot apply."""
    if isinstance(analysis, old.Analysis):
        return analyses.judge(context, analysis)
    if not analysis.applies(context):
        return []
    name, given = analysis.name, context.tables.about.given
    found = None
    if not context.config.is_on(name):
        command = f"python analyze.py {{given}} 'analysis=[claims,{name}]'"
        found = Found(f"{name} is off", need=Need(f"the analysis {name}", command, bool))
    elif name in context.missing:
        found = Found(context.missing[name])
    return [
        judged(claim, found, given) if found else judge(claim, context.tables)
        for claim in analysis.claims
    ]


def shown(context: Context, analysis: "Analysis | old.Analysis") -> Section | None:
    """The section of an analysis; None if it has nothing to show."""
    if isinstance(analysis, old.Analysis):
        return analysis.section(context)
    text = texts.section(analysis.name)
    if analysis.name in context.missing:
        return Section(text.title, [MISSING.format(context.missing[analysis.name])])
    blocks: list[Block] = [*text.paragraphs]
    try:
        blocks += analysis.show(context)
    except UserError as error:
        blocks.append(MISSING.format(error))
    return Section(text.title, blocks) if len(blocks) > len(text.paragraphs) else None


def make(context: Context) -> dict[str, Section]:
    """The sections of the report, by the name of their analysis; fills tables and claims.

    Raises:
        UserError: `contexts.features` names a feature that does not exist, or one-to-one matching
            would not fit in memory.
    """
    config, study = context.config, context.study
    claims, *others = load()
    chosen = [analysis for analysis in others if _is_on(context, analysis)]
    made: dict[str, Section | None] = {}
    with Progress("analyze", len(chosen) + 1, "analyses") as progress:
        progress.say("measuring")
        measure(context)
        tables.write(context.tables, context.folder)
        for name, frame in context.tables.others.items():
            files.write_text(context.folder / f"{name}.csv", frame.to_csv(index=False))
        if config.is_on(claims.name):
            context.claims += [row for analysis in others for row in verdicts(context, analysis)]
        progress.advance(1)
        for analysis in chosen:
            progress.say(analysis.name)
            made[analysis.name] = shown(context, analysis)
            progress.advance(1)
    sections = {
        # shown first and made last: it links to what others write
        claims.name: shown(context, claims) if config.is_on(claims.name) else None,
        "study": overview.section(study, config),
        **made,
        "left_out": overview.left_out(study),
        "configs": overview.configs(study, asdict(config)),
    }
    return {name: section for name, section in sections.items() if section is not None}
