"""Benchmarks of lm-evaluation-harness (Gao et al. 2024; the optional extra `eval`) before and after tuning."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from landscape.errors import InputError, first_line, nearest_path
from landscape.forgetting.task_names import check_task_names, no_such_task
from landscape.weights.preservation import preserved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_BOOTSTRAPS = 1000  # Bootstrap samples that lm-eval draws for metrics whose standard error has no formula.


@dataclass(frozen=True)
class Score:
    """One metric of one task (or group of tasks) under one model, as lm-eval reports it.

    Attributes:
        task: lm-eval's name of the task or group.
        metric: lm-eval's name of the metric, with the filter in brackets where there is one.
        value: The score.
        stderr: Its standard error; NaN where lm-eval gives none.
        higher_is_better: Whether a higher score is a better one.
        count: Number of samples.
        samples: The score of each sample, in lm-eval's order, where the value is their mean; else empty.
        digest: SHA-256 (hex) of the documents.
    """

    task: str
    metric: str
    value: float
    stderr: float
    higher_is_better: bool
    count: int
    samples: tuple[float, ...]
    digest: str


@dataclass(frozen=True)
class BenchmarkForgetting:
    """One metric of one task before and after tuning, with standard errors.

    Attributes:
        task: lm-eval's name of the task or group.
        metric: lm-eval's name of the metric.
        count: Number of samples.
        before: Score of the base.
        before_stderr: Its standard error.
        after: Score of the tuned model.
        after_stderr: Its standard error.
        fall: How much worse tuning made the score; positive is worse, whichever way the metric points.
        fall_stderr: Standard error of the fall.
        paired: Whether that standard error is over differences on the same samples. Otherwise it is computed as if the
            two runs were independent, which is mostly too wide.
    """

    task: str
    metric: str
    count: int
    before: float
    before_stderr: float
    after: float
    after_stderr: float
    fall: float
    fall_stderr: float
    paired: bool


def run_benchmarks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> tuple[Score, ...]:
    """Score a transformers causal language model on benchmarks of lm-evaluation-harness.

    The model and the global random states come back as they were.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        tasks: Names of lm-eval's tasks and groups, or paths of YAML files. A file may define a task, whose data may be
            local, or a group, whose tasks may stand in files beside it.
        limit: Number of documents of each task, the first ones; None takes all.
        batch_size: Sequences per batch. Changes memory use, never results.
        progress: Whether lm-eval's progress bars are shown.

    Returns:
        A score for each metric of each task.

    Raises:
        InputError: There is no task, lm-eval is not installed, a task is unknown, or its data cannot be loaded.

    Source:
        Gao et al. 2024, lm-evaluation-harness (`HFLM`, `simple_evaluate`).

    Example:
        lm-eval downloads the data of its tasks, so that this example is not run as a test.

        >>> from landscape import load_checkpoint, run_benchmarks
        >>> checkpoint = load_checkpoint("runs/sam")  # doctest: +SKIP
        >>> run_benchmarks(checkpoint.model, checkpoint.tokenizer, ["arc_easy"], limit=100)  # doctest: +SKIP
    """
    if not tasks:
        raise InputError("there is no task for lm-eval to run.")
    with _quietly(progress), preserved(model):
        manager, loaded = _load_tasks(tasks)
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        harness: Any = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # lm-eval may give it a padding token.
            batch_size=batch_size,
        )
        report = simple_evaluate(harness, tasks=loaded, task_manager=manager, limit=limit, bootstrap_iters=_BOOTSTRAPS)
    assert report is not None  # It is None only in processes other than the first.
    return tuple(_scores(report))


def compare_benchmarks(before: Sequence[Score], after: Sequence[Score]) -> tuple[BenchmarkForgetting, ...]:
    """Compare the scores of two models: how far each metric fell, with its standard error.

    Where lm-eval gives the score of each sample, both models answered the same questions, and the standard error is
    s / sqrt(n), with s the standard deviation of the n differences. Where the scores are 0 or 1, half a question is
    added to each of the four ways in which two answers can be right or wrong: without that, a task of which no answer
    changed would have no error at all. Otherwise the standard error is sqrt(stderr_before^2 + stderr_after^2), as if
    the runs were independent, which is mostly too wide.

    Args:
        before: Scores of the base, from `run_benchmarks`.
        after: Scores of the tuned model on the same tasks.

    Returns:
        The fall of each metric, positive where tuning made it worse; `measure_forgetting` keeps it in its result.

    Raises:
        InputError: The two are not scores of the same tasks on the same documents.

    Source:
        Half a question in each cell: Agresti and Min 2005, Simple improved confidence intervals for comparing matched
        proportions, Statistics in Medicine 24.

    Example:
        Of four questions the base answers three and the tuned model one. With half a question in each cell there are
        6, of which tuning turned 2.5 wrong and 0.5 right: sqrt(3 - 2^2 / 6) / 6 = 0.2546.

        >>> from landscape import compare_benchmarks
        >>> from landscape.forgetting.harness import Score
        >>> old = Score("facts", "acc", 0.75, 0.25, True, count=4, samples=(1, 1, 1, 0), digest="same")
        >>> new = Score("facts", "acc", 0.25, 0.25, True, count=4, samples=(0, 0, 1, 0), digest="same")
        >>> (compared,) = compare_benchmarks([old], [new])
        >>> compared.fall, round(compared.fall_stderr, 4), compared.paired
        (0.5, 0.2546, True)
    """
    of_tuned = {(score.task, score.metric): score for score in after}
    if [(score.task, score.metric) for score in before] != list(of_tuned):
        raise InputError("the benchmarks before and after are not the same tasks and metrics.")
    compared = []
    for old in before:
        new = of_tuned[old.task, old.metric]
        if (old.digest, old.count) != (new.digest, new.count):
            raise InputError(
                f"task {old.task} had other documents before and after; its data changed between the runs."
            )
        sign = 1 if old.higher_is_better else -1
        paired = len(old.samples) > 1
        if paired:
            stderr = _paired_stderr(np.array(old.samples), np.array(new.samples))
        else:
            stderr = math.hypot(old.stderr, new.stderr)
        fall = sign * (old.value - new.value)
        compared.append(
            BenchmarkForgetting(
                old.task, old.metric, old.count, old.value, old.stderr, new.value, new.stderr, fall, stderr, paired
            )
        )
    return tuple(compared)


def _paired_stderr(before: np.ndarray, after: np.ndarray) -> float:
    """Return the standard error of the mean difference of scores of the same samples (see `compare_benchmarks`)."""
    difference, size = before - after, len(before)
    if not np.isin((before, after), (0, 1)).all():
        return float(difference.std(ddof=1) / math.sqrt(size))
    lost, gained = ((difference == sign).sum() + 0.5 for sign in (1, -1))
    return math.sqrt(lost + gained - (lost - gained) ** 2 / (size + 2)) / (size + 2)


def find_tasks(specs: Sequence[str]) -> dict[str, str | None]:
    """Return each task with the SHA-256 (hex) of its YAML file, or None where it is a name; none is loaded.

    Raises:
        InputError: lm-eval is not installed, or there is no such file or name.
    """
    check_task_names([spec for spec in specs if not _is_file(spec)])
    digests: dict[str, str | None] = {}
    for spec in specs:
        if _is_file(spec) and not os.path.isfile(spec):
            raise InputError(f"there is no task file {spec}.{nearest_path(spec)}")
        digests[spec] = hashlib.sha256(_text_of(spec).encode()).hexdigest() if _is_file(spec) else None
    return digests


def _text_of(path: Path | str) -> str:
    """Read a YAML file of a task."""
    try:
        return Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid UTF-8 at byte {error.start}.") from error


def _is_file(spec: str) -> bool:
    """Return whether a task is given as a YAML file."""
    return spec.endswith((".yaml", ".yml"))


def _group_name(path: Path) -> str:
    """Return the name of the group that a YAML file defines; empty where it defines a task.

    lm-eval 0.4.13 takes only paths of tasks. A group has to be named, and lm-eval has to know its folder.
    """
    name = re.search(r"^group\s*:\s*[\"']?([^\s\"']+)", _text_of(path), re.MULTILINE)
    return name[1] if name else ""


def _load_tasks(specs: Sequence[str]) -> tuple[Any, list[Any]]:
    """Return lm-eval's manager, and tasks and groups as its objects: errors in them show before a model runs."""
    find_tasks(specs)
    from lm_eval.tasks import TaskManager

    groups = {spec: name for spec in specs if _is_file(spec) and (name := _group_name(Path(spec)))}
    manager = TaskManager(
        include_path=sorted({Path(spec).resolve().parent for spec in groups}),
        include_defaults=not all(map(_is_file, specs)),  # Reading lm-eval's own 10,000 files takes 20 s.
    )
    unknown = [spec for spec in specs if not _is_file(spec) and spec not in manager.task_index]
    if unknown:
        raise no_such_task(unknown[0], list(manager.task_index))
    try:
        loaded: Any = manager.load([groups.get(spec, spec) for spec in specs])
    except Exception as error:  # It may come from readers of YAML and data sets, or from code of a task.
        raise InputError(f"lm-eval cannot load the tasks {', '.join(specs)}: {first_line(error)}") from error
    members = {name for names in loaded["group_map"].values() for name in names}
    return manager, [item for name, item in {**loaded["tasks"], **loaded["groups"]}.items() if name not in members]


def _scores(report: Any) -> Iterator[Score]:
    """Yield the scores in lm-eval's report."""
    for task, values in report["results"].items():
        samples = (report.get("samples") or {}).get(task, [])
        documents = hashlib.sha256("".join(sample["doc_hash"] for sample in samples).encode()).hexdigest()
        points_up = report["higher_is_better"].get(task) or {}
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            own = [s.get(metric) for s in samples if s["filter"] == filtered]
            is_mean = bool(own) and all(isinstance(x, (int, float)) for x in own)
            is_mean = is_mean and math.isclose(np.mean(own), value, rel_tol=1e-9, abs_tol=1e-12)
            stderr = values.get(f"{metric}_stderr,{filtered}")
            count = (report.get("n-samples") or {}).get(task, {}).get("effective", values.get("sample_len", 0))
            yield Score(
                task=task,
                metric=metric if filtered == "none" else f"{metric} ({filtered})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, (int, float)) else math.nan,
                higher_is_better=bool(points_up.get(metric, True)),
                count=int(count),
                samples=tuple(float(x) for x in own) if is_mean else (),
                digest=documents,
            )


@contextlib.contextmanager
def _quietly(progress: bool) -> Iterator[None]:
    """Silence lm-eval's advice, and its progress bars unless they are asked for."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            if not progress:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        logger.setLevel(level)
