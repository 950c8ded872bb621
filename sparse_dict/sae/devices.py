"""Which devices train an ensemble."""

import torch

from sparse_dict.machine import runtime


def training_devices(name: str) -> list[torch.device]:
    """Every GPU for ``cuda``, and for ``auto`` if that chooses cuda; else the device named."""
    device = runtime.device(name)
    if device.type == "cuda" and device.index is None:
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [device]
