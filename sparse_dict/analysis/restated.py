"""Studies of earlier versions, whose FVU is by another variance than that of the same rows."""

import logging
from functools import cache

from sparse_dict.analysis.harvested import targets_of
from sparse_dict.analysis.study import Study, everywhere
from sparse_dict.config import ActivationsConfig, AnalyzeConfig
from sparse_dict.errors import UserError
from sparse_dict.sae.rows import moments_of
from sparse_dict.sae.scaling import Scaling

log = logging.getLogger(__name__)

NEITHER = {"scaling": "none", "centering": "none"}  # of dictionaries from elsewhere


def restate(study: Study, config: AnalyzeConfig) -> None:
    """Take the FVU of all dictionaries by the variance of their evaluation rows, in memory.

    Earlier versions divided by the variance of the whole harvest, and did not record the divisor;
    what this analysis measures itself would otherwise have another FVU. Without the activations
    nothing is measured, and the numbers stay as they are.
    """
    for one in everywhere(study):
        old = [e.metrics for e in one.entries if "variance" not in e.metrics and "mse" in e.metrics]
        if not old:
            continue
        try:
            y = targets_of(one, config)
        except UserError:
            continue
        last = cache(lambda rows, y=y: moments_of(y, y.rows - rows, y.rows).variance)
        for metrics in old:
            seen = ActivationsConfig(**(metrics["config"].get("activations") or NEITHER))
            variance = last(int(metrics["eval_rows"])) / Scaling.of(seen, y).scale ** 2
            metrics["variance"] = float(variance.mean())
            metrics["fvu"] = float(metrics["mse"]) / metrics["variance"]
        what = "FVU of %d dictionaries of an earlier version is by the variance of their rows now"
        log.info(what, len(old))
