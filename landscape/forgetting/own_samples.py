"""What a model itself says to prompts: data on which its divergence from a tuned model is that of what it does."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from landscape.checkpoints import Checkpoint, identify
from landscape.data.tokens import IGNORED, Example, TokenData
from landscape.errors import InputError, as_typed
from landscape.weights.preservation import preserved


def own_samples(
    model: nn.Module | Checkpoint, data: TokenData, *, max_new_tokens: int = 64, seed: int = 0
) -> TokenData:
    """Return the prompts of data, each with a completion that the model itself samples, at temperature 1.

    With the base's own samples, `measure_forgetting(base, tuned, {"own": own_samples(base, data)})` measures

        E[sum_t KL(p_base(. | x, y_<t) || p_tuned(. | x, y_<t))] / E[tokens of y] over prompts x and y ~ p_base(. | x),

    which is the divergence of the two as generators (the mean KL of whole answers, by the chain rule, over their mean
    length), whereas KL at given completions asks what the two would say in texts that neither need have written.

    The prompt of an example is what comes before its first supervised token. Nothing cuts or warps the distribution: no
    top-k, top-p, min-p or repetition penalty, whatever the checkpoint's own settings for generation. A completion ends
    with an end-of-sequence token or after `max_new_tokens`. Samples depend on the seed and the prompt alone. There is
    one of each prompt, since intervals are over examples, and several of one prompt are not independent examples.

    Args:
        model: The model that samples: a causal language model of transformers, or its checkpoint.
        data: Examples with prompts, as `load_data` makes of records with a prompt and a completion, or of chats.
        max_new_tokens: The longest completion.
        seed: Seed of the samples.

    Returns:
        Data of the same batch size, with an example for each example. The model comes back as it was.

    Raises:
        InputError: The model cannot generate, an example has no prompt, or no place is left after one.

    Source:
        Shenfeld, Pari and Agrawal 2025 (arXiv 2509.04259): forgetting is predicted by KL(base || tuned) over what is
        said on the new task. The sum over the vocabulary in place of the one token that was sampled has the same mean
        and less spread.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        >>> base = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1, eos_token_id=None))
        >>> data = TokenData("a prompt", (Example((3, 4, 5, 6), (-100, -100, 5, 6)),))
        >>> (example,) = own_samples(base, data, max_new_tokens=3).examples
        >>> example.input_ids[:2], len(example.input_ids), example.labels[:2]
        ((3, 4), 5, (-100, -100))
    """
    module, _, _ = identify(model)
    if not callable(getattr(module, "generate", None)):
        raise InputError(f"a {type(module).__name__} cannot generate; own samples take a causal language model.")
    if max_new_tokens < 1:
        raise InputError(f"{as_typed('max_new_tokens', max_new_tokens)} must be at least 1.")
    ends = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    ends = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
    with preserved(module), _without_own_settings(module), torch.no_grad():
        examples = [
            _sampled(module, _prompt(example, index, data.source), ends, max_new_tokens, seed)
            for index, example in enumerate(data.examples)
        ]
    source = f"{data.source}, completed by the model"
    return dataclasses.replace(data, source=source, examples=tuple(examples), truncated=0, dropped=0)


def has_prompts(data: TokenData) -> bool:
    """Return whether every example has a prompt. Of plain text only the first token is without a loss; that is none."""
    return all(_length_of_prompt(example) > 1 for example in data.examples)


def _length_of_prompt(example: Example) -> int:
    """Return the number of tokens before the first supervised one."""
    return next((place for place, label in enumerate(example.labels) if label != IGNORED), len(example.labels))


def _prompt(example: Example, index: int, source: str) -> tuple[int, ...]:
    """Return what comes before the first supervised token of an example."""
    length = _length_of_prompt(example)
    if length < 2:
        raise InputError(
            f"example {index + 1} of {source} has no prompt; own samples take records with a prompt and a completion."
        )
    return tuple(example.input_ids[:length])


@contextlib.contextmanager
def _without_own_settings(model: nn.Module) -> Iterator[None]:
    """Put empty settings in place of a checkpoint's own, with which `generate` fills what it is not given."""
    # A wrapper such as a PeftModel hands its settings on to the model in it: all modules that hold some are reset.
    modules: Iterable[Any] = model.modules()
    own = {module: module.generation_config for module in modules if "generation_config" in vars(module)}
    try:
        for module in own:
            module.generation_config = GenerationConfig()
        yield
    finally:
        for module, settings in own.items():
            module.generation_config = settings


def _sampled(model: Any, prompt: tuple[int, ...], ends: list[int], max_new_tokens: int, seed: int) -> Example:
    """Return a prompt with a completion that a model samples, up to one of the tokens that end it."""
    positions = getattr(model.config, "max_position_embeddings", None)
    room = max_new_tokens if positions is None else min(max_new_tokens, positions - len(prompt))
    if room < 1:
        raise InputError(f"a prompt of {len(prompt)} tokens fills all {positions} positions of the model.")
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=room,
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
    )
    key = hashlib.sha256(repr((seed, prompt)).encode()).digest()
    torch.manual_seed(int.from_bytes(key[:8], "little") % 2**63)
    ids = torch.tensor([prompt], device=next(model.parameters()).device)
    (row,) = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings).tolist()
    said = row[len(prompt) :]
    return Example((*prompt, *said), (*[IGNORED] * len(prompt), *said))
