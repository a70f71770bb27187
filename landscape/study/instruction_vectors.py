"""Instruction vectors of several checkpoints, as tasks of the runner."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoints import Checkpoint, LoadOptions, distinct_names, inspect_checkpoint, resolve_device
from landscape.errors import InputError
from landscape.instruction_vectors.change import compare_by
from landscape.instruction_vectors.changed import InstructionVectorChange
from landscape.instruction_vectors.prompts import VectorOptions
from landscape.instruction_vectors.result import InstructionVector
from landscape.instruction_vectors.tasks import InContextTask, load_tasks
from landscape.instruction_vectors.vector import Site, Statistics, check_can_do, measure_vector, open_site
from landscape.objective.scope import Run
from landscape.results import digest_of, journaled
from landscape.study.comparison import Comparison
from landscape.study.runner import Task


def open_task_comparison(
    sources: Sequence[str], tasks: Mapping[str, InContextTask], load_options: LoadOptions = LoadOptions()
) -> Comparison:
    """Inspect checkpoints that will be compared on in-context tasks in place of data sets."""
    load_options = dataclasses.replace(load_options, device=str(resolve_device(load_options.device)))
    trust = load_options.trust_remote_code
    files = tuple(inspect_checkpoint(source, trust_remote_code=trust) for source in sources)
    data: Any = dict(tasks)
    return Comparison(files, tuple(distinct_names(files)), data, load_options)


def load_all_tasks(sources: Sequence[str]) -> dict[str, InContextTask]:
    """Read the in-context tasks of several sources. Raises InputError where two have tasks of one name."""
    tasks: dict[str, InContextTask] = {}
    for source in sources:
        for name, task in load_tasks(source).items():
            if name in tasks:
                raise InputError(f"{tasks[name].source} and {source} both have a task {name}; name them apart.")
            tasks[name] = task
    return tasks


def vector_task(
    options: VectorOptions,
    statistics: Statistics,
    *,
    batch_tokens: int,
    able: Callable[[Checkpoint], bool],
    progress: bool = False,
) -> Task:
    """Return the task of measuring the instruction vector of one checkpoint and one in-context task.

    Args:
        options: How vectors are made.
        statistics: How intervals are computed.
        batch_tokens: Tokens in memory at once, at most.
        able: Whether a checkpoint must be able to do the task; InputError refuses one that must and is not.
        progress: Show progress bars.
    """

    def site_of(models: Sequence[Checkpoint], task: InContextTask) -> Site:
        return open_site(models[-1], task, None, options, statistics.seed, batch_tokens)

    def measure(models: Sequence[Checkpoint], task: Any, journal: Path) -> InstructionVector:
        run = Run(journal=journal, progress=progress)
        return measure_vector(site_of(models, task), task, options, statistics, run, must_do=able(models[-1]))

    def check(models: Sequence[Checkpoint], task: Any) -> None:
        site = site_of(models, task)
        if able(models[-1]):
            check_can_do(site, task)

    return Task("instruction_vector", InstructionVector, measure, check)


def change_task(
    options: VectorOptions,
    statistics: Statistics,
    *,
    batch_tokens: int,
    tasks: Mapping[str, InContextTask] | None = None,
    progress: bool = False,
) -> Task:
    """Return the task of comparing the instruction vectors of the second of two checkpoints with those of the first.

    The vectors of each checkpoint are kept in files beside the result, so that those of a base are measured once.

    Args:
        options: How vectors are made.
        statistics: How intervals are computed.
        batch_tokens: Tokens in memory at once, at most.
        tasks: The in-context tasks; None takes what the runner gives as data.
        progress: Show progress bars.
    """

    def measure(models: Sequence[Checkpoint], given: Any, journal: Path) -> InstructionVectorChange:
        base, tuned = models

        def kept(site: Site, task: InContextTask, must_do: bool) -> InstructionVector:
            path = _kept_at(journal.parent, site, task, options, statistics)

            def make(own_journal: Path) -> None:
                run = Run(journal=own_journal, progress=progress)
                measure_vector(site, task, options, statistics, run, must_do=must_do).save(path)

            journaled(path, make)
            return InstructionVector.load(path)

        return compare_by(kept, base, tuned, tasks or given, None, options, statistics, batch_tokens)

    def check(models: Sequence[Checkpoint], given: Any) -> None:
        for task in (tasks or given).values():
            check_can_do(open_site(models[0], task, None, options, statistics.seed, batch_tokens), task)
            open_site(models[1], task, None, options, statistics.seed, batch_tokens)

    return Task("instruction_vector_change", InstructionVectorChange, measure, check)


def _kept_at(folder: Path, site: Site, task: InContextTask, options: VectorOptions, statistics: Statistics) -> Path:
    """Return the file that keeps the vector of one checkpoint and task, which no other settings share."""
    dtype = str(next(site.model.parameters()).dtype)
    settings = dataclasses.asdict(options) | dataclasses.asdict(statistics)
    identity = digest_of([site.described.get("digest"), task.digest, settings, dtype])
    name = re.sub(r"[^\w.]+", "_", task.name)[:40]
    return folder / f"instruction_vector-{name}-{identity[:16]}.json"
