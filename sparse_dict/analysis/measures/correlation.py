"""Correlation of two columns, of which a resample may be constant."""

import numpy as np
from scipy.stats import rankdata

from sparse_dict.analysis.measures import Floats


def pearson(pairs: Floats) -> float:
    """Pearson's coefficient of both columns of (n, 2); nan where one is constant."""
    flat = (np.ptp(pairs, axis=0) == 0).any()
    return float("nan") if flat else float(np.asarray(np.corrcoef(pairs.T))[0, 1])


def spearman(pairs: Floats) -> float:
    """The same of their ranks."""
    return pearson(rankdata(pairs, axis=0))
