"""One dictionary from many: directions that recur over seeds, and an encoder refitted to them.

A feature is a row of 2 d + 1 numbers: encoder weights, bias, decoder row of unit length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sparse_dict.analysis.measures import Bools, Floats, Index, gaussian_rows, random_directions
from sparse_dict.analysis.measures.mcs import match, normalised
from sparse_dict.sae.folder import Dictionary

TOGETHER, SINGLE, POOLED = "consensus", "single, as large", "pooled, as large"
BATCH = 512
STEPS = 400
RATE = 1e-3


@dataclass(frozen=True)
class Member:
    """One of the dictionaries, of one size and kind."""

    dictionary: Dictionary
    alive: Bools  # (n,)
    l0: float

    @cached_property
    def features(self) -> Floats:
        """Its living features, (m, 2 d + 1)."""
        reads = self.dictionary.W_enc.T, self.dictionary.b_enc[:, None]
        return np.hstack([*reads, normalised(self.dictionary.W_dec)])[self.alive]


def directions(rows: Floats) -> Floats:
    """The decoder rows of features, (n, d)."""
    return rows[:, rows.shape[1] // 2 + 1 :]


def consensus(members: Sequence[Member], cosine: float, share: float) -> tuple[Floats, Index]:
    """The directions that recur in more than a share of the dictionaries.

    Decoder rows are clustered by average linkage (Sokal and Michener 1958) until the mean cosine
    between two clusters is below `cosine`; a cluster with rows of more than `share` of the
    dictionaries becomes the mean of its features, its decoder row of unit length.

    Returns:
        The features, most recurrent first, and in how many dictionaries each recurs.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    living = [member.features for member in members]
    pooled, owners = np.concatenate(living), np.repeat(range(len(living)), [*map(len, living)])
    if len(owners) < 2:
        return pooled, np.ones(len(owners), np.int64)
    tree = linkage(directions(pooled).astype(np.float64), "average", "cosine")
    label = fcluster(tree, 1 - cosine, "distance") - 1  # (rows,)
    n = int(label.max()) + 1
    recurs = np.zeros((n, len(members)), bool)
    recurs[label, owners] = True
    count = recurs.sum(1)
    order = np.argsort(-count, kind="stable")
    kept = order[count[order] > share * len(members)]
    mean = np.zeros((n, len(label)))
    mean[label, np.arange(len(label))] = 1
    found = mean[kept] / mean[kept].sum(1, keepdims=True) @ pooled
    directions(found)[:] = normalised(directions(found))
    return found, count[kept]


def refit(part: Floats, members: Sequence[Member], x: Floats) -> Dictionary:
    """A TopK dictionary with these directions, its encoder trained on `x` (rows, d_in).

    `STEPS` steps of Adam on the squared error, from the encoder that `part` has; the decoder stays
    as it is. k and bias are the members' mean L0 and bias.
    """
    import torch
    from torch.optim.adam import adam

    b_dec = np.mean([member.dictionary.b_dec for member in members], axis=0)
    k = max(round(float(np.mean([member.l0 for member in members]))), 1)
    k, d = min(k, len(part)), part.shape[1] // 2
    generator = torch.Generator().manual_seed(0)
    rows = part.astype(np.float32)
    weights = np.ascontiguousarray(rows[:, :d].T), rows[:, d].copy()
    W, b = (torch.from_numpy(a).requires_grad_() for a in weights)
    W_dec, bias = (torch.from_numpy(np.float32(a)) for a in (directions(rows).copy(), b_dec))
    seen, scale = torch.from_numpy(x), float(np.sqrt(np.square(x).mean()))
    # By the function behind torch.optim.Adam, which itself imports torch's compiler, for seconds.
    parts = [
        (p, rate, torch.zeros_like(p), torch.zeros_like(p), torch.tensor(0.0))
        for p, rate in ((W, RATE), (b, RATE * scale))
    ]
    for _ in range(STEPS):
        batch = seen[torch.randint(len(seen), (BATCH,), generator=generator)]
        codes = (batch @ W + b).relu()
        kept = codes * (codes >= codes.topk(k, dim=1).values[:, -1:])
        error = ((kept @ W_dec + bias - batch) / scale).square().mean()
        gradients = torch.autograd.grad(error, (W, b))
        with torch.no_grad():
            for (p, rate, m, v, steps), gradient in zip(parts, gradients, strict=True):
                adam(
                    [p], [gradient], [m], [v], [], [steps], amsgrad=False, beta1=0.9, beta2=0.999,
                    lr=rate, weight_decay=0, eps=1e-8, maximize=False,
                )  # fmt: skip
    return Dictionary(W.detach().numpy(), b.detach().numpy(), W_dec.numpy(), bias.numpy(), None, k)


def fvu(dictionary: Dictionary, x: Floats) -> float:
    """Share of the variance of `x` (rows, d_in) that is left unexplained."""
    error = x - dictionary.reconstruct(x)
    spread = x - x.mean(0, dtype=np.float64)
    return float(np.square(error, dtype=np.float64).sum() / np.square(spread).sum())


def half(
    members: Sequence[Member], cosine: float, share: float, x: Floats, seed: int
) -> dict[str, Dictionary]:
    """The consensus of some members, and dictionaries as large from the first and from all."""
    together, recurs = consensus(members, cosine, share)
    first, pooled = members[0], np.concatenate([member.features for member in members])
    energy = np.square(first.dictionary.encode(x[:16_384])[:, first.alive]).sum(0)
    strongest = np.argsort(-energy)[: len(recurs)]
    drawn = np.random.default_rng(seed).permutation(len(pooled))[: len(recurs)]
    parts = {TOGETHER: together, SINGLE: first.features[strongest], POOLED: pooled[drawn]}
    return {name: refit(part, members, x) for name, part in parts.items()}


def agreement(halves: Sequence[Dictionary], high: float) -> dict[str, float]:
    """How far two dictionaries agree, one to one, and chance; `above`: share of cosines `high`."""
    small, large = sorted((half.W_dec for half in halves), key=len)
    _, cosine = match(small, large)
    return {
        "features": (len(small) + len(large)) / 2,
        "pw_mcc": float(cosine.mean()),
        "random": random_directions.max_mean(small.shape[1], len(large)),
        "gaussian": gaussian_rows.mmcs(small, large),
        "above": float((cosine > high).mean()),
    }
