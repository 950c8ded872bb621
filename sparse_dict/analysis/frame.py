"""How a report is made: everything is measured into tables, then judged, then shown.

An analysis is a line of `ANALYSES` in ``config/analysis.py`` and a module ``sections/NAME.py``,
whose `ANALYSIS` says what it measures, what it claims, and how it is shown.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from sparse_dict.analysis import sections, tables
from sparse_dict.analysis.claim import Found, Judged, Need, judge, judged
from sparse_dict.analysis.columns import COLUMNS
from sparse_dict.analysis.context import Analysis, Context
from sparse_dict.analysis.measured import three_tables
from sparse_dict.analysis.parts import Part, files_in
from sparse_dict.analysis.report import overview, texts
from sparse_dict.analysis.report.page import MISSING, Block, Section
from sparse_dict.config import ANALYSES
from sparse_dict.errors import UserError, one_line
from sparse_dict.machine.progress import Progress
from sparse_dict.storage import files

log = logging.getLogger(__name__)

ALL = 3.0  # seconds that measuring what all analyses need takes in the demo


def load() -> list[Analysis]:
    """All analyses, in the report's order."""
    return [import_module(f"{sections.__name__}.{name}").ANALYSIS for name in ANALYSES]


def make(context: Context) -> dict[str, Section]:
    """The sections of the report, by the name of their analysis; fills tables and claims."""
    config, study, kept = context.config, context.study, context.kept
    claims, *others = load()
    chosen = [analysis for analysis in others if _is_on(context, analysis)]
    made: dict[str, Section | None] = {name: part.section for name, part in kept.items()}
    whole, done = ALL + sum(sum(analysis.seconds) for analysis in chosen), 0.0
    with Progress("analyze", 100, "%") as progress:

        def begun(what: str, seconds: float) -> None:
            nonlocal done
            progress.advance(round(100 * done / whole) - progress.done)
            progress.say(what)
            done += seconds

        measure(context, begun)
        tables.write(context.tables, context.folder)
        if config.is_on(claims.name) or claims.name in kept:
            context.claims += [row for analysis in others for row in verdicts(context, analysis)]
        for analysis in chosen:
            begun(analysis.name, analysis.seconds[1])
            made[analysis.name] = _part(context, analysis)
        begun("the report", 0.0)
    if config.is_on(claims.name):
        with _making(context, claims.name):
            rows = [claim.as_json() for claim in context.claims]
            files.write_json(context.folder / "claims.json", {"claims": rows})
        made[claims.name] = _part(context, claims)  # last: it links to what others write
    every = {
        claims.name: made.get(claims.name),
        "study": overview.section(study, config, context.tables),
        **{analysis.name: made.get(analysis.name) for analysis in others},
        "left_out": overview.left_out(study),
        "configs": overview.configs(study, asdict(config)),
    }
    return {name: section for name, section in every.items() if section is not None}


def measure(context: Context, begun: Callable[[str, float], object] = lambda *_: None) -> None:
    """Fill `context.tables`, with what the analyses that are on measure besides.

    `begun` is told what is begun, and how many seconds that takes in the demo.
    """
    chosen = [analysis for analysis in load() if _is_on(context, analysis)]
    comparisons = [*context.comparisons.values()]
    pairs = any(analysis.pairs for analysis in chosen)
    begun("measuring dictionaries", ALL)
    context.tables = three_tables.measure(
        comparisons, context.config.name, context.fingerprints, pairs
    )
    for analysis in chosen:
        if analysis.measure is None:
            continue
        begun(f"measuring {analysis.name}", analysis.seconds[0])
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
    if off := [part for name, part in context.kept.items() if not context.config.is_on(name)]:
        context.tables = _with_earlier(context.tables, Path(context.config.analysis_dir), off)


def _with_earlier(now: tables.Tables, home: Path, off: Iterable[Part]) -> tables.Tables:
    """The tables with what an earlier run measured of the same, and this one does not."""
    try:
        earlier = tables.read(home)
        found = [home / name for part in off for name in part.files if name.endswith(".csv")]
        others = {path.stem: pd.read_csv(path) for path in found}
    except (UserError, ValueError):  # damaged
        return now
    changes: dict[str, Any] = {"others": others | now.others}
    for name, keys in tables.KEYS.items():
        there, frame = getattr(earlier, name), getattr(now, name)
        if not len(frame.columns):
            changes[name] = there
        elif more := [column for column in there if column not in frame]:
            changes[name] = frame.merge(there[[*keys, *more]], how="left", on=keys)
    return replace(now, **changes)


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
        context.failed.append(name)
    return why


def _is_on(context: Context, analysis: Analysis) -> bool:
    return context.config.is_on(analysis.name) and analysis.applies(context)


def switched_on(name: str) -> Need:
    """What a claim needs whose analysis is off."""
    command = f"python analyze.py {{name}} 'analysis=[claims,{name}]'"
    return Need(f"the analysis {name}", command, bool)


def verdicts(context: Context, analysis: Analysis) -> list[Judged]:
    """The claims of an analysis: undecided where it is off or missing, none if it cannot apply.

    One that is off may have measured the same dictionaries before.
    """
    name, about = analysis.name, context.tables.about
    try:
        if not analysis.applies(context):
            return []
        if not context.config.is_on(name) and name not in context.kept:
            found = Found(f"{name} is off", need=switched_on(name))
        elif name in context.missing:
            found = Found(context.missing[name])
        else:
            return [judge(claim, context.tables) for claim in analysis.claims]
    except Exception as error:
        found = Found(f"cannot be judged: {_told(context, f'claims of {name}', error)}")
    return [judged(claim, found, about) for claim in analysis.claims]


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


def _part(context: Context, analysis: Analysis) -> Section | None:
    """The section of an analysis, which becomes one of `context.parts` unless it failed."""
    name = analysis.name
    with _making(context, name):
        section = shown(context, analysis)
    if name not in context.failed:
        context.parts[name] = Part.of(context.made[name], section)
    return section
