"""Heights that are tasks of lm-evaluation-harness."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.errors import InputError, as_typed
from landscape.forgetting.harness import run_benchmarks
from landscape.heights.height import Height, HeightPass, Reading
from landscape.objective.objective import Loss, Objective


class BenchmarkPass(HeightPass):
    """One run of lm-evaluation-harness for all tasks; the surface's own data are not read."""

    needs = "a checkpoint with its tokenizer"

    def __init__(self, heights: Sequence[BenchmarkHeight], model: nn.Module | Checkpoint, objective: Objective) -> None:
        if not isinstance(model, Checkpoint):
            raise InputError(
                f"{as_typed('height', heights[0].name)} is a task of lm-evaluation-harness, which needs {self.needs}; "
                "give what load_checkpoint returns."
            )
        self.heights, self.checkpoint = heights, model

    def read(self) -> tuple[Loss | None, list[Reading]]:
        """Run the tasks on the model as it stands."""
        tasks = list(dict.fromkeys(height.task for height in self.heights))
        limits = {height.limit for height in self.heights}
        if len(limits) > 1:
            raise InputError("the tasks of one surface have one limit.")
        scores = run_benchmarks(self.checkpoint.model, self.checkpoint.tokenizer, tasks, limit=limits.pop())
        return None, [height.of_scores(scores) for height in self.heights]


class BenchmarkHeight(Height):
    """The score of a task of lm-evaluation-harness.

    Args:
        task: The name of the task.
        metric: One of its metrics; None takes the first.
        limit: Number of documents; None takes all.
        higher_is_better: Whether a higher score is a better one; what lm-evaluation-harness says has to agree.
    """

    read_from = BenchmarkPass

    def __init__(
        self, task: str, metric: str | None = None, *, limit: int | None = None, higher_is_better: bool = True
    ) -> None:
        self.task, self.metric, self.limit = task, metric, limit
        self.higher_is_better = higher_is_better
        self.name = task if metric is None else f"{task} {metric}"
        self.unit = metric or "score"

    def identity(self) -> Any:
        """Return the task, its metric and how many documents count."""
        return [self.task, self.metric, self.limit]

    def of_scores(self, scores: Sequence[Any]) -> Reading:
        """Return the reading among all scores.

        Raises:
            InputError: The task has no such metric, or one that is better the other way.
        """
        own = [score for score in scores if score.task == self.task and self.metric in (None, score.metric)]
        if not own:
            known = ", ".join(score.metric for score in scores if score.task == self.task)
            raise InputError(f"task {self.task} has no metric {self.metric!r}; it has {known}.")
        score = own[0]
        if score.higher_is_better != self.higher_is_better:
            better = "higher" if score.higher_is_better else "lower"
            raise InputError(
                f"{score.metric} of {self.task} is better when it is {better}; "
                f"give BenchmarkHeight({self.task!r}, higher_is_better={score.higher_is_better})."
            )
        return Reading(score.value, math.nan if score.stderr is None else score.stderr, float(score.count))
