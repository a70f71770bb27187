"""Benchmarks of lm-evaluation-harness (Gao et al., the optional extra `eval`) before and after tuning."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
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

from landscape.errors import InputError, first_line
from landscape.weights.preservation import preserved

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

_BOOTSTRAPS = 1000  # lm-eval's own, for metrics whose standard error has no formula


@dataclass(frozen=True)
class Score:
    """One metric of one task (or group of tasks) under one model, as lm-eval reports it."""

    task: str
    metric: str  # lm-eval's name, with the filter in brackets where there is one
    value: float
    stderr: float  # NaN where lm-eval gives none
    higher_is_better: bool
    count: int  # of samples
    samples: tuple[float, ...]  # in lm-eval's order, where the value is their mean; else empty
    digest: str  # of the documents


@dataclass(frozen=True)
class BenchmarkForgetting:
    """One metric of one task before and after tuning, with standard errors."""

    task: str
    metric: str
    count: int  # of samples
    before: float
    before_stderr: float
    after: float
    after_stderr: float
    fall: float  # positive where tuning made it worse, whichever way the metric points
    fall_stderr: float
    paired: bool  # whether over the same samples; else as if the runs were independent, which is mostly too wide


def run_benchmarks(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> tuple[Score, ...]:
    """Score a transformers causal language model with lm-evaluation-harness (`HFLM`, `simple_evaluate`).

    tasks       names of lm-eval's tasks and groups, or paths of YAML files of tasks, whose data may be local, and of
                groups, whose tasks may stand beside them
    limit       the first so many documents of each task
    batch_size  sequences; memory, not results

    The model and the global random states come back as they were. Raises InputError where lm-eval is not installed,
    a task is unknown or its data cannot be loaded.
    """
    if not tasks:
        raise InputError("there is no task for lm-eval to run.")
    with _quietly(progress), preserved(model):
        manager, loaded = _load_tasks(tasks)
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        harness: Any = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),  # it may be given a padding token
            batch_size=batch_size,
        )
        found = simple_evaluate(harness, tasks=loaded, task_manager=manager, limit=limit, bootstrap_iters=_BOOTSTRAPS)
    assert found is not None  # None comes from processes other than the first
    return tuple(_scores(found))


def compare_benchmarks(before: Sequence[Score], after: Sequence[Score]) -> tuple[BenchmarkForgetting, ...]:
    """The fall of each metric with its standard error.

    Where lm-eval gives samples: s / sqrt(n), s the standard deviation of the n differences; both models answered the
    same questions. Else sqrt(stderr_before^2 + stderr_after^2), as if they had not, which is mostly too
    wide.

    Raises InputError where the two are not scores of the same tasks on the same documents.
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
            stderr = float(np.std(np.subtract(new.samples, old.samples), ddof=1) / math.sqrt(len(old.samples)))
        else:
            stderr = math.hypot(old.stderr, new.stderr)
        fall = sign * (old.value - new.value)
        compared.append(
            BenchmarkForgetting(
                old.task, old.metric, old.count, old.value, old.stderr, new.value, new.stderr, fall, stderr, paired
            )
        )
    return tuple(compared)


def find_tasks(specs: Sequence[str]) -> dict[str, str | None]:
    """Each task with the SHA-256 (hex) of its YAML where it is a file, without loading any.

    Raises InputError where lm-eval is not installed, or there is no such file.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("benchmark tasks need lm-eval: pip install 'landscape-lm[eval]'.")
    found: dict[str, str | None] = {}
    for spec in specs:
        if _is_file(spec) and not os.path.isfile(spec):
            raise InputError(f"there is no task file {spec}.")
        found[spec] = hashlib.sha256(Path(spec).read_bytes()).hexdigest() if _is_file(spec) else None
    return found


def _is_file(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml"))


def _group_name(path: Path) -> str:
    """The name of the group that a YAML file defines; empty where it defines a task.

    lm-eval 0.4.13 takes paths of tasks only: a group goes by its name, once its folder is known.
    """
    found = re.search(r"^group\s*:\s*[\"']?([^\s\"']+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    return found[1] if found else ""


def _load_tasks(specs: Sequence[str]) -> tuple[Any, list[Any]]:
    """lm-eval's manager, and tasks and groups as its objects: what is wrong with them shows before a model runs."""
    find_tasks(specs)
    from lm_eval.tasks import TaskManager

    # reading lm-eval's own 10,000 files takes 20 s
    groups = {spec: name for spec in specs if _is_file(spec) and (name := _group_name(Path(spec)))}
    manager = TaskManager(
        include_path=sorted({Path(spec).resolve().parent for spec in groups}),
        include_defaults=not all(map(_is_file, specs)),
    )
    unknown = [spec for spec in specs if not _is_file(spec) and spec not in manager.task_index]
    if unknown:
        raise InputError(f"lm-eval has no task {unknown[0]!r}; give a name it lists, or a path that ends in .yaml.")
    try:
        loaded: Any = manager.load([groups.get(spec, spec) for spec in specs])
    except Exception as error:  # readers of YAML and data sets, and code of tasks
        raise InputError(f"lm-eval cannot load the tasks {', '.join(specs)}: {first_line(error)}") from error
    members = {name for names in loaded["group_map"].values() for name in names}
    return manager, [item for name, item in {**loaded["tasks"], **loaded["groups"]}.items() if name not in members]


def _scores(found: Any) -> Iterator[Score]:
    for task, values in found["results"].items():
        samples = (found.get("samples") or {}).get(task, [])
        documents = hashlib.sha256("".join(sample["doc_hash"] for sample in samples).encode()).hexdigest()
        points_up = found["higher_is_better"].get(task) or {}
        for key, value in values.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            own = [s.get(metric) for s in samples if s["filter"] == filtered]
            is_mean = bool(own) and all(isinstance(x, (int, float)) for x in own)
            is_mean = is_mean and math.isclose(np.mean(own), value, rel_tol=1e-9, abs_tol=1e-12)
            stderr = values.get(f"{metric}_stderr,{filtered}")
            count = (found.get("n-samples") or {}).get(task, {}).get("effective", values.get("sample_len", 0))
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
    """Without lm-eval's advice, and without its bars unless asked for."""
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
