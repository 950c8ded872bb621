"""Stage 4: compare a study's dictionaries; figures, tables, claims and one HTML report."""

import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from typing_extensions import TypedDict

from sparse_dict import tracking
from sparse_dict.config import AnalyzeConfig, ContextsConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.run_names import end_values, run_name
from sparse_dict.storage import files, lock, records
from sparse_dict.storage.output import Output
from sparse_dict.storage.records import Amount, Line, Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.figure import Figure

    from sparse_dict.analysis.claim import Judged
    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.report.page import Picture

log = logging.getLogger(__name__)


# wandb's own charts over tables: the heat map of MMCS, by its one chart of coloured cells; FVU
# against L0, whose table is the study's dictionaries; and the histogram of MCS, whose table is the
# features at the level of the main figures. Each with the columns that it draws.
CHARTS = {
    "charts/mmcs": (
        "wandb/confusion_matrix/v1",
        {"Actual": "size", "Predicted": "level", "nPredictions": "mmcs"},
    ),
    "charts/fvu_l0": ("wandb/scatter/v0", {"x": "l0", "y": "fvu"}),
    "charts/mcs": ("wandb/histogram/v0", {"value": "mcs"}),
}


# By size, a curve for each level. Capitals come first in `wandb leet`, so that it opens on these.
CURVES = {"fvu": "FVU", "mmcs": "MMCS"}
MOST_FEATURES = 20_000  # rows of the table of features that is sent
# How far a dictionary agrees with larger ones and with other seeds, in its own run's summary.
AGREEMENT = ("mmcs", "n_above", "n_above_alive", "shared_fraction")


def check(config: AnalyzeConfig, _folder: Path | None = None) -> None:
    """See that there is something to analyse.

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


MANIFEST = "analysis.json"  # which dictionaries were compared, and files' hashes; written last
MADE = (".png", ".svg", ".csv", ".json", ".html", ".parquet")


class Part(TypedDict):
    """What a part of the report was made of, and its files."""

    of: Line
    files: list[Line]


class Record(TypedDict):
    """`analysis.json`."""

    dictionaries: Texts  # those that were compared: the fingerprint of each one's weights
    left_out: list[dict[str, Any]]
    seconds: Amount
    sha256: NotRequired[Texts | None]  # earlier versions recorded none, and no parts
    parts: NotRequired[dict[str, Part] | None]


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
    """
    check(config)
    from sparse_dict.analysis.context import PARTIAL

    folder = Path(config.analysis_dir)
    partial = folder / PARTIAL
    with lock.holding(folder):
        OUTPUT.begin(folder)
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        partial.mkdir()
        try:
            _run(config, partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # nothing goes on from there
            raise


def _replace(
    folder: Path, partial: Path, earlier: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Put a whole analysis in the place of the one that `folder` records; the record comes last.

    Files that `now` does not record are removed; where they were of a part that was not made anew,
    the log says so.
    """
    from sparse_dict.analysis.parts import files_in

    parts = earlier.get("parts") or {}
    renewed = {name for part in now["parts"].keys() & parts.keys() for name in parts[part]["files"]}
    for name in files_in(partial) - {MANIFEST}:
        (folder / name).parent.mkdir(exist_ok=True)
        (partial / name).replace(folder / name)
    gone = []
    for path in sorted(own_files(folder)):  # not the record's names, which may lead elsewhere
        name = str(path.relative_to(folder))
        if name in (earlier.get("sha256") or {}) and name not in now["sha256"]:
            path.unlink()
            gone.append(name)
    (partial / MANIFEST).replace(folder / MANIFEST)
    shutil.rmtree(partial)
    if stale := [name for name in gone if name not in renewed]:
        log.warning(
            "removed, since it is of other dictionaries or settings: %s; the parts that made it "
            "make it again",
            ", ".join(stale),
        )


def own_files(folder: Path) -> list[Path]:
    """What an analysis may have made in its folder, but for its record."""
    from sparse_dict.analysis.columns import FOLDER

    there = [*folder.iterdir(), *(folder / FOLDER).glob("*")]
    return [p for p in there if p.suffix in MADE and p.name != MANIFEST and not p.is_dir()]


def _run(config: AnalyzeConfig, folder: Path) -> None:
    from sparse_dict.analysis import frame, parts, study
    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.report import figures, page, summary
    from sparse_dict.analysis.restated import restate
    from sparse_dict.analysis.tables import fingerprints
    from sparse_dict.sae.folder import METRICS

    started, home = time.monotonic(), folder.parent
    features = config.comparison.features
    first, *rest = config.sae_dirs
    loaded = study.load(first, features, config.comparison.site)
    others = [study.load(sae_dir, features) for sae_dir in rest]
    for one in (loaded, *others):
        restate(one, config)
    for item in (item for found in (loaded, *others) for item in found.left_out):
        log.warning("left out: %s (%s)", item.name, item.reason)
    log.info("comparing %d dictionaries of %s", len(loaded.entries), loaded.folder)

    compared = fingerprints(loaded)
    of = parts.made_of(config, [compared, *map(fingerprints, others)])
    name, prints = f"{config.name} analysis", {"dictionaries": files.fingerprint(compared)}
    with (
        tracking.open_run(config, "analyze", name, home, fingerprints=prints) as tracked,
        figures.style(),
    ):
        for entry in loaded.entries:
            tracked.used("dictionary", entry.trained.folder / METRICS)

        def draw(key: str, figure: "Figure", title: str, caption: str) -> "Picture":
            png = figures.save(figure, folder, key)
            tracked.image(key, folder / f"{key}.png")
            return page.Picture(key, title, caption, png)

        earlier = _made_from(home) or {}
        kept = parts.kept(home, earlier, of)
        context = Context(config, loaded, draw, others=tuple(others), kept=kept)
        sections = frame.make(context)
        _write_tables(context)
        for key, section in sections.items():
            for table in section.tables() if key in context.parts or key not in kept else ():
                columns = [str(column) for column in table.frame.columns]
                tracked.table(f"{key}/{table.key}", columns, table.frame.itertuples(index=False))
        tracked.summary(_summary(context))
        text = page.render(
            f"Sparse dictionaries of the study {config.name}",
            f"{len(loaded.entries)} dictionaries in {loaded.folder}; "
            f"analysed in {time.monotonic() - started:.0f} s",
            list(sections.values()),
            sentences := summary.sentences(context),
            alarm := summary.alarm(context.tables),
        )
        files.write_text(folder / "report.html", text)
        present = dict(sorted({**kept, **context.parts}.items()))
        parts.write(folder, present)
        still = {name for key in kept.keys() - context.parts.keys() for name in kept[key].files}
        made = sorted(parts.files_in(folder))
        record = {
            "dictionaries": compared,
            "left_out": [asdict(item) for item in loaded.left_out],
            "beside": [str(other.folder) for other in others],
            "seconds": time.monotonic() - started,
            "sha256": {n: earlier["sha256"][n] for n in still} | files.sha256_of(folder, made),
            "parts": parts.record(present, of),
        }
        files.write_json(folder / MANIFEST, files.sealed(record))
        _replace(home, folder, earlier, record)
        tracked.made("analysis", home / MANIFEST)
        for path in _pages(home):
            tracked.page(path.stem, path)
        _tell(context, tracked)
        if context.failed:
            tracked.finish(exit_code=1)
    _say(context, home, sentences, alarm)


def _write_tables(context: "Context") -> None:
    """Write the CSV files that are of every study and no analysis."""
    from sparse_dict.analysis.report import overview

    frames = {"dictionaries": overview.dictionaries(context.tables), "mmcs": mmcs(context)}
    for name, frame in frames.items():
        files.write_text(context.folder / f"{name}.csv", frame.to_csv(index=False))


def mmcs(context: "Context") -> "pd.DataFrame":
    """MMCS of each dictionary that has a larger one, in the variant shown and all plain ones."""
    import pandas as pd

    from sparse_dict.analysis.comparison import VARIANTS

    comparison, known = context.comparison, context.tables.dictionaries
    shown, threshold = comparison.shown, comparison.settings.threshold
    own = known[(known["site"] == context.study.at) & (known["next_size"] > 0)]
    own = own.rename(columns={"size": "dict_size"}).set_index("dictionary")
    columns = ["family", "dict_size", "l1", "l1_scaling", "axis", "level", "seed", "fvu", "l0"]
    named = {entry.name: entry for entry in context.study.entries}
    entries = [named[name] for name in own.index]
    parts = []
    for variant in [shown, *(v for v in VARIANTS if v.matching == "max" and v != shown)]:
        values = [comparison.counted(entry, variant) for entry in entries]
        larger = [comparison.partners(entry, variant.against) for entry in entries]
        part = own[columns].assign(
            **asdict(variant),
            partners=[" ".join(str(one.size) for one in found) for found in larger],
            n=[*map(len, values)],
            mmcs=[found.mean() if len(found) else float("nan") for found in values],
            random_mmcs=[comparison.random_mean(entry, variant) for entry in entries],
            gaussian_mmcs=own["gaussian_mmcs"] if variant == shown else float("nan"),
            n_above=[int((found > threshold).sum()) for found in values],
        )
        parts.append(part.assign(share_above=part["n_above"] / part["n"]))
    return pd.concat(parts).reset_index()


def _say(context: "Context", home: Path, sentences: list[str], alarm: str | None) -> None:
    """Tell the log what was found and where."""
    for line in _counted(context.claims):
        log.info("%s", line)
    if alarm:
        log.warning("%s", alarm)
    for sentence in sentences:
        log.info("%s", sentence)
    for path in _pages(home):
        log.info("to open in a browser: %s", path)
    if context.failed:
        named = ", ".join(context.failed)
        raise UserError(f"parts have failed, the report says why: {named}; hence exit code 1")


def _pages(home: Path) -> list[Path]:
    from sparse_dict.analysis.features.page import PAGE

    return [home / name for name in ("report.html", PAGE) if (home / name).exists()]


def _counted(claims: "Sequence[Judged]") -> list[str]:
    """How many claims have each verdict, which hold or do not; a line each."""
    from sparse_dict.analysis.claim import FAILS, HOLDS

    lines = []
    for verdict in (HOLDS, FAILS):
        found = [claim for claim in claims if claim.verdict == verdict]
        if found:
            lines.append(f"{verdict} ({len(found)}): {', '.join(c.key for c in found)}")
    if claims:
        open_ones = len(claims) - sum(claim.verdict in (HOLDS, FAILS) for claim in claims)
        lines.append(f"undecided: {open_ones} of {len(claims)} claims; the report says why")
    return lines


def _tell(context: "Context", tracked: tracking.Run) -> None:
    """Send curves and the tables, as charts; online, to the dictionaries' own runs their part."""
    tables = context.tables
    every = tables.dictionaries
    here = every[every["site"] == tables.about.site]
    first = here[here["family"] == context.study.families[0]]
    curves = first.groupby(["size", "axis", "level"])[list(CURVES)].mean().stack()
    for size, part in curves.groupby("size"):
        row: dict[str, Any] = {"size": size}
        for (axis, level, name), value in part.droplevel("size").items():  # type: ignore[misc]
            row[f"{CURVES[name]}/{axis} {level:g}"] = value
        tracked.curves(row, "size")
    means = first.groupby(["size", "level"])["mmcs"].mean().dropna().reset_index()
    features = tables.joined(tables.level[tables.level["next_size"] > 0])
    if len(features) > MOST_FEATURES:
        features = features.sample(MOST_FEATURES, random_state=0).sort_index()
    for (key, chart), frame in zip(CHARTS.items(), (means, every, features), strict=True):
        rows = frame.astype(object).where(frame.notna(), None)
        tracked.table(key, list(rows.columns), rows.itertuples(index=False), chart)
    shared = {"shared": "shared_fraction"}  # as it was called in earlier runs
    if not tracked.online:
        return
    told = here.set_index("dictionary").rename(columns=shared)
    above = ["n_above", "n_above_alive"]
    told[above] = told[above].where(told["next_size"] > 0)  # the largest is sought in none
    found = told[[key for key in AGREEMENT if key in told]].astype(object)
    known = found.where(found.notna(), None).to_dict("index")
    finished = [entry.metrics["config"] for entry in context.study.entries]
    openers = [
        partial(
            tracking.open_run, context.config, "train_sae", run_name(config), entry.trained.folder,
            "activations", finished=config,
        )
        for entry, config in zip(context.study.entries, finished, strict=True)
    ]  # fmt: skip
    with tracking.together(openers) as runs:
        for run, entry in zip(runs, context.study.entries, strict=True):
            ends = {str(k): v for k, v in known[entry.name].items() if v is not None}
            run.summary(end_values(entry.metrics) | ends)


def _summary(context: "Context") -> dict[str, float | int | str]:
    """Final values for tracking: the main level with its MMCS, the high features, the verdicts."""
    tables = context.tables
    values: dict[str, float | int | str] = {"dictionaries": len(context.study.entries)}
    values |= {f"claims/{claim.key}": claim.verdict for claim in context.claims}
    values |= {f"agrees/{c.key}": c.agrees for c in context.claims if c.agrees is not None}
    for outcome, name in ((True, "claims_agree"), (False, "claims_differ")):
        values[name] = sum(claim.agrees is outcome for claim in context.claims)
    if not tables.main.empty:
        shown = tables.level[tables.level["dictionary"].isin(tables.shown["dictionary"])]
        values[f"main_{shown['axis'].iloc[0]}"] = float(shown["level"].iloc[0])
        values["mmcs"] = float(shown["mmcs"].mean())
        for key in ("n_above", "n_above_alive"):
            values |= {
                f"{key}/{n}": int(of) for n, of in zip(shown["size"], shown[key], strict=True)
            }
    return values
