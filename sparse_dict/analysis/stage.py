"""Stage 4: compare a study's dictionaries; figures, tables, claims and one HTML report."""

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_dict import files, lock
from sparse_dict.config import AnalyzeConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sparse_dict.analysis.claims import Claim
    from sparse_dict.analysis.comparison import Comparison
    from sparse_dict.analysis.report import Picture, Section

log = logging.getLogger(__name__)


def check(config: AnalyzeConfig, _folder: Path | None = None) -> None:
    """See that there is something to analyse.

    Hydra's folder of the job does not matter: what is made goes to `analysis_dir`.

    Raises:
        UserError: `sae_dir` is not a folder or holds no finished dictionary; or the key for
            `interp` is missing.
    """
    from sparse_dict.analysis import llm, study

    study.finished(Path(config.sae_dir))
    if _interprets(config):
        llm.api_key(config.interp)


MANIFEST = "analysis.json"  # which dictionaries were compared; written last


def run(config: AnalyzeConfig) -> None:
    """Write figures, tables, `claims.json`, `report.html` and `analysis.json` to `analysis_dir`.

    All of it is derived: what an earlier run left there is replaced.

    Raises:
        UserError: no dictionary can be read, one-to-one matching would not fit in memory, or
            another process works in `analysis_dir`.
    """
    check(config)
    with lock.holding(Path(config.analysis_dir)):
        (Path(config.analysis_dir) / MANIFEST).unlink(missing_ok=True)
        _run(config)


def _run(config: AnalyzeConfig) -> None:
    from sparse_dict.analysis import (
        agreement,
        baselines,
        claims,
        families,
        figures,
        loss_recovered,
        report,
        ridge,
        sections,
        study,
        truth,
        undertraining,
    )
    from sparse_dict.analysis.comparison import VARIANTS, Comparison
    from sparse_dict.sae.folder import WEIGHTS
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
    trajectory = None
    if "undertraining" in settings.parts:
        trajectory = undertraining.follow(comparison)
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
        found = []
        if "claims" in settings.parts:
            found = claims.assess(comparison, ridges, pairs, trajectory)
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
        if "families" in settings.parts:
            random = sections.random_pw_mcc(loaded.d_in, {e.size for e in loaded.entries})
            parts.append(families.section(comparison, pairs, random, draw))
        if ridges is not None:
            parts.append(sections.ridge(comparison, cells, ridges, draw))
        if trajectory is not None:
            parts.append(undertraining.section(comparison, trajectory, draw))
        if "sparsity" in settings.parts:
            parts.append(sections.neurons(comparison, draw))
        if "frontier" in settings.parts:
            parts.append(sections.frontier(loaded, draw))
        measured = None
        if "baselines" in settings.parts:
            section, measured = baselines.section(loaded, config, draw)
            parts.append(section)
        if "loss_recovered" in settings.parts:
            parts.append(loss_recovered.section(loaded, config, measured, draw))
        if "truth" in settings.parts:
            parts.append(truth.section(comparison, config, draw))
        if gathered is not None:
            features_page.write(gathered, folder)
            parts.append(features_page.section(gathered))
        if _interprets(config):
            from sparse_dict.analysis import interp

            parts.append(interp.section(comparison, config))
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
        compared = {
            entry.name: files.fingerprint(files.sha256_file(entry.trained.folder / WEIGHTS))
            for entry in loaded.entries
        }
        record = {
            "dictionaries": compared,
            "left_out": [asdict(item) for item in loaded.left_out],
            "seconds": time.monotonic() - started,
        }
        files.write_json(folder / MANIFEST, record)
    for claim in found:
        log.info("%s: %s; %s", claim.verdict, claim.claim, claim.ours)
    log.info("report: %s", folder / "report.html")


def _interprets(config: AnalyzeConfig) -> bool:
    """Whether features are to be explained by a chat model."""
    return "interp" in config.analysis.parts and config.interp.base_url is not None


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
