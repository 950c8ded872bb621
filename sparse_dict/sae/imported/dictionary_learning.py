"""dictionary_learning: `ae.pt`, a state dict of tensors, and `config.json`.

Its trainer folds the normalisation of the activations into the biases before it saves.
"""

from pathlib import Path
from typing import Any

from sparse_dict.errors import UserError, one_line
from sparse_dict.sae.imported.parts import Foreign, arrays, folded, gated, nothing_else, refuse
from sparse_dict.sae.origin import Origin
from sparse_dict.storage.untrusted import opened

CONFIG = "config.json"
KINDS = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "batch_topk", "MatryoshkaBatchTopKSAE": "matryoshka",
    "GatedAutoEncoder": "gated", "JumpReluAutoEncoder": "jumprelu",
}  # fmt: skip
# How its trainers train: what they save computes the same whatever these say.
HARMLESS = """
    activation_dim anneal_start auxk_alpha bandwidth decay_start device dict_size ghost_threshold
    group_fractions group_sizes group_weights lr n_sparsity_updates p_end p_start resample_steps
    sparsity_function sparsity_penalty sparsity_queue_length sparsity_warmup_steps steps target_l0
    threshold_beta threshold_start_step top_k_aux trainer_class wandb_name warmup_steps
"""


def read(path: Path, config: dict[str, Any]) -> Foreign:
    """Read the weights at `path`, to which `config` belongs."""
    import torch

    trainer = config.pop("trainer")
    nothing_else(path, config, "buffer")  # what the rows were, of which `trainer` says the place
    kind = trainer.pop("dict_class")
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
        W_enc, W_dec = p.pop("encoder.weight").T, p.pop("decoder.weight").T
        bias = p.pop("encoder.bias", None)
        names = ("bias", "b_dec", "decoder_bias", "decoder.bias")
        b_dec = p.pop(next((key for key in names if key in p), "bias"))
    else:
        W_enc, W_dec, bias, b_dec = (p.pop(key) for key in ("W_enc", "W_dec", "b_enc", "b_dec"))
    p.pop("group_sizes", None)  # of the features that a Matryoshka dictionary is trained in
    threshold, k = p.pop("threshold", None), trainer.pop("k", None)
    k = p.pop("k", k)
    if kind == "AutoEncoderTopK":
        # it keeps the k largest; its threshold, for use instead, is not what `encode` does
        threshold, k = None, int(k)
    else:
        k = None  # what keeps k on average has a threshold for use
    if kind == "GatedAutoEncoder":
        W_enc, bias, threshold = gated(W_enc, p.pop("gate_bias"), p.pop("r_mag"), p.pop("mag_bias"))
    if bias is None:
        raise KeyError("encoder.bias")
    centred = kind not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    dictionary = folded(W_enc, bias, W_dec, b_dec, centred=centred, threshold=threshold, k=k)
    l1, seed = float(trainer.pop("l1_penalty", None) or 0), int(trainer.pop("seed", None) or 0)
    origin = _origin(trainer)
    nothing_else(path, trainer, HARMLESS)
    nothing_else(path, p)
    return Foreign("dictionary_learning", KINDS[kind], dictionary, l1, seed, origin)


def _origin(trainer: dict[str, Any]) -> Origin:
    layer, name = trainer.pop("layer", None), trainer.pop("submodule_name", None)
    words = [str(name)] if name else []
    if layer is not None and not any(c.isdigit() for c in str(name)):
        words.append(f"layer {layer}")
    return Origin(", ".join(words) or None, trainer.pop("lm_name", None) or None)
