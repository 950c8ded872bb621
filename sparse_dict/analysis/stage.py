"""Stage 4: compare a study's dictionaries; figures, tables, claims and one HTML report."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_dict import files
from sparse_dict.config import AnalyzeConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparse_dict.analysis.claims import Claim
    from sparse_dict.analysis.comparison import Comparison
    from sparse_dict.analysis.report import Picture, Section

log = logging.getLogger(__name__)


def check(config: AnalyzeConfig) -> None:
    """See that there is something to analyse.

    Raises:
        UserError: `sae_dir` is not a folder or holds no finished dictionary.
    """
    from sparse_dict.analysis import study

    study.finished(Path(config.sae_dir))


def run(config: AnalyzeConfig) -> None:
    """Write figures, tables, `claims.json` and `report.html` to `analysis_dir`.

    All of it is derived: what an earlier run left there is replaced.

    Raises:
        UserError: no dictionary can be read, or one-to-one matching would not fit in memory.
    """
    from sparse_dict.analysis import (
        agreement,
        claims,
        figures,
        report,
        ridge,
        sections,
        study,
    )
    from sparse_dict.analysis.comparison import VARIANTS, Comparison
    from sparse_dict.tracking import open_run

    started = time.monotonic()
    folder, settings = Path(config.analysis_dir), config.analysis
    loaded = study.load(Path(config.sae_dir))
    for item in loaded.left_out:
        log.warning("left out: %s (%s)", item.name, item.reason)
    log.info("comparing %d dictionaries of %s", len(loaded.entries), loaded.folder)

    comparison = Comparison(loaded, settings)
    cells = comparison.cells()
    wanted = [v for v in VARIANTS if v.matching == "max" or v == comparison.shown]
    ridges = ridge.fit(cells) if "ridge" in settings.parts else None
    pairs = None
    if "agreement" in settings.parts:
        pairs = agreement.compare_seeds(loaded, settings.match_limit)
    gathered = None
    if "contexts" in settings.parts:
        from sparse_dict.analysis import contexts, features_page

        gathered = contexts.gather(config, comparison)

    with (
        open_run(
            config.tracking,
            study_dir=config.study_dir,
            group=config.name,
            job_type="analyze",
            name="analyze",
            config=asdict(config),
            folder=folder,
        ) as tracked,
        figures.style(),
    ):

        def draw(key: str, figure: "Figure", title: str, caption: str) -> "Picture":
            png = figures.save(figure, folder, key)
            tracked.image(key, folder / f"{key}.png")
            return report.Picture(key, title, caption, png)

        parts: list[Section | None] = []
        found = claims.assess(comparison, ridges, pairs) if "claims" in settings.parts else []
        if found:
            files.write_json(folder / "claims.json", {"claims": [c.as_json() for c in found]})
            parts.append(sections.claim_table(found))
        parts.append(sections.trained(loaded, config.name))
        if "heatmap" in settings.parts:
            parts.append(sections.heatmap(comparison, cells, draw))
        if "histograms" in settings.parts:
            parts.append(sections.histograms(comparison, draw))
        if pairs is not None:
            parts.append(sections.agreement(comparison, pairs, draw))
        if ridges is not None:
            parts.append(sections.ridge(ridges, draw))
        if "sparsity" in settings.parts:
            parts.append(sections.neurons(comparison, draw))
        if "frontier" in settings.parts:
            parts.append(sections.frontier(loaded, draw))
        if gathered is not None:
            features_page.write(gathered, folder)
            parts.append(features_page.section(gathered))
        if "histograms" in settings.parts:
            parts.append(sections.histogram_appendix(comparison, draw))
        parts += [sections.left_out(loaded), sections.configs(loaded, asdict(config))]

        files.write_text(folder / "dictionaries.csv", sections.overview(loaded).to_csv(index=False))
        files.write_text(folder / "mmcs.csv", comparison.table(wanted).to_csv(index=False))
        tracked.summary(_summary(comparison, found))
        page = report.render(
            f"Sparse dictionaries of the study {config.name}",
            f"{len(loaded.entries)} dictionaries in {loaded.folder}; "
            f"analysed in {time.monotonic() - started:.0f} s",
            [part for part in parts if part is not None],
        )
        files.write_text(folder / "report.html", page)
    for claim in found:
        log.info("%s: %s; %s", claim.verdict, claim.claim, claim.ours)
    log.info("report: %s", folder / "report.html")


def _summary(comparison: "Comparison", found: "list[Claim]") -> dict[str, float | int | str]:
    """End values for tracking: the best L1 with its MMCS, the high features, the verdicts."""
    values: dict[str, float | int | str] = {"dictionaries": len(comparison.study.entries)}
    values |= {f"claims/{claim.key}": claim.verdict for claim in found}
    chain = comparison.main
    if chain is not None:
        values["best_l1"] = chain.l1
        values["mmcs"] = comparison.chain_mean(chain)
        for entry in chain.entries[:-1]:
            mcs = comparison.counted(entry)
            values[f"n_above/{entry.size}"] = int((mcs > comparison.settings.threshold).sum())
    return values
