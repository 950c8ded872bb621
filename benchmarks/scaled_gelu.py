"""Activations gelu(a z) / a of the pre-activations z that a folder holds (docs/neuron_basis.md).

python benchmarks/scaled_gelu.py outputs/neuron_basis/z

A small a keeps to the linear part of GELU, a large one leaves little but a ReLU. Each goes to
outputs/scaled/A/activations.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import sparse_dict


def main(folder: str) -> None:
    """Write those of a = .1, .3 and 3."""
    activations = sparse_dict.Activations.open(folder)
    z = torch.from_numpy(activations.read(0, activations.rows))
    for a in (0.1, 0.3, 3):
        to = Path(f"outputs/scaled/{a}/activations")
        to.mkdir(parents=True)
        h = torch.nn.functional.gelu(a * z, approximate="tanh") / a
        np.save(to / "rows.npy", h.half().numpy())


if __name__ == "__main__":
    main(sys.argv[1])
