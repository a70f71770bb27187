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
    "emb_dim": 16, "lru_width": 16,
    "num_hidden_layers": 2, "n_layer": 2, "num_layers": 2, "n_layers": 2, "decoder_layers": 2, "encoder_layers": 1,
    "num_blocks": 2,
    "num_attention_heads": 2, "n_head": 2, "num_heads": 2, "n_heads": 2, "decoder_attention_heads": 2,
    "encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "num_encoder_attention_heads": 2,
    "num_decoder_layers": 2, "num_encoder_layers": 1,
    "num_key_value_heads": 1, "num_kv_heads": 1, "head_dim": 8, "attention_head_dim": 8,
    "intermediate_size": 24, "ffn_dim": 24, "n_inner": 24, "decoder_ffn_dim": 24, "encoder_ffn_dim": 24, "d_ff": 24,
    "ffn_hidden_size": 24, "shared_intermediate_size": 24, "dff": 24, "d_inner": 24, "block_ff_dim": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_top_k": 2, "moe_k": 2, "moe_intermediate_size": 12, "expert_ffn_hidden_size": 12,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    "first_k_dense_replace": 1, "num_dense_layers": 1,
    "state_size": 4, "time_step_rank": 2, "mamba_d_state": 4, "mamba_d_head": 8, "mamba_n_heads": 4,
    "mamba_n_groups": 1, "mamba_d_ssm": 32, "mamba_expand": 2, "mamba_dt_rank": 2, "chunk_size": 8,
    "mamba_chunk_size": 8, "n_groups": 1,
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "sliding_window": 12, "initializer_range": 0.2, "init_std": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1,
    "hidden_dropout": 0.1, "attention_dropout": 0.1,
}  # fmt: skip

_DECODER = {"is_decoder": True}
_LATENT = {"head_dim": 4, "num_key_value_heads": 2}  # latent attention: the rotated part of a head is head_dim
_HYBRID = {"layer_types": ["linear_attention", "full_attention"]}

# What a family needs besides, in order to be a causal model at all, to be whole, or to be tiny.
_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert",
         "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
        _DECODER,
    ),
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "youtu"), _LATENT),
    "longcat_flash": _LATENT,
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "granitemoehybrid"), _HYBRID),
    "kimi_linear": _LATENT | _HYBRID | {"linear_head_dim": 8, "linear_num_heads": 2, "num_experts_per_token": 2},
    "bailing_hybrid": _LATENT | _HYBRID,
    "rembert": _DECODER | {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": _DECODER | {"pronunciation_vocab_size": 16, "shape_vocab_size": 16, "pronunciation_embed_dim": 8,
                            "shape_embed_dim": 8},
    "xmod": _DECODER | {"default_language": "en_XX"},
    "reformer": _DECODER,
    "deepseek_v2": _LATENT | {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "diffllama": {"attention_dropout": 0.0, "num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 8}, "hunyuan_v1_moe": {"head_dim": 8}, "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "bamba": {"attn_layer_indices": [1]},
    "mamba2": {"num_heads": 4},
    "zamba": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "hybrid", "hybrid"],
              "attention_head_dim": 16, "head_dim": None, "n_mamba_heads": 2, "mamba_dt_rank": 4},
    "zamba2": {"num_hidden_layers": 3, "layer_types": ["linear_attention", "hybrid", "hybrid"],
               "num_key_value_heads": 2, "n_mamba_heads": 4, "adapter_rank": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 4}, "codegen": {"rotary_dim": 4, "num_attention_heads": 4, "n_head": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]}, "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "falcon": {"head_dim": None}, "xlstm": {"v_head_dim": None},
    "zaya": {"num_experts_per_tok": 1},
    "cpmant": {"prompt_types": 2, "prompt_length": 2, "segment_types": 2},
    "nemotron_h": {"layer_types": ["linear_attention", "moe", "full_attention", "mlp"], "moe_latent_size": 8,
                   "moe_shared_expert_intermediate_size": 12, "mamba_num_heads": 4, "mamba_head_dim": 8},
    "xlnet": {"max_position_embeddings": None, "d_head": 8, "attn_type": "uni"},
    "prophetnet": {"num_hidden_layers": None, "is_decoder": True, "is_encoder_decoder": False},
    "dbrx": {"attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0},
             "ffn_config": {"hidden_size": 16, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}},
    "gemma3": {"vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                                 "intermediate_size": 24, "image_size": 28, "patch_size": 14,
                                 "vision_use_head": False}, "mm_tokens_per_image": 4, "image_token_index": 60},
    "gemma3n_text": {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
                     "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 4,
                     "laurel_rank": 4, "intermediate_size": 24, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]},
    "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 64,
                    "hidden_size_per_layer_input": 4, "per_layer_config": {"1": {"head_dim": 16}}},
}  # fmt: skip

_MULTIMODAL = "a model of more than text; its text model, where it has one, is a line of its own"
_NO_RECIPE = "the battery has no tiny configuration of it"
NOT_TRIED = {
    **dict.fromkeys(
        (
            "blt", "dots3_note", "emu3", "fuyu", "gemma3n", "gemma4", "gemma4_assistant", "gemma4_unified",
            "gemma4_unified_assistant", "git", "got_ocr2", "mllama", "moshi", "moss_transcribe_diarize", "musicgen",
            "musicgen_melody", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp",
        ),
        _MULTIMODAL,
    ),
    **dict.fromkeys(
        ("cohere_compass_text", "cpmant", "dots3_note_text", "minicpm3", "prophetnet", "qwen4_exp_text", "reformer",
         "xlstm", "zamba2"),
        _NO_RECIPE,
    ),
}  # fmt: skip


def families() -> list[str]:
    """The model types of the registry."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str, **changes: Any) -> Any:
    """A configuration with every size that we know made small."""
    kind = CONFIG_MAPPING[model_type]
    return _tiny(kind, _SPECIAL.get(model_type, {}) | changes)


def _tiny(kind: type, changes: dict[str, Any]) -> Any:
    default = kind()
    sizes = {name: value for name, value in _SIZES.items() if _holds(default, name)}
    for name, sub in (getattr(kind, "sub_configs", None) or {}).items():
        if hasattr(sub, "sub_configs") and _holds(default, name):
            sizes[name] = _tiny(type(getattr(default, name)), {}).to_dict()
    sizes = {name: value for name, value in (sizes | changes).items() if value is not None}
    return kind(**sizes)


def _holds(config: Any, name: str) -> bool:
    """Whether a configuration has a value of a name."""
    try:
        return getattr(config, name, None) is not None
    except Exception:  # Some refuse to give one value where layers have several.
        return True


def tiny_model(model_type: str, **changes: Any) -> Any:
    """A tiny model of a family, in float32 and evaluation mode."""
    torch.manual_seed(0)
    config = tiny_config(model_type, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for tensor in model.parameters():  # Biases of zero and gains of one would hide what goes wrong with them.
            tensor += 0.05 * torch.randn_like(tensor)
    return model
