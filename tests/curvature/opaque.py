"""A language model whose second derivatives are silently wrong, and ones whose losses have kinks or jumps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

WORDS = 32


class OpaqueTanh(torch.autograd.Function):
    """tanh with a backward that looks at its input as a constant: right gradients, and no derivative of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = (1 - torch.tanh(x).square()).detach()
        return torch.tanh(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.slope


class Activation(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return OpaqueTanh.apply(x)


def gpt2(layers: int = 1, opaque: bool = True, seed: int = 0, words: int = WORDS) -> Any:
    """GPT-2 of width 16 with tanh between its linear layers, opaque or the one of torch."""
    torch.manual_seed(seed)
    shape = {"vocab_size": words, "n_positions": 64, "n_embd": 16, "n_layer": layers, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0, initializer_range=0.06)).eval()
    for block in model.transformer.h:
        block.mlp.act = Activation() if opaque else nn.Tanh()
    return model


def opt(seed: int = 0) -> Any:
    """OPT, whose ReLUs make kinks. Token 0 is its padding: as an input it would have no gradient of its own."""
    torch.manual_seed(seed)
    shape = {"vocab_size": WORDS, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    config = OPTConfig(
        **shape, num_attention_heads=2, max_position_embeddings=64, dropout=0.0, init_std=0.06, pad_token_id=0
    )
    return OPTForCausalLM(config).eval()


def mixtral(seed: int = 0) -> Any:
    """Mixtral, whose router jumps from one pair of experts to another."""
    torch.manual_seed(seed)
    shape = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    config = MixtralConfig(**shape, **heads, max_position_embeddings=64, initializer_range=0.2)
    return MixtralForCausalLM(config).eval()
