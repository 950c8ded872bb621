"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors`; all of its autoencoders are TopK."""

from pathlib import Path
from typing import Any

from sparse_dict.sae.formats.parts import Foreign, folded, only, tensors

CONFIG = "cfg.json"


def read(path: Path, config: dict[str, Any]) -> Foreign:
    """Read the weights at `path`, to which `config` belongs."""
    only(path, config, activation="topk", skip_connection=False, transcode=False)
    p = tensors(path)
    dictionary = folded(
        p["encoder.weight"].T, p["encoder.bias"], p["W_dec"], p["b_dec"], centred=True,
        k=int(config["k"]),
    )  # fmt: skip
    # its folders are named after the hookpoint
    return Foreign("sparsify", "topk", dictionary, hook=path.parent.name)
