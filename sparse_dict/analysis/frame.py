"""How a report is made: everything is measured into tables, then judged, then shown.

An analysis is a line of `ANALYSES` in ``config/analysis.py`` and a module ``sections/NAME.py``,
whose `ANALYSIS` says what it measures, what it claims, and how it is shown.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from sparse_dict.analysis import sections, tables
from sparse_dict.analysis.claim import Claim, Found, Judged, Need, judge, judged
from sparse_dict.analysis.columns import COLUMNS
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.parts import Part, files_in
from sparse_dict.analysis.report import overview, texts
from sparse_dict.analysis.report.page import MISSING, Block, Section
from sparse_dict.config import ANALYSES
from sparse_dict.errors import UserError, one_line
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
    needs: tuple[Need, ...] = ()  # without which there is nothing to show


def load() -> list[Analysis]:
    """All analyses, in the report's order."""
    return [import_module(f"{sections.__name__}.{name}").ANALYSIS for name in ANALYSES]


def measure(context: Context) -> None:
    """Fill `context.tables`, with what the analyses that are on measure besides."""
    chosen = [a for a in load() if _is_on(context, a)]
    comparisons = [*context.comparisons.values()]
    pairs = context.pairs if any(a.pairs for a in chosen) else pd.DataFrame()
    context.tables = tables.measure(comparisons, context.config.name, pairs, context.fingerprints)
    for analysis in chosen:
        if analysis.measure is None:
            continue
        with _making(context, analysis.name):
            try:
                found = analysis.measure(context)
            except Exception as error:
                context.missing[analysis.name] = _told(context, analysis.name, error)
                continue
            for name, frame in found.items():
                if name in COLUMNS:
                    joined = getattr(context.tables, name).merge(frame, how="left")
                    # new ones, which know nothing of what was derived from fewer columns
                    context.tables = replace(context.tables, **{name: joined})
                else:
                    context.tables.others[name] = frame
                    files.write_text(context.folder / f"{name}.csv", frame.to_csv(index=False))


@contextmanager
def _making(context: Context, name: str) -> Iterator[None]:
    """Note the files that are made meanwhile as those of an analysis."""
    there = files_in(context.folder)
    yield
    context.made[name] |= files_in(context.folder) - there


def _told(context: Context, name: str, error: Exception) -> str:
    """Why a part of the report is missing, which the log says too.

    A `UserError` is what the study lacks; any other counts as a failure, with an exit code.
    """
    why = one_line(error, named=True)
    log.warning("%s: this part is missing: %s", name, why)
    if not isinstance(error, UserError):
        log.debug("%s", name, exc_info=error)
        context.failed[name] = why
    return why


def _is_on(context: Context, analysis: Analysis) -> bool:
    return context.config.is_on(analysis.name) and analysis.applies(context)


def verdicts(context: Context, analysis: Analysis) -> list[Judged]:
    """The claims of an analysis: undecided where it is off or missing, none if it cannot apply.

    Where it is off, but was judged on the same dictionaries, they are what they were.
    """
    kept = context.kept.get(analysis.name)
    if kept and kept.claims and not context.config.is_on(analysis.name):
        return [*kept.claims]
    try:
        return _verdicts(context, analysis)
    except Exception as error:
        why = f"cannot be judged: {_told(context, f'claims of {analysis.name}', error)}"
        about = context.tables.about
        return [judged(claim, Found(why), about) for claim in analysis.claims]


def switched_on(name: str) -> Need:
    """What a claim needs whose analysis is off."""
    command = f"python analyze.py {{name}} 'analysis=[claims,{name}]'"
    return Need(f"the analysis {name}", command, bool)


def _verdicts(context: Context, analysis: Analysis) -> list[Judged]:
    if not analysis.applies(context):
        return []
    name, about = analysis.name, context.tables.about
    found = None
    if not context.config.is_on(name):
        found = Found(f"{name} is off", need=switched_on(name))
    elif name in context.missing:
        found = Found(context.missing[name])
    return [
        judged(claim, found, about) if found else judge(claim, context.tables)
        for claim in analysis.claims
    ]


def shown(context: Context, analysis: Analysis) -> Section | None:
    """The section of an analysis; None if it has nothing to show."""
    text = texts.section(analysis.name)
    lacked = (f"needs {need.what}" for need in analysis.needs if not need.there(context.tables))
    if why := context.missing.get(analysis.name) or next(lacked, None):
        return Section(text.title, [MISSING.format(why)])
    blocks: list[Block] = [*text.paragraphs]
    try:
        blocks += analysis.show(context)
    except Exception as error:
        blocks.append(MISSING.format(_told(context, analysis.name, error)))
    return Section(text.title, blocks) if len(blocks) > len(text.paragraphs) else None


def make(context: Context) -> dict[str, Section]:
    """The sections of the report, by the name of their analysis; fills tables and claims."""
    config, study = context.config, context.study
    claims, *others = load()
    chosen = [analysis for analysis in others if _is_on(context, analysis)]
    made: dict[str, Section | None] = {}
    with Progress("analyze", len(chosen) + 1, "analyses") as progress:
        progress.say("measuring")
        measure(context)
        _keep_measured(context)
        tables.write(context.tables, context.folder)
        judging = config.is_on(claims.name) or claims.name in context.kept
        judged_by = {a.name: verdicts(context, a) for a in others if judging}
        context.claims += [row for rows in judged_by.values() for row in rows]
        progress.advance(1)
        for analysis in others:
            if analysis in chosen:
                progress.say(analysis.name)
                made[analysis.name] = _part(context, analysis, judged_by.get(analysis.name, []))
                progress.advance(1)
            elif analysis.name in context.kept:
                made[analysis.name] = context.kept[analysis.name].section
    if config.is_on(claims.name):
        with _making(context, claims.name):
            rows = [claim.as_json() for claim in context.claims]
            files.write_json(context.folder / "claims.json", {"claims": rows})
        first = _part(context, claims, [])  # made last: it links to what others write
    else:
        first = context.kept[claims.name].section if claims.name in context.kept else None
    every = {
        claims.name: first,
        "study": overview.section(study, config, context.tables),
        **made,
        "left_out": overview.left_out(study),
        "configs": overview.configs(study, asdict(config)),
    }
    return {name: section for name, section in every.items() if section is not None}


def _part(context: Context, analysis: Analysis, rows: list[Judged]) -> Section | None:
    """The section of an analysis, which becomes one of `context.parts` unless it failed."""
    name = analysis.name
    with _making(context, name):
        section = shown(context, analysis)
    if name in context.failed:
        for half in context.made[name]:
            (context.folder / half).unlink()
        return section
    context.parts[name] = Part(tuple(sorted(context.made[name])), section, tuple(rows))
    return section


def _keep_measured(context: Context) -> None:
    """Add to the tables what an earlier run measured of the same, and this one does not."""
    home, now = Path(context.config.analysis_dir), context.tables
    off = [part for name, part in context.kept.items() if not context.config.is_on(name)]
    if not off:
        return
    try:
        earlier = tables.read(home)
        found = [home / name for part in off for name in part.files if name.endswith(".csv")]
        others = {path.stem: pd.read_csv(path) for path in found}
    except (UserError, ValueError):  # damaged
        return
    changes: dict[str, Any] = {"others": others | now.others}
    for name, keys in tables.KEYS.items():
        measured, frame = getattr(earlier, name), getattr(now, name)
        if not len(frame.columns):
            changes[name] = measured
        elif more := [column for column in measured if column not in frame]:
            changes[name] = frame.merge(measured[[*keys, *more]], how="left", on=keys)
    context.tables = replace(now, **changes)
