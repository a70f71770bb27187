"""Forgetting by task, with intervals: losses, answers to questions, and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from landscape.forgetting.losses import Forgetting, TaskForgetting
from landscape.plotting.basics import clean
from landscape.plotting.forgetting.interactive import forgetting_figure
from landscape.plotting.page import Cell, Plot, Row, Section, Table
from landscape.report.reading import Chapter, Found, Part, by_place, results_of, titled
from landscape.report.words import FEW, of_error, of_interval, provenance_tables, signed_interval


def _part(found: list[Found[Forgetting]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        results = [one.content for one in here]
        first = results[0]
        words = f"Forgetting of {len(results)} checkpoints by task, each with its interval"
        caption = (
            f"Rise of the loss from {', '.join(dict.fromkeys(clean(r.base) for r in results))}, in nats per token, "
            f"with {first.confidence:.0%} intervals of a paired bootstrap over examples, each alone. Right of zero: "
            "worse than the base."
        )
        tables = [_losses(results)]
        tables += [_answers(results)] if any(result.choices for result in results) else []
        tables += [_benchmarks(results)] if any(result.benchmarks for result in results) else []
        plots = [Plot(forgetting_figure(results), words)]
        title = titled("Forgetting", place, places)
        whole.sections.append(Section(title, plots, caption, tables, provenance_tables(here)))
        whole.sentences += _sentences(results)
    return whole


def _losses(results: Sequence[Forgetting]) -> Table:
    rows: list[Row] = [
        [
            result.name,
            task.name,
            Cell(f"{task.loss_before:.4f}", task.loss_before),
            Cell(f"{task.loss_after:.4f}", task.loss_after),
            of_interval(task.forgetting, task.forgetting_interval),
            of_interval(100 * task.accuracy_loss, [100 * end for end in task.accuracy_interval]),
            of_interval(task.kl, task.kl_interval),
        ]
        for result in results
        for task in result.tasks
    ]
    header = ["checkpoint", "task", "loss before", "loss after", "forgetting", "accuracy lost (%)", "KL to base"]
    return Table(header, rows, "Losses, accuracy of the next token and KL(base || checkpoint), with intervals")


def _answers(results: Sequence[Forgetting]) -> Table:
    rows: list[Row] = [
        [
            result.name,
            f"{task.name} ({task.questions} questions)",
            asked,
            of_error(100 * answers.accuracy_before, None),
            of_error(100 * answers.accuracy_after, None),
            of_interval(100 * answers.accuracy_loss, [100 * end for end in answers.accuracy_interval]),
            of_interval(answers.forgetting, answers.forgetting_interval),
        ]
        for result in results
        for task in result.choices
        for asked, answers in (("plainly", task.plain), ("instructed", task.instructed))
        if answers is not None
    ]
    header = ["checkpoint", "questions", "asked", "right before (%)", "after", "lost", "answer's loss rose (nats)"]
    return Table(header, rows, "Answers: the choice with the highest log-probability")


def _benchmarks(results: Sequence[Forgetting]) -> Table:
    rows: list[Row] = [
        [
            result.name,
            b.task,
            b.metric,
            of_error(b.before, b.before_stderr),
            of_error(b.after, b.after_stderr),
            of_error(b.fall, b.fall_stderr, "" if b.paired else " (not paired)"),
        ]
        for result in results
        for b in result.benchmarks
    ]
    header = ["checkpoint", "benchmark", "metric", "before", "after", "lost"]
    return Table(header, rows, "lm-evaluation-harness, ± standard errors; lost: positive where tuning made it worse")


def _sentences(results: Sequence[Forgetting]) -> list[str]:
    if len(results) <= FEW:
        return [_sentence(result, task) for result in results for task in result.tasks]
    said = []
    for name in dict.fromkeys(task.name for result in results for task in result.tasks):
        tasks = [task for result in results for task in result.tasks if task.name == name]
        lost = sum(task.forgetting_interval[0] > 0 for task in tasks)
        gained = sum(task.forgetting_interval[1] < 0 for task in tasks)
        said.append(
            f"Of {len(tasks)} checkpoints, {lost} lost on {name}, {gained} got better, and of "
            f"{len(tasks) - lost - gained} no change is shown (each by its own {results[0].confidence:.0%} interval)."
        )
    return said


def _sentence(result: Forgetting, task: TaskForgetting) -> str:
    low, high = task.forgetting_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{result.name} on {task.name}: the loss moved by {task.forgetting:+.3g}, without an interval."
    change = signed_interval(task.forgetting, low, high)
    said = "lost on" if low > 0 else "got better on" if high < 0 else "shows no change on"
    return (
        f"{result.name} {said} {task.name}: its loss is {change} nats per token from that of {result.base} "
        f"({result.confidence:.0%})."
    )


CHAPTER = Chapter(results_of(Forgetting), _part)
