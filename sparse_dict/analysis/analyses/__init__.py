"""All analyses, in the report's order; each is on if the config has a section of its name."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from sparse_dict.activations.toy import TRUTH
from sparse_dict.analysis.analyses import (
    agreement,
    baselines,
    families,
    frontier,
    heatmap,
    histograms,
    loss_recovered,
    ridge,
    seeds,
    sparsity,
    truth,
    undertraining,
)
from sparse_dict.analysis.analyses.ridge import Ridge
from sparse_dict.analysis.analyses.seeds import SeedPair
from sparse_dict.analysis.analyses.undertraining import Trajectory
from sparse_dict.analysis.claims import Claim, Statement
from sparse_dict.analysis.comparison import Comparison
from sparse_dict.analysis.features import contexts
from sparse_dict.analysis.features import page as features_page
from sparse_dict.analysis.interp import ask as interp
from sparse_dict.analysis.report import overview
from sparse_dict.analysis.report.page import Draw, Section
from sparse_dict.config import AnalyzeConfig


def make(
    config: AnalyzeConfig, comparison: Comparison, draw: Draw
) -> tuple[list[Claim], dict[str, Section]]:
    """The claims, and the sections by the name of their analysis.

    Raises:
        UserError: `contexts.features` names what does not exist, or one-to-one matching would not
            fit in memory.
    """
    study = comparison.study
    cells = comparison.cells()
    ridges = ridge.fit(cells, study.families) if config.ridge is not None else None
    pairs = None
    if config.agreement is not None or config.families is not None:
        pairs = seeds.compare(study, config.comparison.match_limit)
    trajectory = undertraining.follow(comparison) if config.undertraining is not None else None
    found = []
    if config.claims is not None:
        off = {name for name in CLAIMS if getattr(config, name) is None}
        found = assess(comparison, off, ridges, pairs, trajectory)
        if config.truth is not None and (Path(config.activations_dir) / TRUTH).exists():
            found += truth.claims(comparison, Path(config.activations_dir))

    made: dict[str, Section | None] = {"study": overview.section(study, config)}
    if config.heatmap is not None:
        made["heatmap"] = heatmap.section(comparison, cells, draw)
    if config.histograms is not None:
        made["histograms"] = histograms.section(comparison, draw)
    if config.agreement is not None:
        made["agreement"] = agreement.section(comparison, pairs or [], draw)
    if config.families is not None:
        made["families"] = families.section(comparison, pairs or [], draw)
    if ridges is not None:
        made["ridge"] = ridge.section(comparison, cells, ridges, draw)
    if trajectory is not None:
        made["undertraining"] = undertraining.section(comparison, trajectory, draw)
    if config.sparsity is not None:
        made["sparsity"] = sparsity.section(comparison, draw)
    if config.frontier is not None:
        made["frontier"] = frontier.section(study, draw)
    measured = None
    if config.baselines is not None:
        made["baselines"], measured = baselines.section(study, config, draw)
    if config.loss_recovered is not None:
        made["loss_recovered"] = loss_recovered.section(study, config, measured, draw)
    if config.truth is not None and (Path(config.activations_dir) / TRUTH).exists():
        made["truth"] = truth.section(comparison, config, draw)
    if config.contexts is not None:
        gathered = contexts.gather(config, comparison)
        features_page.write(gathered, Path(config.analysis_dir))
        made["contexts"] = features_page.section(gathered)
    if config.interp is not None and config.interp.base_url is not None:
        made["interp"] = interp.section(comparison, config)
    if config.histograms is not None:
        made["appendix"] = histograms.appendix(comparison, draw)
    made["left_out"] = overview.left_out(study)
    made["configs"] = overview.configs(study, asdict(config))
    return found, {name: section for name, section in made.items() if section is not None}


# The claims of each analysis that has some, in the order of the table.
CLAIMS: dict[str, tuple[Statement, ...]] = {
    "heatmap": heatmap.CLAIMS,
    "histograms": histograms.CLAIMS,
    "sparsity": sparsity.CLAIMS,
    "agreement": agreement.CLAIMS,
    "ridge": ridge.CLAIMS,
    "undertraining": undertraining.CLAIMS,
}


def assess(
    comparison: Comparison,
    off: Collection[str],
    ridges: Sequence[Ridge] | None,
    pairs: Sequence[SeedPair] | None,
    trajectory: Trajectory | None,
) -> list[Claim]:
    """All claims; those of an analysis in `off` say so, and what it would have made may be None."""
    judged: dict[str, Callable[[], list[Claim]]] = {
        "heatmap": lambda: heatmap.claims(comparison),
        "histograms": lambda: histograms.claims(comparison),
        "sparsity": lambda: sparsity.claims(comparison),
        "agreement": lambda: agreement.claims(comparison, pairs or []),
        "ridge": lambda: ridge.claims(ridges or []),
        "undertraining": lambda: undertraining.claims(
            comparison, trajectory or Trajectory(missing="it was not followed")
        ),
    }
    found = []
    for name, texts in CLAIMS.items():
        if name in off:
            found += [text.untold(f"{name} is off") for text in texts]
        else:
            found += judged[name]()
    return found
