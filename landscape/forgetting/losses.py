"""What a tuned model lost against its base: the same examples under both, and how far their predictions moved apart."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.data.questions import Questions
from landscape.errors import InputError, MeasurementWarning
from landscape.forgetting.answers import ChoiceForgetting, measure_answers
from landscape.forgetting.harness import BenchmarkForgetting
from landscape.forgetting.paired import compare_examples, paired_interval
from landscape.objective.identity import describe_data
from landscape.results import Provenance, Result
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest

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
    choices: tuple[ChoiceForgetting, ...] = ()  # of the tasks that are questions
    benchmarks: tuple[BenchmarkForgetting, ...] = ()

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
        for asked in self.choices:
            rows += asked.rows()
        for b in self.benchmarks:
            change = f"{b.before:.4f} ± {b.before_stderr:.4f} to {b.after:.4f} ± {b.after_stderr:.4f}"
            how = f"{b.count} samples, {'paired' if b.paired else 'as if not paired'}"
            rows.append((f"{b.task} {b.metric}", f"{change}, lost {b.fall:+.4f} ± {b.fall_stderr:.4f}, {how}"))
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
    benchmarks: Sequence[BenchmarkForgetting] = (),
) -> Forgetting:
    """Loss, perplexity, next-token accuracy and KL of two causal language models on the same examples.

    tasks       name -> batches with `labels`; a row is an example. Forgetting is the rise of the token-weighted mean
                loss from `base` to `tuned`; the interval resamples examples with their losses under both models (BCa,
                Efron 1987). `Questions` (`load_questions`) are scored by choice too (`AnswerForgetting`)
    benchmarks  what `compare_benchmarks` found of the same two models, to be kept in the result

    KL(base || tuned) at the supervised positions needs no label, and on new data it is the rival that flatness has to
    beat (Shenfeld et al. 2025, arXiv 2509.04259). Both models are in memory at once and come back bit-identical.

    Raises InputError where a model is not a causal language model, the vocabularies differ, or data has no
    supervised token. MeasurementWarning with fewer than 10 examples in a task.
    """
    started = time.perf_counter()
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must be between 0 and 1.")
    if not tasks and not benchmarks:
        raise InputError("there is no task to measure forgetting on.")
    (before, base_name, base_said), (after, name, said) = identify(base), identify(tuned)
    measured, choices = [], []
    with preserved(before), preserved(after):
        for task, data in tqdm(tasks.items(), desc=f"{name} forgetting", unit="task", disable=not progress):
            measured.append(_measure(task, data, before, after, confidence, resamples, seed))
            if isinstance(data, Questions):
                settings: Any = {"confidence": confidence, "resamples": resamples, "seed": seed}
                choices.append(measure_answers(task, data, before, after, **settings))
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
        choices=tuple(choices),
        benchmarks=tuple(benchmarks),
        provenance=Provenance(
            settings={"confidence": confidence, "resamples": resamples}
            | ({"benchmarks": sorted({b.task for b in benchmarks})} if benchmarks else {}),
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
    table = compare_examples(task, data, before, after)
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
        return paired_interval(values, tokens, confidence, resamples, seed)

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


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
