"""Two causal language models on the same examples: numbers of each example, and intervals over examples."""

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
    """A row per example: tokens, both losses, both counts of right first choices, KL.

    In the order of `data.examples` where there are, else as they come in the batches. Tokens are the supervised ones;
    losses and KL(before || after) are sums over them, nats in float64. Raises InputError where a model is not a causal
    language model, or the vocabularies differ.
    """
    objectives = [Objective(model, data) for model in (before, after)]
    for objective in objectives:
        if not isinstance(objective.loss_fn, CausalLoss):
            raise InputError(f"task {task}: forgetting takes causal language models, and batches with labels.")
    found = torch.cat(list(objectives[0].over_batches(lambda batch: _compare(batch, objectives)))).cpu().numpy()
    if not isinstance(data, TokenData):
        return found
    rows = np.empty_like(found)
    rows[data.order] = found  # a bootstrap's draws are by row: other batches must not be another sample
    return rows


def paired_interval(
    values: np.ndarray, weights: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Bootstrap interval (BCa, Efron 1987) of sum(values) / sum(weights), resampling examples; NaN for fewer than 2."""
    if len(values) < 2:
        return math.nan, math.nan
    if np.ptp(values / weights) == 0:
        return (float(values[0] / weights[0]),) * 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's own, where resamples coincide, come back as NaN
        found = stats.bootstrap(
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
    return float(found.low), float(found.high)


@torch.no_grad()
def _compare(batch: Batch, objectives: list[Objective]) -> Tensor:
    """A row per example: tokens, both summed losses, both counts of right first choices, summed KL; float64."""
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
    loss_fn: Any = objective.loss_fn
    logits = loss_fn.outputs(objective.model, batch)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
