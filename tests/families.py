"""Which short names of sites each family of transformers has: tests/families.md lists them.

`python tests/families.py` builds a small random model of each of `FAMILIES` from its config, and
writes what `hf_layout` does not find in them to the page's list.
"""

import os
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

from sparse_dict.config.sites import SITES
from sparse_dict.lm import hf_layout

PAGE = Path(__file__).resolve().parent / "families.md"
NAMES = """
afmoe apertus arcee bart biogpt bitnet blenderbot bloom codegen cohere cohere2 ctrl cwm
deepseek_v2 deepseek_v3 diffllama doge ernie4_5 ernie4_5_moe exaone4 falcon falcon_mamba flex_olmo
gemma gemma2 gemma3_text glm glm4 glm4_moe gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese
gpt_oss gptj granite granitemoe helium hunyuan_v1_dense hyperclovax jamba jetmoe lfm2 llama
llama4_text mamba minicpm3 minimax ministral mistral mixtral modernbert-decoder mpt nanochat
nemotron nemotron_h olmo olmo2 olmo3 olmoe openai-gpt opt persimmon phi phi3 phimoe qwen2
qwen2_moe qwen3 qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3 stablelm starcoder2
vaultgemma xglm youtu
"""
FAMILIES = NAMES.split()
N_VOCAB, D, LAYERS = 97, 32, 3
SIZES = dict.fromkeys(
    ("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "embedding_size"), D
)
SIZES |= dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS)
SIZES |= dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS)
SIZES |= dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4)
SIZES |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
SIZES |= dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 40)
SIZES |= dict.fromkeys(("n_inner", "dff", "moe_intermediate_size"), 40)
SIZES |= dict.fromkeys(("max_position_embeddings", "n_positions"), 64)
SIZES |= dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4)
SIZES |= dict.fromkeys(("head_dim", "q_lora_rank", "kv_lora_rank", "v_head_dim"), 8)
SIZES |= dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8)
SIZES |= dict.fromkeys(("n_group", "topk_group", "first_k_dense_replace"), 1)
SIZES |= {"vocab_size": N_VOCAB, "num_key_value_heads": 2, "num_experts_per_tok": 2}
SIZES |= {"shared_expert_intermediate_size": 20, "rotary_dim": 4}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BRANCHES = {"residual_multiplier": 0.22, "logits_scaling": 8.0}
OTHER: dict[str, dict[str, Any]] = {  # what their own defaults do not show, or do not allow
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global"], LAYERS]]},
    "granite": BRANCHES,
    "granitemoe": BRANCHES,
    "minicpm3": {"num_key_value_heads": 4},
    "youtu": {"num_key_value_heads": 4},
}


def build(family: str) -> Any:
    """A small random model, whose gains and biases are not their first values."""
    import transformers

    base = transformers.AutoConfig.for_model(family)
    wanted = {**SIZES, **OTHER.get(family, {})}
    sizes = {k: v for k, v in wanted.items() if v is not None and hasattr(base, k)}
    config = transformers.AutoConfig.for_model(family, **sizes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(5)
    return model


def lacks(layout: hf_layout.Layout) -> str:
    """The short names that no layer has, those that some have, and whether the logits are known."""
    counts = {name: sum(name in block.places for block in layout.blocks) for name in SITES}
    none = [name for name, n in counts.items() if n == 0]
    known = layout.head is not None and layout.blocks and all(block.adds for block in layout.blocks)
    none += [] if known else ["logits"]
    some = [f"{name} (some)" for name, n in counts.items() if 0 < n < len(layout.blocks)]
    return ", ".join(none + some) or "nothing"


def listed() -> str:
    """The page's list: families that lack the same in one line."""
    lines = defaultdict(list)
    for family in FAMILIES:
        lines[lacks(hf_layout.measure(build(family)))].append(family)
    by_number = sorted(lines.items(), key=lambda line: -len(line[1]))
    return "".join(f"- {what}: {', '.join(families)}\n" for what, families in by_number)


def page(text: str) -> str:
    """The page's text with its list made anew."""
    head, _, _ = text.partition("\n- ")
    return f"{head}\n{listed()}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
