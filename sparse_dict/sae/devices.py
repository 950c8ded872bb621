"""Which devices train an ensemble, and which members each of them."""

import torch

from sparse_dict import runtime


def training_devices(name: str) -> list[torch.device]:
    """Every GPU there is for ``cuda``, and for ``auto`` if that means it; else the one named."""
    device = runtime.device(name)
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]


def split(loads: list[int], parts: int) -> list[list[int]]:
    """Indices of `loads` in at most `parts` parts of about equal load, none of them empty.

    The heaviest are handed out first, each to the part that is lightest by then.
    """
    shares: list[list[int]] = [[] for _ in range(min(parts, len(loads)))]
    for i in sorted(range(len(loads)), key=lambda i: -loads[i]):
        lightest = min(shares, key=lambda share: (sum(loads[j] for j in share), len(share)))
        lightest.append(i)
    return [sorted(share) for share in shares]
