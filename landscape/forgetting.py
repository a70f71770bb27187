"""What a tuned model lost against its base: the same examples under both, and how far their predictions moved apart."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from tqdm.auto import tqdm

from landscape.batches import Batch
from landscape.causal import CausalLoss
from landscape.checkpoints import Checkpoint, identify
from landscape.data import IGNORED
from landscape.errors import InputError, MeasurementWarning
from landscape.objective import Objective, describe_data
from landscape.parameters import Parameters, preserved, vector_digest
from landscape.results import Provenance, Result

FEW_EXAMPLES = 10  # below it a bootstrap over examples covers less than it says


@dataclasses.dataclass(frozen=True)
class TaskForgetting:
    """One task before and after tuning. Intervals are of a paired bootstrap over examples."""

    name: str
    examples: int
    tokens: int  # supervised
    loss_before: float  # nats per supervised token
    loss_after: float
    forgetting: float  # rise of the loss
    forgetting_interval: tuple[float, ...]
    accuracy_before: float  # share of supervised tokens that are the model's first choice
    accuracy_after: float
    accuracy_loss: float
    accuracy_interval: tuple[float, ...]
    kl: float  # KL(base || tuned), nats per supervised token
    kl_interval: tuple[float, ...]

    @property
    def perplexities(self) -> tuple[float, float]:
        """Before and after: exp of the losses; infinite where that overflows."""
        return _exp(self.loss_before), _exp(self.loss_after)


@dataclasses.dataclass(frozen=True)
class Forgetting(Result):
    """What a tuned model lost against its base, task by task."""

    kind_of_result: ClassVar[str] = "forgetting"

    name: str  # of the tuned checkpoint
    base: str
    tasks: tuple[TaskForgetting, ...]
    confidence: float
    resamples: int
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        rows = [("forgetting", f"{self.name} against {self.base}; {self.confidence:.0%} intervals over examples")]
        for task in self.tasks:
            low, high = task.forgetting_interval
            before, after = task.perplexities
            rows += [
                (task.name, f"{task.examples} examples, {task.tokens} tokens"),
                ("  loss", f"{task.loss_before:.4f} to {task.loss_after:.4f} (perplexity {before:.4g} to {after:.4g})"),
                ("  forgetting", f"{task.forgetting:+.4f} [{low:+.4f}, {high:+.4f}] nats per token"),
                (
                    "  accuracy",
                    f"{task.accuracy_before:.2%} to {task.accuracy_after:.2%}, lost {task.accuracy_loss:+.2%} "
                    f"[{task.accuracy_interval[0]:+.2%}, {task.accuracy_interval[1]:+.2%}]",
                ),
                (
                    "  KL to base",
                    f"{task.kl:.4f} [{task.kl_interval[0]:.4f}, {task.kl_interval[1]:.4f}] nats per token",
                ),
            ]
        return rows


def measure_forgetting(
    base: nn.Module | Checkpoint,
    tuned: nn.Module | Checkpoint,
    tasks: Mapping[str, Iterable[Batch]],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    progress: bool = False,
) -> Forgetting:
    """Loss, perplexity, next-token accuracy and KL of two causal language models on the same examples.

    tasks  name -> batches with `labels`; a row is an example. Forgetting is the rise of the token-weighted mean loss
           from `base` to `tuned`; the interval resamples examples with their losses under both models (BCa, Efron
           1987)

    KL(base || tuned) at the supervised positions needs no label, and on new data it is the rival that flatness has to
    beat (Shenfeld et al. 2025, arXiv 2509.04259). Both models are in memory at once and come back bit-identical.

    Raises InputError where a model is not a causal language model, the vocabularies differ, or data has no
    supervised token. MeasurementWarning with fewer than 10 examples in a task.
    """
    started = time.perf_counter()
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must be between 0 and 1.")
    if not tasks:
        raise InputError("there is no task to measure forgetting on.")
    (before, base_name, base_said), (after, name, said) = identify(base), identify(tuned)
    measured = []
    with preserved(before), preserved(after):
        for task, data in tqdm(tasks.items(), desc=f"{name} forgetting", unit="task", disable=not progress):
            measured.append(_measure(task, data, before, after, confidence, resamples, seed))
    model_said = {
        "base": base_said or {"weights": vector_digest(Parameters(before, frozen=True).values())},
        "tuned": said or {"weights": vector_digest(Parameters(after, frozen=True).values())},
    }
    first = next(after.parameters())
    return Forgetting(
        name=name,
        base=base_name,
        tasks=tuple(measured),
        confidence=confidence,
        resamples=resamples,
        provenance=Provenance(
            settings={"confidence": confidence, "resamples": resamples},
            seed=seed,
            checkpoint=model_said,
            data={task: describe_data(data) for task, data in tasks.items()},
            device=str(first.device),
            dtype=str(first.dtype).removeprefix("torch."),
            seconds=time.perf_counter() - started,
        ),
    )


def _measure(
    task: str,
    data: Iterable[Batch],
    before: nn.Module,
    after: nn.Module,
    confidence: float,
    resamples: int,
    seed: int,
) -> TaskForgetting:
    objectives = [Objective(model, data) for model in (before, after)]
    for objective in objectives:
        if not isinstance(objective.loss_fn, CausalLoss):
            raise InputError(f"task {task}: forgetting takes causal language models, and batches with labels.")
    table = torch.cat(list(objectives[0].over_batches(lambda batch: _compare(batch, objectives)))).cpu().numpy()
    table = table[table[:, 0] > 0]
    if len(table) < FEW_EXAMPLES:
        warnings.warn(
            f"task {task} has {len(table)} examples; an interval over so few covers less than it says.",
            MeasurementWarning,
            stacklevel=4,
        )
    tokens, loss_before, loss_after, right_before, right_after, kl = table.T
    total = tokens.sum()

    def interval(values: np.ndarray) -> tuple[float, float]:
        if len(values) < 2:
            return math.nan, math.nan
        if np.ptp(values / tokens) == 0:
            return (float(values[0] / tokens[0]),) * 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's own, where resamples coincide, come back as NaN
            found = stats.bootstrap(
                (values, tokens),
                lambda v, t, axis=-1: v.sum(axis) / t.sum(axis),
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                confidence_level=confidence,
                method="BCa",
                batch=max(1, 10_000_000 // len(values)),
                rng=np.random.default_rng(seed),
            ).confidence_interval
        return float(found.low), float(found.high)

    return TaskForgetting(
        name=task,
        examples=len(table),
        tokens=int(total),
        loss_before=float(loss_before.sum() / total),
        loss_after=float(loss_after.sum() / total),
        forgetting=float((loss_after - loss_before).sum() / total),
        forgetting_interval=interval(loss_after - loss_before),
        accuracy_before=float(right_before.sum() / total),
        accuracy_after=float(right_after.sum() / total),
        accuracy_loss=float((right_before - right_after).sum() / total),
        accuracy_interval=interval(right_before - right_after),
        kl=float(kl.sum() / total),
        kl_interval=interval(kl),
    )


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


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
