"""Two causal language models on the same examples: the numbers of each example, and intervals over examples."""

from __future__ import annotations

import math
import warnings
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
    """Return the bootstrap interval of sum(values) / sum(weights) by resampling examples.

    Args:
        values: A number for each example, such as the rise of its summed loss, shape (examples,).
        weights: Its weight, such as its supervised tokens, shape (examples,).
        confidence: Share of repetitions in which the interval would hold the true value.
        resamples: Number of bootstrap samples.
        seed: Seed for the samples.

    Returns:
        The lower and the upper end; NaN where there are fewer than two examples.

    Source:
        Efron 1987 (BCa).
    """
    if len(values) < 2:
        return math.nan, math.nan
    if np.ptp(values / weights) == 0:
        return (float(values[0] / weights[0]),) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Where resamples coincide, scipy warns, and gives NaN.
        interval = stats.bootstrap(
            (values, weights),
            lambda v, w, axis=-1: v.sum(axis) / w.sum(axis),
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            batch=max(1, 10_000_000 // len(values)),
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)


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
