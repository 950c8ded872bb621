"""Bars of tests from the rounding of floats and the number of terms, not from one machine's output.

A sum of n products in any order lies within n u of the exact one, times the sum of the products'
sizes, where u is half the distance of neighbouring numbers at 1 (Higham 2002, section 3.1). So two
sums of the same products, by kernels that add in other orders, differ by at most n times that
distance. torch's own default, 1.1e-5 at 1, is the bar of ninety terms in float32: tests of fewer
terms of size 1 leave it as it is.
"""

from typing import Any

import numpy as np
import torch

from sparse_dict.config import ModelConfig


def rounding(terms: int, size: float = 1.0, dtype: Any = np.float32) -> float:
    """How far two sums of the same `terms`, whose sizes add up to `size`, may lie apart."""
    return terms * float(np.finfo(dtype).eps) * size


def of_cosines(d: int) -> float:
    """The bar for cosines of rows of `d` values: their product, and the scaling to unit length.

    Each length is a root of a sum of d squares: d / 2 roundings, a root and a division.
    """
    return rounding(2 * d + 4)


def through(model: ModelConfig, n_vocab: int) -> int:
    """Terms that are summed one after the other on the longest way through a transformer.

    A block has two norms, queries or keys, scores, a mean over contexts, an output and the two
    matrices of the MLP; behind the last are a norm, the unembedding and the softmax.
    """
    block = 7 * model.d_model + model.n_ctx + model.d_mlp
    return model.n_layers * block + 2 * model.d_model + n_vocab


def assert_rounded(found: Any, wanted: Any, terms: int) -> None:
    """See that two results of `terms` terms differ by rounding, of the largest value wanted."""
    found, wanted = torch.as_tensor(found).detach(), torch.as_tensor(wanted).detach()
    bar = rounding(terms, float(wanted.abs().max()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=bar)
