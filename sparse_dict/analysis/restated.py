"""Studies of earlier versions, whose FVU is by another variance than that of the same rows."""

import logging

from sparse_dict.activations.store import Moments
from sparse_dict.analysis.harvested import targets_of
from sparse_dict.analysis.study import Study, everywhere
from sparse_dict.config import ActivationsConfig, AnalyzeConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.rows import moments_of
from sparse_dict.sae.scaling import Scaling

log = logging.getLogger(__name__)


def restate(study: Study, config: AnalyzeConfig) -> None:
    """Take the FVU of all dictionaries by the variance of their evaluation rows, in memory.

    Earlier versions divided by the variance of the whole harvest, and did not record the divisor;
    what this analysis measures itself would otherwise have another FVU. Without the activations
    nothing is measured, and the numbers stay as they are.
    """
    for one in everywhere(study):
        old = [e for e in one.entries if "variance" not in e.metrics and "mse" in e.metrics]
        if not old:
            continue
        try:
            y = targets_of(one, config)
        except UserError:
            continue
        known: dict[int, Moments] = {}
        changes = []
        for entry in old:
            m, rows = entry.metrics, int(entry.metrics["eval_rows"])
            seen = ActivationsConfig(**(m["config"].get("activations") or NEITHER))
            if rows not in known:
                known[rows] = moments_of(y, y.rows - rows, y.rows)
            m["variance"] = float((known[rows].variance / Scaling.of(seen, y).scale ** 2).mean())
            before, m["fvu"] = float(m["fvu"]), float(m["mse"]) / m["variance"]
            changes.append(m["fvu"] / before - 1 if before else 0.0)
        log.info(
            "FVU of %d dictionaries of an earlier version is taken by the variance of their "
            "evaluation rows: %+.2f %% to %+.2f %% of what their metrics.json says",
            len(old), 100 * min(changes), 100 * max(changes),
        )  # fmt: skip


NEITHER = {"scaling": "none", "centering": "none"}  # of dictionaries from elsewhere
