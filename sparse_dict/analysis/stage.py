"""Stage 4: compare a study's dictionaries; figures, tables, claims and one HTML report."""

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_dict import tracking
from sparse_dict.config import AnalyzeConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.naming import end_values, run_name
from sparse_dict.storage import door, files, lock

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.report.page import Picture

log = logging.getLogger(__name__)


# wandb's own charts over tables: the heat map of MMCS, by its one chart of coloured cells, and FVU
# against L0. Each with the columns that it draws.
CHARTS = {
    "charts/mmcs": (
        "wandb/confusion_matrix/v1",
        {"Actual": "dict_size", "Predicted": "level", "nPredictions": "mmcs"},
    ),
    "charts/fvu_l0": ("wandb/scatter/v0", {"x": "l0", "y": "fvu"}),
}


def check(config: AnalyzeConfig, _folder: Path | None = None) -> None:
    """See that there is something to analyse.

    Hydra's folder of the job does not matter: what is made goes to `analysis_dir`.

    Raises:
        UserError: `sae_dir` names what is not a folder or holds no finished dictionary; or the key
            or the client for `interp`, or what `tracking.mode=online` needs, is missing.
    """
    from sparse_dict.analysis import study
    from sparse_dict.analysis.interp import llm

    for sae_dir in config.sae_dirs:
        study.finished(sae_dir)
    interp = config.settings(InterpConfig)
    if interp is not None and interp.base_url is not None:
        llm.check(interp)
    tracking.check(config.tracking)


MANIFEST = "analysis.json"  # which dictionaries were compared, and files' hashes; written last
VALUES: dict[str, door.Check] = {
    "dictionaries": door.texts,
    "left_out": door.listing,
    "seconds": door.amount,
    "sha256?": door.texts,
}
MADE = (".png", ".svg", ".csv", ".json", ".html")


def read_record(folder: Path) -> dict[str, Any]:
    """`analysis.json` of a finished analysis, its values checked.

    Raises:
        UserError: there is none, or a value has the wrong type or is out of range.
    """
    return door.checked(files.read_json(folder / MANIFEST), folder / MANIFEST, VALUES)


def run(config: AnalyzeConfig) -> None:
    """Write figures, tables, `claims.json`, `report.html` and `analysis.json` to `analysis_dir`.

    All of it is derived and takes the place of what an earlier run made, once it is whole.

    Raises:
        UserError: no dictionary can be read, one-to-one matching would not fit in memory, or
            another process works in `analysis_dir`.
    """
    check(config)
    from sparse_dict.analysis.context import PARTIAL

    folder = Path(config.analysis_dir)
    partial = folder / PARTIAL
    with lock.holding(folder):
        if partial.is_dir() and not partial.is_symlink():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
        partial.mkdir()
        try:
            _run(config, partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)  # nothing goes on from there
            raise


def _replace(folder: Path, partial: Path) -> None:
    """Put a whole analysis in the place of the one that `folder` records; the record comes last."""
    earlier: set[str] = set()
    with suppress(UserError, TypeError):
        earlier = {*files.read_json(folder / MANIFEST).get("sha256", ())}
    made = {path.name for path in partial.iterdir()} - {MANIFEST}
    for name in made:
        (partial / name).replace(folder / name)
    for path in list(folder.iterdir()):  # not the record's names, which may lead elsewhere
        if path.name in earlier - made and path.suffix in MADE and not path.is_dir():
            path.unlink()
    (partial / MANIFEST).replace(folder / MANIFEST)
    partial.rmdir()


def _run(config: AnalyzeConfig, folder: Path) -> None:
    from sparse_dict.analysis import analyses, study
    from sparse_dict.analysis.comparison import VARIANTS
    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.features.page import PAGE
    from sparse_dict.analysis.report import figures, overview, page, summary
    from sparse_dict.analysis.restated import restate
    from sparse_dict.sae.folder import METRICS, WEIGHTS

    started, home = time.monotonic(), folder.parent
    features = config.comparison.features
    site = config.comparison.site
    first, *rest = config.sae_dirs
    loaded = study.load(first, features, site)
    others = [study.load(sae_dir, features) for sae_dir in rest]
    for one in (loaded, *others):
        restate(one, config)
    for item in (item for found in (loaded, *others) for item in found.left_out):
        log.warning("left out: %s (%s)", item.name, item.reason)
    log.info("comparing %d dictionaries of %s", len(loaded.entries), loaded.folder)

    compared = {
        entry.name: files.fingerprint(files.sha256_file(entry.trained.folder / WEIGHTS))
        for one in (loaded, *loaded.beside)
        for entry in one.entries
    }
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

        context = Context(config, loaded, draw, others=tuple(others))
        sections, comparison = analyses.make(context), context.comparison
        if context.claims:
            found = [claim.as_json() for claim in context.claims]
            files.write_json(folder / "claims.json", {"claims": found})
        for name, section in sections.items():
            for table in section.tables():
                columns = [str(column) for column in table.frame.columns]
                tracked.table(f"{name}/{table.key}", columns, table.frame.itertuples(index=False))

        wanted = [v for v in VARIANTS if v.matching == "max" and v != comparison.shown]
        files.write_text(folder / "dictionaries.csv", overview.overview(loaded).to_csv(index=False))
        files.write_text(
            folder / "mmcs.csv", comparison.table([comparison.shown, *wanted]).to_csv(index=False)
        )
        tracked.summary(_summary(context))
        text = page.render(
            f"Sparse dictionaries of the study {config.name}",
            f"{len(loaded.entries)} dictionaries in {loaded.folder}; "
            f"analysed in {time.monotonic() - started:.0f} s",
            list(sections.values()),
            sentences := summary.sentences(context),
            alarm := summary.alarm(context),
        )
        files.write_text(folder / "report.html", text)
        record = {
            "dictionaries": compared,
            "left_out": [asdict(item) for item in loaded.left_out],
            "beside": [str(other.folder) for other in others],
            "seconds": time.monotonic() - started,
            "sha256": files.sha256_of(folder, sorted(path.name for path in folder.iterdir())),
        }
        files.write_json(folder / MANIFEST, files.sealed(record))
        _replace(home, folder)
        tracked.made("analysis", home / MANIFEST)
        _tell(context, tracked)
    for claim in context.claims:
        beside = {True: " as its source says", False: " unlike its source", None: ""}[claim.agrees]
        log.info("%s%s: %s; %s", claim.verdict, beside, claim.claim, claim.ours)
    if alarm:
        log.warning("%s", alarm)
    for sentence in sentences:
        log.info("%s", sentence)
    for file in ("report.html", PAGE):
        if (home / file).exists():
            log.info("to open in a browser: %s", home / file)


def _agreement(context: "Context") -> "pd.DataFrame":
    """One row per dictionary: how far it agrees with larger ones and with other seeds."""
    import pandas as pd

    frame = pd.DataFrame([entry.identity for entry in context.study.entries])
    for key in ("fvu", "l0"):
        frame[key] = [entry.metrics[key] for entry in context.study.entries]
    if context.cells.empty:
        frame[["mmcs", "n_above"]] = float("nan")
    else:
        cells = context.cells[["dictionary", "mmcs", "n_above"]]
        frame = frame.merge(cells, how="left", on="dictionary")
    shared: dict[str, list[float]] = {}
    for pair in context.seed_pairs if context.config.is_on("agreement") else ():
        for entry in (pair.first, pair.second):
            shared.setdefault(entry.name, []).append(float(pair.shared.mean()))
    means = {name: sum(parts) / len(parts) for name, parts in shared.items()}
    return frame.assign(shared_fraction=frame["dictionary"].map(means))


def _tell(context: "Context", tracked: tracking.Run) -> None:
    """Send how far dictionaries agree: as charts, and to the dictionaries' own runs."""
    frame = _agreement(context)
    rows = frame.astype(object).where(frame.notna(), None)
    first = frame[frame["family"] == context.study.families[0]]
    means = first.groupby(["dict_size", "level"])["mmcs"].mean().dropna().reset_index()
    for (key, chart), table in zip(CHARTS.items(), (means, rows), strict=True):
        tracked.table(key, list(table.columns), table.itertuples(index=False), chart)
    finished = [entry.metrics["config"] for entry in context.study.entries]
    openers = [
        partial(
            tracking.open_run, context.config, "train_sae", run_name(config), entry.trained.folder,
            "activations", finished=config,
        )
        for entry, config in zip(context.study.entries, finished, strict=True)
    ]  # fmt: skip
    found = rows[["mmcs", "n_above", "shared_fraction"]].to_dict("records")
    with tracking.together(openers) as runs:
        for run, entry, values in zip(runs, context.study.entries, found, strict=True):
            ends = {str(key): value for key, value in values.items() if value is not None}
            run.summary(end_values(entry.metrics) | ends)


def _summary(context: "Context") -> dict[str, float | int | str]:
    """Final values for tracking: the main level with its MMCS, the high features, the verdicts."""
    comparison, chain = context.comparison, context.comparison.main
    values: dict[str, float | int | str] = {"dictionaries": len(context.study.entries)}
    values |= {f"claims/{claim.key}": claim.verdict for claim in context.claims}
    values |= {f"agrees/{c.key}": c.agrees for c in context.claims if c.agrees is not None}
    for outcome, name in ((True, "claims_agree"), (False, "claims_differ")):
        values[name] = sum(claim.agrees is outcome for claim in context.claims)
    if chain is not None:
        values[f"main_{chain.axis}"] = chain.level
        values["mmcs"] = comparison.chain_mean(chain)
        for entry in chain.entries[:-1]:
            mcs = comparison.counted(entry)
            values[f"n_above/{entry.size}"] = int((mcs > comparison.settings.threshold).sum())
    return values
