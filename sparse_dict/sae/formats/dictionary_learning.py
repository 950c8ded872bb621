"""dictionary_learning: `ae.pt`, a state dict of tensors, and `config.json`.

Its trainer folds the normalisation of the activations into the biases before it saves.
"""

from pathlib import Path
from typing import Any

from sparse_dict.errors import UserError, one_line
from sparse_dict.sae.formats.parts import Foreign, arrays, folded, gated, refuse
from sparse_dict.storage.door import opened

CONFIG = "config.json"
KINDS = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk", "MatryoshkaBatchTopKSAE": "matryoshka",
    "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip


def read(path: Path, config: dict[str, Any]) -> Foreign:
    """Read the weights at `path`, to which `config` belongs."""
    import torch

    trainer = config["trainer"]
    kind = trainer["dict_class"]
    if kind not in KINDS:
        raise refuse(path, f"the class {kind!r}")
    try:
        # Tensors alone: what else a pickle may hold is refused by torch.
        with opened(path) as file:
            state = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
    except UserError:
        raise
    except Exception as error:  # of pickle, zipfile or torch
        raise UserError(f"{path} cannot be read as tensors: {one_line(error)}") from None
    p = arrays(state)
    if "encoder.weight" in p:
        W_enc, W_dec = p["encoder.weight"].T, p["decoder.weight"].T
        bias = p.get("encoder.bias")
        b_dec = next(
            p[key] for key in ("bias", "b_dec", "decoder_bias", "decoder.bias") if key in p
        )
    else:
        W_enc, W_dec, bias, b_dec = p["W_enc"], p["W_dec"], p["b_enc"], p["b_dec"]
    threshold, k = p.get("threshold"), None
    if kind == "AutoEncoderTopK":
        # it keeps the k largest; its threshold, for use instead, is not what `encode` does
        threshold, k = None, int(p["k"]) if "k" in p else int(trainer["k"])
    if kind == "GatedAutoEncoder":
        W_enc, bias, threshold = gated(W_enc, p["gate_bias"], p["r_mag"], p["mag_bias"])
    if bias is None:
        raise KeyError("encoder.bias")
    centred = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    dictionary = folded(W_enc, bias, W_dec, b_dec, centred=centred, threshold=threshold, k=k)
    return Foreign(
        "dictionary_learning", KINDS[kind], dictionary,
        float(trainer.get("l1_penalty") or 0), int(trainer.get("seed") or 0),
        str(trainer.get("submodule_name") or "unknown"),
    )  # fmt: skip
