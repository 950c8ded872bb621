"""Stage 4: compare a study's dictionaries; figures, tables, claims and one HTML report."""

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from sparse_dict import tracking
from sparse_dict.config import ActivationsConfig, AnalyzeConfig, ContextsConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.storage import files, lock, records
from sparse_dict.storage.output import Output
from sparse_dict.storage.records import Amount, Texts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.study import Study

log = logging.getLogger(__name__)

MANIFEST = "analysis.json"  # which dictionaries were compared, and files' hashes; written last
NEITHER = {"scaling": "none", "centering": "none"}  # of dictionaries from elsewhere
MADE = (".png", ".svg", ".csv", ".json", ".html", ".parquet")


class Record(TypedDict):
    """`analysis.json`."""

    dictionaries: Texts  # those that were compared: the fingerprint of each one's weights
    left_out: list[dict[str, Any]]
    seconds: Amount
    sha256: NotRequired[Texts | None]  # earlier versions recorded none


def check(config: AnalyzeConfig, _folder: Path | None = None) -> None:
    """See that there is something to analyse, and that what `interp` and the tracker need is there.

    Hydra's folder of the job does not matter: what is made goes to `analysis_dir`.
    """
    from sparse_dict.analysis import study
    from sparse_dict.analysis.interp import llm

    OUTPUT.refuse_foreign(Path(config.analysis_dir))
    for sae_dir in config.sae_dirs:
        study.finished(sae_dir)
    interp = config.settings(InterpConfig)
    if interp is not None and interp.base_url is not None:
        llm.check(interp)
    if (contexts := config.settings(ContextsConfig)) is not None:
        contexts.function()
    tracking.check(config.tracking)


def read_record(folder: Path) -> Record:
    """`analysis.json` of a finished analysis, its values checked."""
    return records.read(folder / MANIFEST, Record)


def _made_from(folder: Path) -> Mapping[str, Any] | None:
    """The record of an analysis, if it can be read: a damaged one is made anew, like the rest."""
    with suppress(UserError):
        return read_record(folder)
    return None


OUTPUT = Output("analyze", "analysis_dir", MANIFEST, _made_from)


def run(config: AnalyzeConfig) -> None:
    """Write figures, tables, `claims.json`, `report.html` and `analysis.json` to `analysis_dir`.

    All of it is derived and takes the place of what an earlier run made, once it is whole; parts
    that this run does not make are kept where they are of the same dictionaries and comparison.
    When all is written, a part that has failed is a `UserError`.
    """
    check(config)
    from sparse_dict.analysis.context import PARTIAL

    folder = Path(config.analysis_dir)
    partial = folder / PARTIAL
    with lock.holding(folder):
        OUTPUT.begin(folder)
        if partial.is_symlink() or partial.is_file():
            partial.unlink()
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _run(config, partial)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # nothing goes on from there


def own_files(folder: Path) -> list[Path]:
    """What an analysis may have made in its folder, but for its record."""
    from sparse_dict.analysis.columns import FOLDER

    there = [*folder.iterdir(), *(folder / FOLDER).glob("*")]
    return [p for p in there if p.suffix in MADE and p.name != MANIFEST and not p.is_dir()]


def _run(config: AnalyzeConfig, folder: Path) -> None:
    from sparse_dict.analysis import frame, parts, tracked
    from sparse_dict.analysis.report import figures, overview, page, summary
    from sparse_dict.analysis.tables import fingerprints
    from sparse_dict.sae.folder import METRICS

    started, home = time.monotonic(), folder.parent
    earlier: Mapping[str, Any] = (_made_from(home) or {}).get("sha256") or {}

    def draw(key: str, figure: "Figure") -> None:
        tracker.log({key: figures.save(figure, folder, key)})

    context = _loaded(config, draw)
    study, compared = context.study, context.fingerprints
    # what parts are made of: dictionaries, and how they are compared
    made_of = [compared, *map(fingerprints, context.others), asdict(config.comparison), config.seed]
    context.kept = kept = parts.kept(home, of := files.fingerprint(made_of), earlier)
    name, prints = f"{config.name} analysis", {"dictionaries": files.fingerprint(compared)}
    with (
        tracking.open_run(config, "analyze", name, home, fingerprints=prints) as tracker,
        figures.style(),
    ):
        for entry in study.entries:
            tracker.used("dictionary", entry.trained.folder / METRICS)
        sections = frame.make(context)
        tables = {"dictionaries": overview.dictionaries(context.tables)}
        tables["mmcs"] = context.comparison.table(context.tables.dictionaries)
        for key, table in tables.items():
            files.write_text(folder / f"{key}.csv", table.to_csv(index=False))
        for key, section in sections.items():
            for shown in section.tables():
                columns = [str(column) for column in shown.frame.columns]
                tracker.table(f"{key}/{shown.key}", columns, shown.frame.itertuples(index=False))
        tracker.summary(tracked.summary(context))
        sentences, alarm = summary.sentences(context), summary.alarm(context.tables)
        seconds = time.monotonic() - started
        subtitle = (
            f"{len(study.entries)} dictionaries in {study.folder}; analysed in {seconds:.0f} s"
        )
        title = f"Sparse dictionaries of the study {config.name}"
        text = page.render(title, subtitle, list(sections.values()), sentences, alarm)
        files.write_text(folder / "report.html", page.embedded(text, folder, home))
        for half in (name for part in {*context.failed} for name in context.made[part]):
            (folder / half).unlink()  # after the report, which shows what there is of it
        parts.write(folder, dict(sorted({**kept, **context.parts}.items())), of)
        still = [name for key in kept.keys() - context.parts.keys() for name in kept[key].files]
        made = sorted(parts.files_in(folder))
        hashes = {n: earlier[n] for n in still} | files.sha256_of(folder, made)
        record = {
            "dictionaries": compared,
            "left_out": [asdict(item) for item in study.left_out],
            "beside": [str(other.folder) for other in context.others],
            "seconds": time.monotonic() - started,
            "sha256": hashes,
        }
        files.write_json(folder / MANIFEST, files.sealed(record))
        _replace(home, folder, made, earlier.keys() - hashes.keys())
        tracker.made("analysis", home / MANIFEST)
        for path in _pages(home):
            tracker.log({path.stem: path})
        tracked.charts(context, tracker)
        if tracker.online:
            tracked.agreement(context)
        if context.failed:
            tracker.finish(exit_code=1)
    _say(context, home, sentences, alarm)


def _loaded(config: AnalyzeConfig, draw: "Callable[[str, Figure], None]") -> "Context":
    from sparse_dict.analysis import study
    from sparse_dict.analysis.context import Context

    comparison = config.comparison
    first, *rest = config.sae_dirs
    loaded = study.load(first, comparison.features, comparison.site)
    others = [study.load(sae_dir, comparison.features) for sae_dir in rest]
    for one in (loaded, *others):
        restate(one, config)
        for item in one.left_out:
            log.warning("left out: %s (%s)", item.name, item.reason)
    log.info("comparing %d dictionaries of %s", len(loaded.entries), loaded.folder)
    return Context(config, loaded, draw, others=tuple(others))


def restate(study: "Study", config: AnalyzeConfig) -> None:
    """Take the FVU of all dictionaries by the variance of their evaluation rows, in memory.

    Earlier versions divided by the variance of the whole harvest, and did not record the divisor;
    what this analysis measures itself would otherwise have another FVU. Without the activations
    nothing is measured, and the numbers stay as they are.
    """
    from sparse_dict.analysis.harvested import targets_of
    from sparse_dict.analysis.study import everywhere
    from sparse_dict.sae.rows import moments_of
    from sparse_dict.sae.scaling import Scaling

    for one in everywhere(study):
        old = [e.metrics for e in one.entries if "variance" not in e.metrics and "mse" in e.metrics]
        if not old:
            continue
        try:
            y = targets_of(one, config)
        except UserError:
            continue
        last = cache(lambda rows, y=y: moments_of(y, max(y.rows - rows, 0), y.rows).variance)
        for metrics in old:
            seen = ActivationsConfig(**(metrics["config"].get("activations") or NEITHER))
            variance = last(int(metrics["eval_rows"])) / Scaling.of(seen, y).scale ** 2
            metrics["variance"] = float(variance.mean())
            metrics["fvu"] = float(metrics["mse"]) / metrics["variance"]
        what = "FVU of %d dictionaries of an earlier version is by the variance of their rows now"
        log.info(what, len(old))


def _replace(folder: Path, partial: Path, made: Iterable[str], no_longer: Set[str]) -> None:
    """Put a whole analysis in the place of the one in `folder`; the record comes last."""
    for name in made:
        (folder / name).parent.mkdir(exist_ok=True)
        (partial / name).replace(folder / name)
    # what is there, not the record's names, which may lead elsewhere
    there = {str(path.relative_to(folder)) for path in own_files(folder)}
    gone = sorted(there & no_longer)
    for name in gone:
        (folder / name).unlink()
    (partial / MANIFEST).replace(folder / MANIFEST)
    if gone:
        log.warning("removed, since it is of other dictionaries or settings: %s", ", ".join(gone))


def _say(context: "Context", home: Path, sentences: list[str], alarm: str | None) -> None:
    from sparse_dict.analysis.claim import FAILS, HOLDS, OPEN

    keys = {
        verdict: [claim.key for claim in context.claims if claim.verdict == verdict]
        for verdict in (HOLDS, FAILS, OPEN)
    }
    for verdict in (HOLDS, FAILS):
        if keys[verdict]:
            log.info("%s (%d): %s", verdict, len(keys[verdict]), ", ".join(keys[verdict]))
    if claims := len(context.claims):
        log.info("undecided: %d of %d claims; the report says why", len(keys[OPEN]), claims)
    if alarm:
        log.warning("%s", alarm)
    for line in (*sentences, *(f"to open in a browser: {path}" for path in _pages(home))):
        log.info("%s", line)
    if context.failed:
        named = ", ".join(context.failed)
        raise UserError(f"parts have failed, the report says why: {named}; hence exit code 1")


def _pages(home: Path) -> list[Path]:
    from sparse_dict.analysis.features.page import PAGE

    return [home / name for name in ("report.html", PAGE) if (home / name).exists()]
