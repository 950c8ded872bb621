"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 or older."""

from pathlib import Path
from typing import Any

from sparse_dict.sae.formats.parts import Foreign, folded, gated, only, refuse, tensors

CONFIG = "cfg.json"
# Our names of its architectures; those that it saves as another one for inference appear only in
# folders that its trainer left.
KINDS = {
    "standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated",
    "batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka",
}  # fmt: skip


def read(path: Path, config: dict[str, Any]) -> Foreign:
    """Read the weights at `path`, to which `config` belongs."""
    activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    k = config.get("k", (config.get("activation_fn_kwargs") or {}).get("k"))
    architecture = config.get("architecture", "standard")
    if architecture == "standard" and activation == "topk":
        architecture = "topk"  # before version 6
    elif activation not in ("relu", "topk", None):
        raise refuse(path, f"activation_fn={activation!r}")
    if architecture not in KINDS:
        raise refuse(path, f"the architecture {architecture!r}")
    only(path, config, finetuning_scaling_factor=False)
    normalisation = config.get("normalize_activations", "none")
    if normalisation not in ("none", None, "expected_average_only_in"):
        raise refuse(path, f"normalize_activations={normalisation!r}")

    p = tensors(path)
    W_enc, W_dec, b_dec = p["W_enc"], p["W_dec"], p["b_dec"]
    bias, threshold = p.get("b_enc"), p.get("threshold", p.get("topk_threshold"))
    if architecture == "gated":
        W_enc, bias, threshold = gated(W_enc, p["b_gate"], p["r_mag"], p["b_mag"])
    if bias is None:
        raise KeyError("b_enc")
    dictionary = folded(
        W_enc, bias, W_dec, b_dec, threshold=threshold,
        centred=bool(config.get("apply_b_dec_to_input", True)),
        k=int(k or 0) if architecture == "topk" else None,
        by_norm=bool(config.get("rescale_acts_by_decoder_norm", False)),
    )  # fmt: skip
    more = {**config, **(config.get("metadata") or {})}
    return Foreign(
        "saelens", KINDS[architecture], dictionary, float(more.get("l1_coefficient") or 0),
        int(more.get("seed") or 0), str(more.get("hook_name") or "unknown"),
        by_mean_norm=normalisation == "expected_average_only_in",
    )  # fmt: skip
