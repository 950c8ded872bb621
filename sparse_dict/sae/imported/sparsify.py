"""sparsify (EleutherAI): `cfg.json` and `sae.safetensors`; all of its autoencoders are TopK."""

from pathlib import Path
from typing import Any

from sparse_dict.sae.imported.parts import Foreign, folded, nothing_else, only, tensors
from sparse_dict.sae.origin import IN_A_BLOCK, Origin

CONFIG = "cfg.json"
# multi_topk is a second loss; normalize_decoder has been done to what is stored.
HARMLESS = "d_in expansion_factor num_latents normalize_decoder multi_topk"


def read(path: Path, config: dict[str, Any]) -> Foreign:
    """Read the weights at `path`, to which `config` belongs."""
    # What reads one site and writes another, what adds to the output what is no feature's, codes
    # that may be negative, and what is looked up instead of computed. Not all versions have all.
    only(
        path, config, activation="topk", transcode=False, skip_connection=False, embed_skip=False,
        signed=False, gram_lookup=False,
    )  # fmt: skip
    p, k = tensors(path), int(config.pop("k"))
    dictionary = folded(
        p.pop("encoder.weight").T, p.pop("encoder.bias"), p.pop("W_dec"), p.pop("b_dec"),
        centred=True, k=k,
    )  # fmt: skip
    nothing_else(path, config, HARMLESS)
    nothing_else(path, p)
    hookpoint = path.parent.name  # its folders are named after it
    origin = Origin(hookpoint if IN_A_BLOCK.search(hookpoint) else None)
    return Foreign("sparsify", "topk", dictionary, origin=origin)
