"""The indirect effect of every attention head on an in-context task, measured over many prompts."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.instruction_vectors.prompts import Prompt
from landscape.instruction_vectors.runs import answers_with_heads_replaced
from landscape.parallel import distributed
from landscape.results import Journal
from landscape.weights.attention import Attention

_log = logging.getLogger(__name__)

WORTH_SAYING = 60.0  # seconds: a shorter run needs no announcement


def indirect_effects(
    model: nn.Module,
    attention: Attention,
    prompts: Sequence[Prompt],
    outputs: Tensor,
    *,
    batch_tokens: int,
    journal: Journal | None = None,
    title: str = "",
    progress: bool = False,
) -> np.ndarray:
    """Return how much more probable the right answer is when one head puts out what it does in clean prompts.

    The effect of head (l, j) on prompt p, whose examples have shuffled answers, is

        P(y | p, head (l, j) at the last token replaced by its mean output) - P(y | p).

    Inside `distributed.shared_work` each process takes a share of the prompts.

    Args:
        model: The model.
        attention: Its heads.
        prompts: Prompts with shuffled answers.
        outputs: The mean outputs of heads in clean prompts, (layers, heads, size).
        batch_tokens: Tokens whose keys and values are in memory at once, at most.
        journal: Keeps the effects of each finished prompt.
        title: What the progress bar and the announcement name.
        progress: Whether a progress bar is shown.

    Returns:
        float64, (prompts, layers, heads).

    Source:
        Todd et al. 2024 (arXiv 2310.15213), section 2.3.
    """
    shape = (attention.layers, attention.heads)
    count = shape[0] * shape[1]
    each = torch.zeros(count + 1, count, dtype=torch.bool)  # The last set replaces no head.
    each[:count].fill_diagonal_(True)
    where = each.view(count + 1, *shape)
    found = {int(key): np.array(value) for key, value in journal.done.items()} if journal is not None else {}
    missing = [index for index in range(len(prompts)) if index not in found]
    size = distributed.share().size
    with tqdm(desc=title, total=len(prompts), initial=len(found), unit="prompt", disable=not progress) as bar:
        for start in range(0, len(missing), size):
            turn = missing[start : start + size]
            began = time.perf_counter()

            def measure(share: distributed.Share, turn: Sequence[int] = turn) -> dict[int, list[float]]:
                return {
                    index: answers_with_heads_replaced(
                        model, attention, [prompts[index]], where, outputs, batch_tokens
                    )[0].tolist()
                    for _, index in share.of(turn)
                }

            for one in distributed.gathered(measure):
                for index, probabilities in one.items():
                    effect = np.array(probabilities[:-1]) - probabilities[-1]
                    found[index] = effect
                    if journal is not None:
                        journal.append(str(index), effect)
            if start == 0:
                _announce(title, count, len(missing), (time.perf_counter() - began) * -(-len(missing) // size))
            bar.update(len(turn))
    return np.stack([found[index] for index in range(len(prompts))]).reshape(len(prompts), *shape)


def top_heads(effects: np.ndarray, count: int) -> tuple[tuple[int, int], ...]:
    """Return layer and head of those with the largest mean effects, the largest first.

    Args:
        effects: (prompts, layers, heads), or their mean, (layers, heads).
        count: How many; all where there are fewer.

    Example:
        >>> top_heads(np.array([[0.0, 0.3], [0.1, 0.2]]), 2)
        ((0, 1), (1, 1))
    """
    mean = effects.mean(0) if effects.ndim == 3 else effects
    order = np.argsort(-mean, axis=None, kind="stable")[:count]
    return tuple((int(index) // mean.shape[1], int(index) % mean.shape[1]) for index in order)


def as_mask(heads: Sequence[tuple[int, ...]], attention: Attention) -> Tensor:
    """Return a set of heads as bool, (layers, heads)."""
    mask = torch.zeros(attention.layers, attention.heads, dtype=torch.bool)
    for layer, head in heads:
        mask[layer, head] = True
    return mask


def _announce(title: str, heads: int, prompts: int, seconds: float) -> None:
    """Say how long all prompts will take, where that is worth saying."""
    if seconds > WORTH_SAYING:
        _log.info(
            "%s: the effects of %d heads over %d prompts take about %.0f minutes.", title, heads, prompts, seconds / 60
        )
