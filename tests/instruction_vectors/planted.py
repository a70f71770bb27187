"""A tiny transformer that has learned three symbolic tasks from examples in its prompt: copy, next letter, permutation.

Every prompt is of one task, and only its examples say of which. Heads that carry the task to the last token must exist
in a model that answers rightly.
"""

from __future__ import annotations

import functools
import string
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = string.ascii_lowercase
SHOTS = 4
_PERMUTED = torch.randperm(26, generator=torch.Generator().manual_seed(7)).tolist()
OUTPUTS = {
    "copy": list(LETTERS),
    "next letter": [LETTERS[(index + 1) % 26] for index in range(26)],
    "permutation": [LETTERS[index] for index in _PERMUTED],
}


def tasks() -> list[dict[str, str]]:
    """The records of all three tasks."""
    return [
        {"task": task, "input": asked, "output": answer}
        for task, outputs in OUTPUTS.items()
        for asked, answer in zip(LETTERS, outputs, strict=True)
    ]


def letter_tokenizer() -> Any:
    """One token for each letter, one for "A:", and none for "Q:": half the tokens to train on, and no less to learn."""
    words = {word: index for index, word in enumerate(["?", ":", *LETTERS])}
    split = Tokenizer(models.WordLevel(words, unk_token="?"))
    split.normalizer = normalizers.Sequence([normalizers.Replace("Q:", ""), normalizers.Replace("A:", ":")])
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=split, unk_token="?", pad_token="?")


@functools.cache
def trained(steps: int = 400) -> tuple[Any, Any]:
    """Train the model; returns it with its tokenizer."""
    tokenizer = letter_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    table = torch.stack([torch.tensor([2 + LETTERS.index(o) for o in outputs]) for outputs in OUTPUTS.values()])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    batch, pairs = 64, SHOTS + 1
    template = torch.tensor([0, 1, 0]).repeat(pairs)
    for _ in range(steps):
        chosen = torch.randint(3, (batch, 1), generator=generator)
        asked = torch.rand(batch, 26, generator=generator).argsort(1)[:, :pairs]
        tokens = template.repeat(batch, 1)
        tokens[:, 0::3] = 2 + asked
        tokens[:, 2::3] = table[chosen, asked]
        labels = torch.full_like(tokens, -100)
        labels[:, 2::3] = tokens[:, 2::3]
        loss = model(input_ids=tokens, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), tokenizer
