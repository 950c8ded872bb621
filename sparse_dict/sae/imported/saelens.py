"""SAELens: `cfg.json` and `sae_weights.safetensors`, of version 6 or older."""

from pathlib import Path
from typing import Any

import numpy as np

from sparse_dict.sae.imported.parts import (
    Foreign,
    folded,
    gated,
    nothing_else,
    only,
    refuse,
    tensors,
)
from sparse_dict.sae.origin import UNKNOWN, Origin

CONFIG = "cfg.json"
# Our names of its architectures; those that it saves as another one for inference appear only in
# folders that its trainer left.
KINDS = {
    "standard": "relu", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated",
    "batchtopk": "batch_topk", "matryoshka_batchtopk": "matryoshka",
}  # fmt: skip
# Where rows came from, how they were shaped before they became rows, and how its trainers of
# versions 2 to 6 train: all that their configs hold but what `read` takes out of them.
HARMLESS = """
    act_store_device adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient
    b_dec_init_method cached_activations_path checkpoint_path compile_llm compile_sae context_size
    d_in d_sae dataset_path dataset_trust_remote_code dead_feature_threshold dead_feature_window
    decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init
    device dtype eval_batch_size_prompts eval_every_n_wandb_logs exclude_special_tokens
    expansion_factor feature_sampling_window finetuning_method finetuning_tokens
    from_pretrained_path hook_eval hook_head_index hook_layer hook_point_eval hook_point_head_index
    hook_point_layer init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth
    jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale
    l0_coefficient l0_warm_up_steps l1_warm_up_steps llm_compilation_mode
    log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb lp_norm lr
    lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps matryoshka_widths model_class_name
    model_from_pretrained_kwargs model_kwargs mse_loss_normalization n_batches_in_buffer
    n_checkpoints n_eval_batches n_restart_cycles neuronpedia_id noise_scale normalize_sae_decoder
    pre_act_loss_coefficient prepend_bos reshape_activations resume run_name sae_compilation_mode
    sae_lens_training_version sae_lens_version scale_sparsity_penalty_by_decoder_norm seqpos_slice
    store_batch_size_prompts streaming target_l0 tokens_per_buffer topk_threshold_lr
    train_batch_size_tokens training_tokens use_cached_activations use_ghost_grads
    use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_id
    wandb_log_frequency wandb_project
"""


def read(path: Path, config: dict[str, Any]) -> Foreign:
    """Read the weights at `path`, to which `config` belongs."""
    older = config.pop("activation_fn_str", "relu")
    activation, how = config.pop("activation_fn", older), config.pop("activation_fn_kwargs", None)
    how = how or {}
    k = config.pop("k", how.pop("k", None))
    nothing_else(path, how)
    architecture = config.pop("architecture", "standard")
    if architecture == "standard" and activation == "topk":
        architecture = "topk"  # before version 6
    elif activation not in ("relu", "topk", None):
        raise refuse(path, f"activation_fn={activation!r}")
    if architecture not in KINDS:
        raise refuse(path, f"the architecture {architecture!r}")
    only(path, config, finetuning_scaling_factor=False)
    normalisation = config.pop("normalize_activations", "none")
    by_mean_norm = normalisation in (True, "expected_average_only_in")
    if not by_mean_norm and normalisation not in ("none", None, False):
        raise refuse(path, f"normalize_activations={normalisation!r}")
    centred = bool(config.pop("apply_b_dec_to_input", True))
    by_norm = bool(config.pop("rescale_acts_by_decoder_norm", False))
    told = {**config, **(config.pop("metadata", None) or {})}
    for key in ("l1_coefficient", "seed", "hook_name", "hook_point", "model_name"):
        config.pop(key, None)
    nothing_else(path, config, HARMLESS)

    p = tensors(path)
    W_enc, W_dec, b_dec = p.pop("W_enc"), p.pop("W_dec"), p.pop("b_dec")
    bias, threshold = p.pop("b_enc", None), p.pop("threshold", p.pop("topk_threshold", None))
    if architecture == "gated":
        W_enc, bias, threshold = gated(W_enc, p.pop("b_gate"), p.pop("r_mag"), p.pop("b_mag"))
    if bias is None:
        raise KeyError("b_enc")
    if np.all(p.get("scaling_factor", 1.0) == 1.0):
        p.pop("scaling_factor", None)  # of fine-tuning that was not done
    nothing_else(path, p)
    dictionary = folded(
        W_enc, bias, W_dec, b_dec, threshold=threshold, centred=centred,
        k=int(k or 0) if architecture == "topk" else None, by_norm=by_norm,
    )  # fmt: skip
    hook = told.get("hook_name") or told.get("hook_point") or UNKNOWN
    return Foreign(
        "saelens", KINDS[architecture], dictionary, float(told.get("l1_coefficient") or 0),
        int(told.get("seed") or 0),
        Origin(None if hook == UNKNOWN else str(hook), told.get("model_name") or None),
        by_mean_norm,
    )  # fmt: skip
