"""Stage 4: compare a study's dictionaries; figures, tables, claims and one HTML report."""

import logging
import shutil
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_dict import tracking
from sparse_dict.config import AnalyzeConfig, InterpConfig
from sparse_dict.errors import UserError
from sparse_dict.storage import files, lock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.report.page import Picture

log = logging.getLogger(__name__)


def check(config: AnalyzeConfig, _folder: Path | None = None) -> None:
    """See that there is something to analyse.

    Hydra's folder of the job does not matter: what is made goes to `analysis_dir`.

    Raises:
        UserError: `sae_dir` is not a folder or holds no finished dictionary; or the key or the
            client for `interp`, or what `tracking.mode=online` needs, is missing.
    """
    from sparse_dict.analysis import study
    from sparse_dict.analysis.interp import llm

    study.finished(Path(config.sae_dir))
    interp = config.settings(InterpConfig)
    if interp is not None and interp.base_url is not None:
        llm.check(interp)
    tracking.check(config.tracking)


MANIFEST = "analysis.json"  # which dictionaries were compared, and files' hashes; written last
MADE = (".png", ".svg", ".csv", ".json", ".html")


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
        _run(config, partial)
        _replace(folder, partial)
    log.info("report: %s", folder / "report.html")


def _replace(folder: Path, partial: Path) -> None:
    """Put a whole analysis in the place of the one that `folder` records; the record comes last."""
    earlier: set[str] = set()
    with suppress(UserError, TypeError):
        earlier = {*files.read_json(folder / MANIFEST).get("sha256", ())}
    made = {path.name for path in partial.iterdir()} - {MANIFEST}
    for name in made:
        (partial / name).replace(folder / name)
    for path in list(folder.iterdir()):  # whose names are names; those in the record may be paths
        if path.name in earlier - made and path.suffix in MADE and not path.is_dir():
            path.unlink()
    (partial / MANIFEST).replace(folder / MANIFEST)
    partial.rmdir()


def _run(config: AnalyzeConfig, folder: Path) -> None:
    from sparse_dict.analysis import analyses, study
    from sparse_dict.analysis.comparison import VARIANTS
    from sparse_dict.analysis.context import Context
    from sparse_dict.analysis.report import figures, overview, page
    from sparse_dict.sae.folder import WEIGHTS

    started = time.monotonic()
    loaded = study.load(Path(config.sae_dir), config.comparison.features)
    for item in loaded.left_out:
        log.warning("left out: %s (%s)", item.name, item.reason)
    log.info("comparing %d dictionaries of %s", len(loaded.entries), loaded.folder)

    with (
        tracking.open_run(config, "analyze", f"{config.name} analysis", folder.parent) as tracked,
        figures.style(),
    ):

        def draw(key: str, figure: "Figure", title: str, caption: str) -> "Picture":
            png = figures.save(figure, folder, key)
            tracked.image(key, folder / f"{key}.png")
            return page.Picture(key, title, caption, png)

        context = Context(config, loaded, draw)
        sections, comparison = analyses.make(context), context.comparison
        if context.claims:
            found = [claim.as_json() for claim in context.claims]
            files.write_json(folder / "claims.json", {"claims": found})
        for name, section in sections.items():
            for table in section.tables():
                columns = [str(column) for column in table.frame.columns]
                tracked.table(f"{name}/{table.key}", columns, table.frame.itertuples(index=False))

        wanted = [v for v in VARIANTS if v.matching == "max" or v == comparison.shown]
        files.write_text(folder / "dictionaries.csv", overview.overview(loaded).to_csv(index=False))
        files.write_text(folder / "mmcs.csv", comparison.table(wanted).to_csv(index=False))
        tracked.summary(_summary(context))
        text = page.render(
            f"Sparse dictionaries of the study {config.name}",
            f"{len(loaded.entries)} dictionaries in {loaded.folder}; "
            f"analysed in {time.monotonic() - started:.0f} s",
            list(sections.values()),
        )
        files.write_text(folder / "report.html", text)
        compared = {
            entry.name: files.fingerprint(files.sha256_file(entry.trained.folder / WEIGHTS))
            for entry in loaded.entries
        }
        record = {
            "dictionaries": compared,
            "left_out": [asdict(item) for item in loaded.left_out],
            "seconds": time.monotonic() - started,
            "sha256": files.sha256_of(folder, sorted(path.name for path in folder.iterdir())),
        }
        files.write_json(folder / MANIFEST, files.sealed(record))
    for claim in context.claims:
        log.info("%s: %s; %s", claim.verdict, claim.claim, claim.ours)


def _summary(context: "Context") -> dict[str, float | int | str]:
    """End values for tracking: the main level with its MMCS, the high features, the verdicts."""
    comparison, chain = context.comparison, context.comparison.main
    values: dict[str, float | int | str] = {"dictionaries": len(context.study.entries)}
    values |= {f"claims/{claim.key}": claim.verdict for claim in context.claims}
    if chain is not None:
        values[f"main_{chain.axis}"] = chain.level
        values["mmcs"] = comparison.chain_mean(chain)
        for entry in chain.entries[:-1]:
            mcs = comparison.counted(entry)
            values[f"n_above/{entry.size}"] = int((mcs > comparison.settings.threshold).sum())
    return values
