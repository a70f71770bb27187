"""What tuning changed of instruction vectors, and whether the base's vectors bring lost answers back."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np

from landscape.instruction_vectors.result import Estimate
from landscape.results import Provenance, Result


@dataclasses.dataclass(frozen=True)
class AccuracyChange:
    """Right answers before and after tuning, on the same questions.

    Attributes:
        before: Share of questions that the base answers rightly.
        after: Share of questions that the tuned model answers rightly.
        lost: The fall, before - after.
    """

    before: float
    after: float
    lost: Estimate


@dataclasses.dataclass(frozen=True)
class Recovery:
    """What adding one vector to the tuned model does to its answers.

    Attributes:
        prompts: "few-shot" or "zero-shot".
        vector: "base" for the base's vector of the task; "random" for random vectors as long as it; "other task" for
            the base's vector of another task, scaled to its length.
        accuracy: Share of right answers with the vector.
        gained: Rise of that share over the tuned model without it.
        over_random: Rise of that share over the mean of the random vectors, question by question; None for these.
    """

    prompts: str
    vector: str
    accuracy: float
    gained: Estimate
    over_random: Estimate | None = None


@dataclasses.dataclass(frozen=True)
class TaskChange:
    """One in-context task before and after tuning. Intervals are over prompts.

    Attributes:
        task: Name of the task.
        cosine: Cosine of the vectors over the base's heads in both models, which is how Jiang et al. 2025 compare them.
        cosine_own_heads: Cosine of the vectors over each model's own heads.
        overlap: Share of the base's heads that are among the tuned model's.
        overlap_again: The same share between the base and itself, for prompts drawn anew: what is below 1 here is
            noise of the choice.
        overlap_random: The same share expected of random heads.
        effect_before: Joint effect of the base's heads in the base.
        effect_after: Joint effect of the same heads in the tuned model.
        effect_lost: The fall, before - after.
        few_shot: Right answers with examples in the prompt.
        zero_shot: Right answers without examples.
        recoveries: What vectors do that are added to the tuned model.
    """

    task: str
    cosine: Estimate
    cosine_own_heads: Estimate
    overlap: Estimate
    overlap_again: float
    overlap_random: float
    effect_before: float
    effect_after: float
    effect_lost: Estimate
    few_shot: AccuracyChange
    zero_shot: AccuracyChange
    recoveries: tuple[Recovery, ...]


@dataclasses.dataclass(frozen=True)
class InstructionVectorChange(Result):
    """What tuning changed of instruction vectors; the result of `compare_instruction_vectors`.

    Attributes:
        name: Name of the tuned model.
        base: Name of the base.
        tasks: What changed of each task.
        confidence: Confidence of the intervals.
        resamples: Bootstrap samples behind them.
        provenance: Where the numbers come from.
    """

    kind_of_result: ClassVar[str] = "instruction_vector_change"

    name: str
    base: str
    tasks: tuple[TaskChange, ...]
    confidence: float
    resamples: int
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of what a person wants to see first."""
        rows = [
            ("instruction vectors", f"{self.name} against {self.base}; {self.confidence:.0%} intervals over prompts")
        ]
        for task in self.tasks:
            rows += [
                (task.task, f"cosine {task.cosine.in_words('.4f')}"),
                (
                    "  heads in common",
                    f"{task.overlap.in_words('.0%')}; {task.overlap_again:.0%} for other prompts in the base, "
                    f"{task.overlap_random:.0%} at random",
                ),
                ("  effect of heads", f"{task.effect_before:+.4f} to {task.effect_after:+.4f}"),
            ]
            rows += [
                (
                    f"  {name} accuracy",
                    f"{change.before:.1%} to {change.after:.1%}, lost {change.lost.in_words('+.1%')}",
                )
                for name, change in (("few-shot", task.few_shot), ("zero-shot", task.zero_shot))
            ]
            rows += [
                (
                    f"    {recovery.vector} vector",
                    f"{recovery.accuracy:.1%}, gained {recovery.gained.in_words('+.1%')}"
                    + (f", {recovery.over_random.in_words('+.1%')} over random" if recovery.over_random else ""),
                )
                for recovery in task.recoveries
                if recovery.prompts == "few-shot" and not math.isnan(recovery.accuracy)
            ]
        return rows

    def mean(self, field: str) -> float:
        """Return the mean over tasks of a field of `TaskChange`."""
        values = [getattr(task, field) for task in self.tasks]
        return float(np.mean([value.value if isinstance(value, Estimate) else value for value in values]))
