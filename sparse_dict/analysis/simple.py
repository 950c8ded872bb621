"""How dictionaries stand to the best simple basis at equal sparsity, at the main level.

A basis keeps k codes on each row; what it reaches at a dictionary's L0 is read off between the two
whole k on either side, which is what it reaches with the lesser on some rows and the greater on the
others. The best basis is the one that is best on average over the main level's dictionaries.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparse_dict.analysis.claims import counted_chains
from sparse_dict.analysis.context import Context
from sparse_dict.analysis.measures.bases import LABELS, SIMPLE, at_sparsity
from sparse_dict.analysis.measures.intervals import Estimate, over_seeds, ratio
from sparse_dict.analysis.reconstruction_loss import MEAN, ORIGINAL
from sparse_dict.analysis.study import Chain, Entry
from sparse_dict.errors import UserError

Wide = NDArray[np.float64]


@dataclass(frozen=True)
class Stand:
    """A share (of the variance, of the loss) that dictionaries leave and the best basis leaves."""

    basis: str  # its label
    ours: float  # means over the dictionaries of the main level
    theirs: float
    less: Estimate  # how much less is left by dictionaries


def reconstruction(context: Context) -> Stand:
    """By FVU, on rows that neither was fitted to.

    Raises:
        UserError: it was not measured, and why.
    """
    found = context.bases
    chains = _chains(context)
    stand = _stand(
        chains,
        lambda e: found.errors[e.name],
        {m: (found.ks, found.of_bases[m]) for m in SIMPLE if m in found.bases},
        found.deviations,
        "rows",
    )
    fvu = float(np.mean([e.metrics["fvu"] for chain in chains for e in chain.entries]))
    return Stand(stand.basis, fvu, stand.theirs, stand.less)


def loss(context: Context) -> Stand:
    """By the loss that is not recovered, of mean-ablation's damage.

    Raises:
        UserError: as `reconstruction`, or ablation does no harm.
    """
    fitted, (losses, _) = context.bases.bases, context.losses
    original, ablated = losses[ORIGINAL], losses[MEAN]
    if ablated.mean() <= original.mean():
        raise UserError("mean-ablation does the model no harm, so there is nothing to recover")
    kept: dict[str, tuple[list[int], Wide]] = {}
    for method in (m for m in SIMPLE if m in fitted):
        ks = sorted(int(k) for m, _, k in (label.partition(":") for label in losses) if m == method)
        curve = np.stack([losses[f"{method}:{k}"] for k in ks], axis=1)
        kept[method] = ks, curve - original[:, None]
    return _stand(
        _chains(context), lambda e: losses[e.name] - original, kept, ablated - original, "contexts"
    )


def _chains(context: Context) -> list[Chain]:
    return counted_chains(context.comparison, context.comparison.shown_chain)


def _stand(
    chains: Sequence[Chain],
    left: Callable[[Entry], Wide],
    bases: Mapping[str, tuple[Sequence[int], Wide]],
    whole: Wide,
    over: str,
) -> Stand:
    """What is left by dictionaries, `left` (n,), and by bases, (n, len(ks)), of `whole` (n,).

    Raises:
        UserError: there is no basis.
    """
    if not bases:
        raise UserError(f"none of {', '.join(LABELS[m] for m in SIMPLE)} was fitted")

    def mean(of: Callable[[Entry], Wide], chain: Chain) -> Wide:
        return np.mean([of(entry) for entry in chain.entries], axis=0)

    def by(method: str, chain: Chain) -> Wide:
        ks, values = bases[method]
        return mean(lambda e: at_sparsity(ks, values, float(e.metrics["l0"])), chain)

    left_by = {m: [by(m, chain) for chain in chains] for m in bases}
    best = min(left_by, key=lambda m: float(np.sum(left_by[m])))
    ours = [mean(left, chain) for chain in chains]
    gains = [theirs - own for theirs, own in zip(left_by[best], ours, strict=True)]
    if len(chains) > 1:
        less = over_seeds([float(gain.sum() / whole.sum()) for gain in gains])
    else:
        less = ratio(gains[0], whole, over)
    own, theirs = (float(np.sum(v)) / len(v) / float(whole.sum()) for v in (ours, left_by[best]))
    return Stand(LABELS[best], own, theirs, less)
