"""One dictionary from many: directions that recur over seeds, and an encoder refitted to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_dict.analysis.measures import Bools, Floats, Index
from sparse_dict.analysis.measures.mcs import normalised
from sparse_dict.sae.folder import Dictionary

BATCH = 512
STEPS = 400
RATE = 1e-3


@dataclass(frozen=True)
class Features:
    """Directions, and the encoder that a refit starts from."""

    W_enc: Floats  # (d_in, n)
    b_enc: Floats  # (n,)
    W_dec: Floats  # (n, d_in), unit rows

    @classmethod
    def of(cls, dictionary: Dictionary, alive: Bools) -> "Features":
        """The living features of a dictionary, rows of its decoder scaled to unit length."""
        W_enc, rows = dictionary.W_enc[:, alive], normalised(dictionary.W_dec[alive])
        return cls(W_enc, dictionary.b_enc[alive], rows)

    def chosen(self, which: Index) -> "Features":
        """The features with these indices."""
        return Features(self.W_enc[:, which], self.b_enc[which], self.W_dec[which])


def pool(members: Sequence[Features]) -> Features:
    """All features side by side."""
    return Features(
        np.concatenate([one.W_enc for one in members], axis=1),
        np.concatenate([one.b_enc for one in members]),
        np.concatenate([one.W_dec for one in members]),
    )


def consensus(members: Sequence[Features], cosine: float, share: float) -> tuple[Features, Index]:
    """The directions that recur in more than a share of the dictionaries.

    Decoder rows are clustered by average linkage (Sokal and Michener 1958) until the mean cosine
    between two clusters is below `cosine`; a cluster with rows of more than `share` of the
    dictionaries becomes the mean of its rows, of unit length, with the means of their encoder rows
    and biases.

    Returns:
        The features, most recurrent first, and in how many dictionaries each recurs.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    pooled = pool(members)
    owners = np.repeat(np.arange(len(members)), [len(one.b_enc) for one in members])
    if len(owners) < 2:
        return pooled, np.ones(len(owners), np.int64)
    tree = linkage(pooled.W_dec.astype(np.float64), "average", "cosine")
    label = fcluster(tree, 1 - cosine, "distance") - 1  # (rows,)
    n = int(label.max()) + 1
    recurs = np.zeros((n, len(members)), bool)
    recurs[label, owners] = True
    count = recurs.sum(1)
    order = np.argsort(-count, kind="stable")
    kept = order[count[order] > share * len(members)]
    mean = np.zeros((n, len(label)))
    mean[label, np.arange(len(label))] = 1
    mean = mean[kept] / mean[kept].sum(1, keepdims=True)
    part = Features(pooled.W_enc @ mean.T, mean @ pooled.b_enc, normalised(mean @ pooled.W_dec))
    return part, count[kept]


def refit(part: Features, b_dec: Floats, k: int, x: Floats, seed: int = 0) -> Dictionary:
    """A TopK dictionary with these directions, its encoder trained on `x` (rows, d_in).

    `STEPS` steps of Adam on the squared error, from the encoder that `part` has; the decoder stays
    as it is.
    """
    import torch

    k = min(k, len(part.b_enc))
    generator = torch.Generator().manual_seed(seed)
    W_dec, bias = (torch.from_numpy(np.float32(a)) for a in (part.W_dec, b_dec))
    W, b = (torch.from_numpy(np.float32(a)).requires_grad_() for a in (part.W_enc, part.b_enc))
    rows, scale = torch.from_numpy(x), float(np.sqrt(np.square(x).mean()))
    groups: list[dict[str, Any]] = [{"params": [W]}, {"params": [b], "lr": RATE * scale}]
    optimiser = torch.optim.Adam(groups, RATE)
    for _ in range(STEPS):
        batch = rows[torch.randint(len(rows), (BATCH,), generator=generator)]
        codes = (batch @ W + b).relu()
        kept = codes * (codes >= codes.topk(k, dim=1).values[:, -1:])
        error = ((kept @ W_dec + bias - batch) / scale).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
    return Dictionary(W.detach().numpy(), b.detach().numpy(), W_dec.numpy(), bias.numpy(), None, k)


def fvu(dictionary: Dictionary, x: Floats) -> float:
    """Share of the variance of `x` (rows, d_in) that is left unexplained."""
    error = x - dictionary.decode(dictionary.encode(x))
    spread = x - x.mean(0, dtype=np.float64)
    return float(np.square(error, dtype=np.float64).sum() / np.square(spread).sum())
