"""How dictionaries stand to the best simple basis at equal sparsity.

A basis keeps k codes on each row; what it reaches at a dictionary's L0 is read off between the two
whole k on either side, which is what it reaches with the lesser on some rows and the greater on the
others. The best basis is the one that is best on average over all dictionaries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_dict.analysis.measures.bases import LABELS, Wide, at_sparsity
from sparse_dict.analysis.measures.intervals import Estimate, over_seeds, ratio

Left = tuple[Wide, float]  # what a dictionary leaves on each row or context, (n,), and its L0


@dataclass(frozen=True)
class Best:
    """A share (of the variance, of the loss) that dictionaries leave, and that the basis leaves."""

    basis: str  # its label
    ours: float
    theirs: float
    less: Estimate  # how much less is left by dictionaries


def compared(
    seeds: Sequence[Sequence[Left]],
    curves: Mapping[str, tuple[Sequence[int], Wide]],
    whole: Wide,
    over: str,
) -> Best:
    """The dictionaries of each of `seeds`, means over them, against the best of one or more bases.

    A basis' curve is what it leaves, (n, len(ks)), by its ks; `whole` (n,) is what both are shares
    of. The interval is over seeds, of a single one `over` the n.
    """
    theirs = {
        method: [np.mean([at_sparsity(*curve, l0) for _, l0 in of], axis=0) for of in seeds]
        for method, curve in curves.items()
    }
    best = min(theirs, key=lambda method: float(np.sum(theirs[method])))
    ours = [np.mean([left for left, _ in of], axis=0) for of in seeds]
    gains = [their - own for their, own in zip(theirs[best], ours, strict=True)]
    if len(seeds) > 1:
        less = over_seeds([float(gain.sum() / whole.sum()) for gain in gains])
    else:
        less = ratio(gains[0], whole, over)
    own, their = (float(np.mean(of, axis=0).sum() / whole.sum()) for of in (ours, theirs[best]))
    return Best(LABELS[best], own, their, less)
