"""GGUF files written by llama.cpp's own package, from tiny Llamas."""

import json

import gguf
import numpy as np

NAMES = {  # of a Llama's layer: transformers, llama.cpp
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def in_pairs(weight, heads):
    """The rows of a query or key projection in llama.cpp's order: the two halves of a rotary pair beside each other."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer, quantization=None, architecture="llama"):
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.to_str())["model"]
    vocabulary = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(vocabulary))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in state["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    tensors = {"token_embd": model.model.embed_tokens, "output_norm": model.model.norm, "output": model.lm_head}
    for index, layer in enumerate(model.model.layers):
        tensors |= {f"blk.{index}.{ours}": layer.get_submodule(theirs) for theirs, ours in NAMES.items()}
    for name, module in tensors.items():
        values = module.weight.detach().numpy()
        if name.endswith("attn_q"):
            values = in_pairs(values, config.num_attention_heads)
        if name.endswith("attn_k"):
            values = in_pairs(values, config.num_key_value_heads)
        values = np.ascontiguousarray(values, dtype=np.float32)
        if quantization is not None and values.ndim == 2:
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, quantization), raw_dtype=quantization)
        else:
            writer.add_tensor(f"{name}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
