"""Whether MCS has one hump or two, and which features are in the lower one."""

from typing import Any

import numpy as np
import pandas as pd

from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures import bimodality, random_directions

# With fewer features the dip test says little. Of simulated histograms with humps at .30 and .90
# and two fifths in the upper one, it rejects (p < 0.01) 98 % at 50 features, 83 % at 32, 52 % at 16
FEWEST = 50


def measure(context: Context) -> dict[str, pd.DataFrame]:
    """Tests for two humps of the dictionaries that claims are about; who is in the lower one."""
    comparison, rows, lows = context.comparison, [], []
    variants = {"low_hump": comparison.shown, "low_hump_alive": comparison.shown.of("alive")}
    names = {*context.tables.main["dictionary"]}
    for entry in [entry for entry in context.study.entries if entry.name in names]:
        low: dict[str, Any] = {}
        for column, variant in variants.items():
            mcs, of = comparison.mcs(entry, variant), comparison.numbers(entry, variant, True)
            values = mcs[np.isfinite(mcs)]
            dip, p = bimodality.dip_test(values)
            found = {"dip": dip, "p": p, **bimodality.fit_mixture(values)}
            two = bimodality.are_two(found)
            row = {"dictionary": entry.name, "size": entry.size, "seed": entry.seed}
            row |= {"of": variant.features, "features": of["n"], "above": of["n_above"], **found}
            row |= {"random mean": of["random_mmcs"], "Gaussian mean": of["gaussian_mmcs"]}
            if sizes := comparison.sizes(entry, variant):
                law = random_directions.mcs_cdf(values, context.study.d_in, sizes)
                row["not random, at least"] = bimodality.shared_excess(values, law)
            rows.append(row | {"bimodal": "yes" if two else "no"})
            low[column] = np.nan
            if two and len(values) >= FEWEST:
                between = (found["lower hump"] + found["upper hump"]) / 2
                low[column] = np.where(np.isfinite(mcs), mcs < between, np.nan)
        lows.append(entry.features(**low))
    if not rows:
        return {}
    humps = pd.DataFrame(rows).drop_duplicates(["dictionary", "of"])
    return {"features": pd.concat(lows, ignore_index=True), "humps": humps}
