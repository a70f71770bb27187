"""What a tuned model lost against its base: loss, accuracy and KL divergence on the same examples."""

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
from landscape.forgetting.paired import Pair, compare_choices, compare_examples, paired_interval
from landscape.objective.given import batches_of
from landscape.objective.identity import describe_data
from landscape.results import Provenance, Result
from landscape.weights.parameters import Parameters
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest

FEW_EXAMPLES = 10  # With fewer, intervals of a bootstrap over examples hold the truth less often than they say.


@dataclasses.dataclass(frozen=True)
class TaskForgetting:
    """One task before and after tuning. Intervals are of a paired bootstrap over examples.

    Attributes:
        name: Name of the task.
        examples: Number of examples with a supervised token.
        tokens: Number of supervised tokens.
        loss_before: Loss of the base, in nats per supervised token.
        loss_after: Loss of the tuned model, in nats per supervised token.
        forgetting: Rise of the loss, `loss_after` - `loss_before`.
        forgetting_interval: Its interval.
        accuracy_before: Share of supervised tokens that are the base's first choice.
        accuracy_after: Share of supervised tokens that are the tuned model's first choice.
        accuracy_loss: Fall of the accuracy, `accuracy_before` - `accuracy_after`.
        accuracy_interval: Its interval.
        kl: KL(base || tuned) at the supervised tokens, in nats per token.
        kl_interval: Its interval.
    """

    name: str
    examples: int
    tokens: int
    loss_before: float
    loss_after: float
    forgetting: float
    forgetting_interval: tuple[float, ...]
    accuracy_before: float
    accuracy_after: float
    accuracy_loss: float
    accuracy_interval: tuple[float, ...]
    kl: float
    kl_interval: tuple[float, ...]

    @property
    def perplexities(self) -> tuple[float, float]:
        """The perplexities before and after: exp of the losses, infinite where that overflows."""
        return _exp(self.loss_before), _exp(self.loss_after)


@dataclasses.dataclass(frozen=True)
class Forgetting(Result):
    """What a tuned model lost against its base, task by task; the result of `measure_forgetting`.

    Attributes:
        name: Name of the tuned checkpoint.
        base: Name of the base.
        tasks: Loss, accuracy and KL divergence of each task.
        confidence: Confidence of the intervals.
        resamples: Bootstrap samples behind the intervals.
        provenance: Where the numbers come from.
        choices: Answers before and after, for the tasks that are questions.
        benchmarks: Scores of lm-evaluation-harness before and after, where they were given.

    Example:
        A result is saved as JSON and read back whole.

        >>> import tempfile
        >>> from pathlib import Path
        >>> from landscape import Forgetting
        >>> from landscape.forgetting.losses import TaskForgetting
        >>> from landscape.results import Provenance
        >>> task = TaskForgetting(
        ...     name="old", examples=20, tokens=400,
        ...     loss_before=2.0, loss_after=2.5, forgetting=0.5, forgetting_interval=(0.4, 0.6),
        ...     accuracy_before=0.5, accuracy_after=0.4, accuracy_loss=0.1, accuracy_interval=(0.05, 0.15),
        ...     kl=0.3, kl_interval=(0.2, 0.4),
        ... )
        >>> origin = Provenance(
        ...     settings={}, seed=0, checkpoint=None, data=None, device="cpu", dtype="float32", seconds=1.0
        ... )
        >>> result = Forgetting("tuned", "base", (task,), confidence=0.95, resamples=9999, provenance=origin)
        >>> print(result)
        forgetting    tuned against base; 95% intervals over examples
        old           20 examples, 400 tokens
          loss        2.0000 to 2.5000 (perplexity 7.389 to 12.18)
          forgetting  +0.5000 [+0.4000, +0.6000] nats per token
          accuracy    50.00% to 40.00%, lost +10.00% [+5.00%, +15.00%]
          KL to base  0.3000 [0.2000, 0.4000] nats per token
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Forgetting.load(result.save(Path(folder, "forgetting.json"))) == result
        True
    """

    kind_of_result: ClassVar[str] = "forgetting"

    name: str
    base: str
    tasks: tuple[TaskForgetting, ...]
    confidence: float
    resamples: int
    provenance: Provenance
    choices: tuple[ChoiceForgetting, ...] = ()
    benchmarks: tuple[BenchmarkForgetting, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of what a person wants to see first."""
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
        for answered in self.choices:
            rows += answered.rows()
        for b in self.benchmarks:
            change = f"{b.before:.4f} ± {b.before_stderr:.4f} to {b.after:.4f} ± {b.after_stderr:.4f}"
            samples = f"{b.count} samples, {'paired' if b.paired else 'as if not paired'}"
            rows.append((f"{b.task} {b.metric}", f"{change}, lost {b.fall:+.4f} ± {b.fall_stderr:.4f}, {samples}"))
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
    """Measure what a tuned causal language model lost against its base, on the same examples under both.

    Forgetting is the rise of the mean loss per supervised token from base to tuned,

        forgetting = sum_t (-log p_tuned(t) + log p_base(t)) / number of supervised tokens,

    in nats. Beside it stand the perplexities, the fall of next-token accuracy, and KL(base || tuned) at the supervised
    positions. KL needs no label; on new data it is the rival explanation of forgetting that flatness has to beat.

    Both models are in memory at once, and come back bit for bit as they were.

    Args:
        base: The model before tuning, or its checkpoint.
        tuned: The model after tuning, or its checkpoint.
        tasks: Name and data of each task: batches with `labels`, such as `load_data` gives; each row of a batch is an
            example. `Questions` (from `load_questions`) are scored by their choices as well.
        confidence: Confidence of the intervals. They resample examples, each with its losses under both models.
        resamples: Number of bootstrap samples.
        seed: Seed for the bootstrap samples.
        progress: Whether a progress bar is shown.
        benchmarks: What `compare_benchmarks` returned for the same two models, to be kept in the result.

    Returns:
        The numbers of each task with their intervals.

    Raises:
        InputError: A model is not a causal language model, the vocabularies differ, there is no task, or a task has no
            supervised token.

    Warns:
        MeasurementWarning: A task has fewer than 10 examples, too few for an interval over them.

    Source:
        Hall 1988 (the studentized bootstrap); Shenfeld et al. 2025 (arXiv 2509.04259) for KL as a predictor of
        forgetting.

    Example:
        The tuned model has lost everything: its output weights are zero, so that all 16 tokens are equally likely and
        its loss is log 16 = 2.7726 nats.

        >>> import copy, torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from landscape import measure_forgetting
        >>> shape = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        >>> base = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1))
        >>> tuned = copy.deepcopy(base)
        >>> _ = torch.nn.init.zeros_(tuned.lm_head.weight)
        >>> tokens = torch.randint(16, (12, 6))
        >>> result = measure_forgetting(base, tuned, {"old": [{"input_ids": tokens, "labels": tokens}]}, resamples=99)
        >>> (task,) = result.tasks
        >>> task.examples, task.tokens, round(task.loss_after, 4)
        (12, 60, 2.7726)
        >>> abs(task.forgetting - (task.loss_after - task.loss_before)) < 1e-12
        True
    """
    started = time.perf_counter()
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must be between 0 and 1.")
    if not tasks and not benchmarks:
        raise InputError("there is no task to measure forgetting on.")
    (before, base_name, base_origin), (after, name, tuned_origin) = identify(base), identify(tuned)
    tasks = {task: batches_of(data, base) for task, data in tasks.items()}
    measured, choices, pair = [], [], Pair(before, after)
    with preserved(before), preserved(after):
        for task, data in tqdm(tasks.items(), desc=f"{name} forgetting", unit="task", disable=not progress):
            settings: Any = {"confidence": confidence, "resamples": resamples, "seed": seed}
            if isinstance(data, Questions):
                bare = compare_choices(task, data, [question.plain for question in data.questions], pair)
                measured.append(_measured(task, bare[data.right], **settings))
                choices.append(measure_answers(task, data, pair, bare, **settings))
            else:
                measured.append(_measured(task, compare_examples(task, data, pair), **settings))
    models = {
        "base": base_origin or {"weights": vector_digest(Parameters(before, frozen=True).values())},
        "tuned": tuned_origin or {"weights": vector_digest(Parameters(after, frozen=True).values())},
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
            checkpoint=models,
            data={task: describe_data(data) for task, data in tasks.items()},
            device=str(first.device),
            dtype=str(first.dtype).removeprefix("torch."),
            seconds=time.perf_counter() - started,
        ),
    )


def _measured(task: str, table: np.ndarray, confidence: float, resamples: int, seed: int) -> TaskForgetting:
    """Return the numbers of one task from what `compare_examples` returned of it."""
    table = table[table[:, 0] > 0]
    if len(table) < FEW_EXAMPLES:
        warnings.warn(
            f"task {task} has {len(table)} examples; an interval over so few covers less than it says.",
            MeasurementWarning,
            stacklevel=4,
        )
    tokens, loss_before, loss_after, right_before, right_after, kl = table.T
    total = tokens.sum()

    def interval(values: np.ndarray, limits: tuple[float, float] | None = None) -> tuple[float, float]:
        return paired_interval(values, tokens, confidence, resamples, seed, limits)

    may_flip = (-1.0, 1.0) if (loss_after != loss_before).any() else None  # None: a model beside itself

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
        accuracy_interval=interval(right_before - right_after, may_flip),
        kl=float(kl.sum() / total),
        kl_interval=interval(kl),
    )


def _exp(loss: float) -> float:
    """Return exp of a loss, infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
