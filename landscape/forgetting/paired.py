"""Two causal language models on the same examples: the numbers of each example, and intervals over examples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from landscape.data.batches import Batch
from landscape.data.tokens import IGNORED, TokenData
from landscape.errors import InputError
from landscape.objective.causal import CausalLoss
from landscape.objective.objective import Objective


def compare_examples(task: str, data: Iterable[Batch], before: nn.Module, after: nn.Module) -> np.ndarray:
    """Return a row of numbers for each example under both models.

    Args:
        task: Name of the task, for messages.
        data: Batches with `labels`; each row of a batch is an example.
        before: The base model.
        after: The tuned model.

    Returns:
        float64, shape (examples, 6). The columns are the number of supervised tokens; the loss before and after, in
        nats, summed over them; the number of them that are the model's first choice, before and after; and
        KL(before || after), summed over them. Rows are in the order of `data.examples` where the data have it, else in
        that of the batches.

    Raises:
        InputError: A model is not a causal language model, or the vocabularies differ.
    """
    objectives = [Objective(model, data) for model in (before, after)]
    for objective in objectives:
        if not isinstance(objective.loss_fn, CausalLoss):
            raise InputError(f"task {task}: forgetting is measured of causal language models, on batches with labels.")
    parts = list(objectives[0].over_batches(lambda batch: _compare(batch, objectives)))
    as_batched = torch.cat(parts).cpu().numpy()
    if not isinstance(data, TokenData):
        return as_batched
    # A bootstrap draws by the position of a row, so that other batches must not change the order of rows.
    rows = np.empty_like(as_batched)
    rows[data.order] = as_batched
    return rows


def paired_interval(
    values: np.ndarray, weights: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Return the studentized bootstrap interval of sum(values) / sum(weights) by resampling examples.

    With the ratio r, its standard error s from the residuals values - r weights, and r* and s* of a resample, the
    interval is r - s q, where q are the upper and the lower quantile of (r* - r) / s*. Rises of losses are skewed, and
    there this interval holds the truth more often than BCa does. Simulated rises were exponential or log-normal (sigma
    1), the latter also with numbers of tokens. At a nominal 95%, the interval held the truth over 10, 30 and 128
    examples in 89 to 93%, 92 to 94% and 93 to 94% of the tables, where that of BCa did in 80 to 88%, 87 to 93% and 92
    to 93%.

    Args:
        values: A number for each example, such as the rise of its summed loss, shape (examples,).
        weights: Its weight, such as its supervised tokens, shape (examples,).
        confidence: Share of repetitions in which the interval would hold the true value.
        resamples: Number of bootstrap samples.
        seed: Seed for the samples.

    Returns:
        The lower and the upper end; NaN where there are fewer than two examples. Where more than one resample in twenty
        has no spread, as of answers that seldom change, the quantiles are those of Student's t distribution.

    Source:
        Efron 1982, chapter 10, and Hall 1988 (studentized bootstrap).
    """
    count = len(values)
    if count < 2:
        return math.nan, math.nan
    if np.ptp(values / weights) == 0:
        return (float(values[0] / weights[0]),) * 2
    ratio, error = _ratio(values, weights)
    generator, pivots = np.random.default_rng(seed), []
    for start in range(0, resamples, batch := max(1, 2_000_000 // count)):
        drawn = generator.integers(0, count, (min(batch, resamples - start), count))
        again, spread = _ratio(values[drawn], weights[drawn])
        known = spread > 1e-9 * error
        pivots.append((again[known] - ratio) / spread[known])
    pivot = np.concatenate(pivots)
    tails = np.array([(1 + confidence) / 2, (1 - confidence) / 2])
    enough = len(pivot) >= 0.95 * resamples
    quantiles = np.quantile(pivot, tails) if enough else stats.t.ppf(tails, count - 1)
    low, high = ratio - quantiles * error
    return float(low), float(high)


def _ratio(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sum(values) / sum(weights) over the last axis, and its standard error."""
    count, total = values.shape[-1], weights.sum(-1)
    ratio = values.sum(-1) / total
    residuals = values - ratio[..., None] * weights
    return ratio, np.sqrt((residuals * residuals).sum(-1) * count / (count - 1)) / total


@torch.no_grad()
def _compare(batch: Batch, objectives: list[Objective]) -> Tensor:
    """Return the rows of one batch, as `compare_examples` describes them."""
    predicted = batch["labels"][:, 1:] != IGNORED
    targets = batch["labels"][:, 1:][predicted]
    rows = predicted.nonzero()[:, 0]
    log_p = [_log_probabilities(objective, batch) for objective in objectives]
    if log_p[0].shape != log_p[1].shape:
        raise InputError(
            f"the models have vocabularies of {log_p[0].shape[-1]} and {log_p[1].shape[-1]}; their predictions cannot "
            "be compared."
        )
    kl = (log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1)
    columns = [torch.ones_like(kl)]
    columns += [-p.gather(1, targets[:, None].to(p.device))[:, 0] for p in log_p]
    columns += [(p.argmax(-1) == targets.to(p.device)).to(kl) for p in log_p]
    values = torch.stack([*columns, kl], dim=1).double()
    table = torch.zeros(len(predicted), values.shape[1], dtype=torch.float64, device=values.device)
    return table.index_add_(0, rows.to(values.device), values)


def _log_probabilities(objective: Objective, batch: Batch) -> Tensor:
    """Return log-probabilities at the supervised positions, in float32 or wider, shape (positions, vocabulary)."""
    loss_fn: Any = objective.loss_fn
    logits = loss_fn.outputs(objective.model, batch)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
