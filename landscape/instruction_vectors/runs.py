"""Running a model on prompts: its answers, what its heads put out, and its answers with heads replaced."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.instruction_vectors.prompts import Prompt
from landscape.weights.attention import Attention


@torch.no_grad()
def answers(
    model: nn.Module,
    prompts: Sequence[Prompt],
    batch_tokens: int,
    around: Callable[[], Any] | None = None,
) -> np.ndarray:
    """Return how a model answers prompts.

    Args:
        model: The model.
        prompts: The prompts.
        batch_tokens: Tokens in a batch, at most.
        around: Makes a context in which each batch passes, such as one that adds a vector.

    Returns:
        float64, (prompts, 2): the probability of the right answer, and 1 where it is the model's first choice.
    """
    found = np.empty((len(prompts), 2))
    for rows, tokens in batches(prompts, batch_tokens, _device(model)):
        if around is None:
            logits = _last_logits(model, tokens)
        else:
            with around():
                logits = _last_logits(model, tokens)
        right = torch.tensor([prompts[row].answer for row in rows], device=logits.device)
        found[rows] = _judged(logits, right)
    return found


@torch.no_grad()
def head_outputs(
    model: nn.Module, attention: Attention, prompts: Sequence[Prompt], batch_tokens: int
) -> tuple[Tensor, np.ndarray]:
    """Return what every head puts out at the last token of each prompt, and how the model answers.

    Returns:
        Outputs, (prompts, layers, heads, size), on the model's device; and what `answers` returns.
    """
    outputs: Any = None
    found = np.empty((len(prompts), 2))
    for rows, tokens in batches(prompts, batch_tokens, _device(model)):
        with attention.reading() as read:
            logits = _last_logits(model, tokens)
        stacked = torch.stack([layer.to(logits.device) for layer in read], dim=1)
        if outputs is None:
            outputs = stacked.new_empty(len(prompts), *stacked.shape[1:])
        outputs[rows] = stacked
        right = torch.tensor([prompts[row].answer for row in rows], device=logits.device)
        found[rows] = _judged(logits, right)
    return outputs, found


def answers_with_heads_replaced(
    model: nn.Module,
    attention: Attention,
    prompts: Sequence[Prompt],
    where: Tensor,
    outputs: Tensor,
    batch_tokens: int,
) -> np.ndarray:
    """Return the probability of the right answer to each prompt with sets of heads replaced at its last token.

    Args:
        model: The model.
        attention: Its heads.
        prompts: The prompts.
        where: Which heads are replaced in each set, bool, (sets, layers, heads).
        outputs: What takes the place of their outputs, (layers, heads, size).
        batch_tokens: Tokens of prompts whose keys and values are in memory at once, at most; copies take as much again.

    Returns:
        float64, (prompts, sets).
    """
    where = where.to(_device(model))
    return _last_token_again(
        model, prompts, len(where), batch_tokens, lambda sets: attention.replacing(where[sets], outputs)
    )[:, :, 0]


def answers_with_vectors_added(
    model: nn.Module,
    attention: Attention,
    layer: int,
    prompts: Sequence[Prompt],
    vectors: Tensor,
    batch_tokens: int,
) -> np.ndarray:
    """Return how a model answers each prompt when one of several vectors is added at its last token.

    Args:
        model: The model.
        attention: Its heads.
        layer: The layer to whose attention output a vector is added.
        prompts: The prompts.
        vectors: The vectors, (vectors, width).
        batch_tokens: Tokens of prompts whose keys and values are in memory at once, at most; copies take as much again.

    Returns:
        float64, (prompts, vectors, 2), the last as `answers` returns it.
    """
    vectors = vectors.to(_device(model))
    return _last_token_again(
        model, prompts, len(vectors), batch_tokens, lambda which: attention.adding(layer, vectors[which])
    )


@torch.no_grad()
def _last_token_again(
    model: nn.Module,
    prompts: Sequence[Prompt],
    count: int,
    batch_tokens: int,
    around: Callable[[Tensor], Any],
) -> np.ndarray:
    """Return how a model answers each prompt under each of `count` changes at its last token.

    Only the last token is computed for each change. What comes before it does not see it, and its keys and values are
    computed once.

    Args:
        model: The model.
        prompts: The prompts.
        count: The number of changes.
        batch_tokens: Tokens of prompts whose keys and values are in memory at once, at most. Copies of them, for
            several changes of a prompt, take as much again.
        around: Makes a context in which a batch passes, with in each row the change whose index it is given, (batch,).

    Returns:
        float64, (prompts, count, 2), the last as `answers` returns it.
    """
    found = np.empty((len(prompts), count, 2))
    for rows, tokens in batches(prompts, batch_tokens, _device(model)):
        before = None  # of a prompt of one token
        if tokens.shape[1] > 1:
            before = model(input_ids=tokens[:, :-1], use_cache=True, **_last_only(model)).past_key_values
            if before is None:
                raise InputError(
                    f"{type(model).__name__} keeps no keys and values of what it has read, which instruction vectors "
                    "need."
                )
        right = torch.tensor([prompts[row].answer for row in rows])
        each = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(count))
        judged = []
        for part in each.split(max(1, batch_tokens // tokens.shape[1])):
            row, change = part.to(tokens.device).unbind(1)
            known = copy.deepcopy(before)
            if known is not None:
                known.reorder_cache(row)  # also the states of layers without keys
            with around(change):
                logits = _last_logits(model, tokens[row, -1:], past_key_values=known, use_cache=True)
            judged.append(_judged(logits, right.to(logits.device)[row.to(logits.device)]))
        found[rows] = np.concatenate(judged).reshape(len(rows), count, 2)
    return found


def batches(prompts: Sequence[Prompt], batch_tokens: int, device: torch.device) -> Iterator[tuple[list[int], Tensor]]:
    """Yield batches of prompts of equal lengths, which need no padding: their indices, and their tokens."""
    by_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt.tokens), []).append(index)
    for length, indices in sorted(by_length.items()):
        size = max(1, batch_tokens // length)
        for start in range(0, len(indices), size):
            rows = indices[start : start + size]
            yield rows, torch.tensor([prompts[row].tokens for row in rows], device=device)


def _last_logits(model: nn.Module, tokens: Tensor, **options: Any) -> Tensor:
    """Return the logits after the last token, float32 or wider, (batch, vocabulary)."""
    logits = model(input_ids=tokens, **{"use_cache": False, **_last_only(model), **options}).logits[:, -1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _last_only(model: nn.Module) -> dict[str, int]:
    """Return the option that leaves out the logits of all tokens but the last, where a model has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}


def _judged(logits: Tensor, right: Tensor) -> np.ndarray:
    """Return the probability of the right answer and whether it is the first choice, (batch, 2)."""
    probability = torch.softmax(logits.double() if logits.device.type != "mps" else logits, dim=-1)
    chosen = probability.gather(1, right[:, None])[:, 0]
    return torch.stack([chosen, (logits.argmax(-1) == right).to(chosen)], dim=1).cpu().numpy()


def _device(model: nn.Module) -> torch.device:
    """Return where the model takes its tokens."""
    return next(model.parameters()).device
