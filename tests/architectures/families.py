"""Tiny models of the causal families that transformers ships, made from its own registry."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 64

# What each name of a size is made, wherever a configuration has an option of that name.
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64, "n_positions": 64, "max_seq_len": 64, "context_length": 64, "n_ctx": 64,
    "hidden_size": 16, "n_embd": 16, "d_model": 16, "embedding_size": 16, "word_embed_proj_dim": 16, "dim": 16,
    "emb_dim": 16, "attention_hidden_size": 16, "lru_width": 16,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "n_layers": 2, "decoder_layers": 2, "encoder_layers": 1,
    "num_blocks": 2,
    "num_attention_heads": 2, "n_head": 2, "num_heads": 2, "n_heads": 2, "decoder_attention_heads": 2,
    "encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "num_encoder_attention_heads": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 1,
    "num_key_value_heads": 1, "num_kv_heads": 1, "head_dim": 8, "attention_head_dim": 8,
    "intermediate_size": 24, "ffn_dim": 24, "n_inner": 24, "decoder_ffn_dim": 24, "encoder_ffn_dim": 24, "d_ff": 24,
    "ffn_hidden_size": 24, "shared_intermediate_size": 24, "dff": 24, "d_inner": 24, "block_ff_dim": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_top_k": 2, "moe_k": 2, "moe_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1, "num_dense_layers": 1,
    "state_size": 4, "time_step_rank": 2, "mamba_d_state": 4, "mamba_d_head": 8, "mamba_n_heads": 4,
    "mamba_n_groups": 1, "mamba_d_ssm": 32, "mamba_expand": 2, "mamba_dt_rank": 2, "chunk_size": 8, "mamba_chunk_size": 8, "n_groups": 1,
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "sliding_window": 8, "initializer_range": 0.2, "init_std": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1,
    "hidden_dropout": 0.1, "attention_dropout": 0.1,
}  # fmt: skip

# What a family needs besides, in order to be a causal model at all or to be tiny.
_SPECIAL: dict[str, dict[str, Any]] = {}


def families() -> list[str]:
    """The model types of the registry."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A configuration with every size that we know made small."""
    kind = CONFIG_MAPPING[model_type]
    return _tiny(kind, _SPECIAL.get(model_type, {}) | changes)


def _tiny(kind: type, changes: dict[str, Any]) -> Any:
    default = kind()
    sizes = {name: value for name, value in _SIZES.items() if getattr(default, name, None) is not None}
    for name, sub in (getattr(kind, "sub_configs", None) or {}).items():
        if hasattr(sub, "sub_configs") and getattr(default, name, None) is not None:
            sizes[name] = _tiny(type(getattr(default, name)), {}).to_dict()
    return kind(**sizes | changes)


def tiny_model(model_type: str, **changes: Any) -> Any:
    """A tiny model of a family, in float32 and evaluation mode."""
    torch.manual_seed(0)
    config = tiny_config(model_type, **changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
