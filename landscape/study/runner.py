"""The one runner: every measurement of several checkpoints keeps its result in a file, and a killed run continues."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.results import Result, journaled, read_json
from landscape.study.comparison import Comparison
from landscape.study.effort import Effort, Estimate, announce, estimate

_log = logging.getLogger(__name__)

# Called with the models, the data and the path of a journal that a killed run leaves and the next one continues.
Measure = Callable[[Sequence[Checkpoint], Any, Path], Result]


@dataclasses.dataclass(frozen=True)
class Task:
    """Something that can be measured of any checkpoint, or of several together, on any data.

    Attributes:
        name: The name of the measurement; names of files start with it.
        result_type: The type of its results.
        measure: `measure(checkpoints, tokens, journal) -> result`. The journal is the path of a file in which a long
            measurement keeps finished parts.
        check: `check(checkpoints, tokens)` raises InputError where `measure` cannot be done with these models, as
            far as that can be seen without evaluating a loss. It is called before anything is measured.
        differing: `differing(result, digests)` names settings in which a result that was there already differs from
            what `measure` would give for checkpoints with these digests.
        earlier_types: Types of results that earlier versions kept for the task; they are read too.
        effort: The most that `measure` does, for an estimate of the time before it starts; None where that is unknown.
    """

    name: str
    result_type: type[Result]
    measure: Measure
    check: Callable[[Sequence[Checkpoint], Any], None] | None = None
    differing: Callable[[Any, Sequence[str]], Sequence[str]] | None = None
    earlier_types: Sequence[type[Result]] = ()
    effort: Effort | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One result: a task done with certain checkpoints on certain data, and the file that keeps it.

    Attributes:
        task: What is measured.
        checkpoints: Which checkpoints of the comparison `task.measure` gets, by index.
        data: The name of the data set; empty where the result is of no data set or of all of them.
        tokens: What `task.measure` gets as data.
        path: The file that keeps the result.
        check_origin: Raises InputError where an earlier result in that file is of something else.
    """

    task: Task
    checkpoints: tuple[int, ...]
    data: str
    tokens: Any
    path: Path
    check_origin: Callable[[Any], None] | None = None

    def load(self) -> Any:
        """Read the result from its file. Raises InputError where the file holds something else."""
        kept_as = read_json(self.path).get("format") if self.task.earlier_types else None
        earlier = [kind for kind in self.task.earlier_types if kept_as == f"landscape/{kind.kind_of_result}"]
        result = (earlier or [self.task.result_type])[0].load(self.path)
        if self.check_origin is not None:
            self.check_origin(result)
        return result


def run_cells(comparison: Comparison, cells: Sequence[Cell]) -> Iterator[tuple[Cell, Any]]:
    """Yield every cell with its result: first those whose files are there, then the others as they are finished.

    What cannot be done is said before anything is measured: earlier results are checked, and every checkpoint that has
    unfinished cells is loaded and checked once. A result is in its file when it is yielded, and stays there whatever
    happens afterwards. Cells of the same file share one result. Inside `shared_work` every process runs the same cells.

    Args:
        comparison: The checkpoints.
        cells: What is wanted.

    Yields:
        The cell and its result, a `task.result_type`.

    Raises:
        InputError: An earlier result is of something else, or a checkpoint cannot be loaded or measured.
    """
    results: dict[Path, Any] = {}
    groups: dict[tuple[int, ...], list[Cell]] = {}  # unfinished cells by the checkpoints that they need
    waiting: dict[Path, list[Cell]] = {}
    for cell in cells:
        if cell.path in waiting:
            waiting[cell.path].append(cell)
        elif cell.path.exists():
            results[cell.path] = cell.load()
        else:
            waiting[cell.path] = [cell]
            groups.setdefault(cell.checkpoints, []).append(cell)
    if results and waiting:
        _log.info(
            "%d of %d results are there from an earlier run, and kept.", len(results), len(results) + len(waiting)
        )
    loaded: dict[int, Checkpoint] = {}
    estimates: list[Estimate] = []
    in_order = sorted(groups)
    for group in [*in_order[1:], *in_order[:1]]:  # the first group comes last: its models stay and are measured next
        models = _load_group(comparison, group, loaded)
        for cell in groups[group]:
            if cell.task.check is not None:
                cell.task.check(models, cell.tokens)
        known = [(cell.task.effort, cell.tokens) for cell in groups[group] if cell.task.effort is not None]
        if known:
            estimates.append(estimate(models, known))
        del models
    announce(estimates)
    yield from ((cell, results[cell.path]) for cell in cells if cell.path in results)
    for group in in_order:
        models = _load_group(comparison, group, loaded)
        for cell in groups[group]:
            result = _measure(cell, models)
            yield from ((same, result) for same in waiting[cell.path])
        del models


def run_tasks(comparison: Comparison, folder: Path, tasks: Sequence[Task]) -> dict[str, dict[tuple[str, str], Any]]:
    """Do every task with every checkpoint on every data set.

    Args:
        comparison: The checkpoints and the data sets.
        folder: Keeps the files; see `run_cells` for what happens to those that are there.
        tasks: What to measure.

    Returns:
        Results by name of the task and by (name of the checkpoint, name of the data set).
    """
    cells = [cell for task in tasks for cell in cells_of_each(comparison, folder, task)]
    results = {
        (cell.task.name, cell.checkpoints[0], cell.data): result for cell, result in run_cells(comparison, cells)
    }
    keys = [(index, data) for index in range(len(comparison.names)) for data in comparison.data]
    return {
        task.name: {(comparison.names[index], data): results[task.name, index, data] for index, data in keys}
        for task in tasks
    }


def cells_of_each(comparison: Comparison, folder: Path, task: Task) -> list[Cell]:
    """Return the cells of a task that is done with each checkpoint by itself, on each data set."""
    return [
        _cell(comparison, folder / name, task, (index,), data, comparison.describe(index))
        for (index, data), name in comparison.file_names(task.name, of_all=False).items()
    ]


def cells_of_all(comparison: Comparison, folder: Path, task: Task, named: Sequence[int]) -> list[Cell]:
    """Return the cells of a task that is done with all checkpoints together, on each data set.

    Args:
        comparison: The checkpoints and the data sets.
        folder: Keeps the files.
        task: What to measure.
        named: The checkpoints that the provenance of a result names, by index.
    """
    described = [comparison.describe(index) for index in named]
    origin = described[0] if len(described) == 1 else dict(zip("abc", described, strict=False))
    everything = tuple(range(len(comparison.names)))
    return [
        _cell(comparison, folder / name, task, everything, data, origin)
        for (_, data), name in comparison.file_names(task.name, of_all=True).items()
    ]


def cells_against_base(comparison: Comparison, folder: Path, task: Task) -> list[Cell]:
    """Return the cells of a task that is done with the first checkpoint and each other one, on all data at once."""
    one_set = dataclasses.replace(comparison, data=dict(list(comparison.data.items())[:1]))
    base = comparison.describe(0)
    return [
        _cell(comparison, folder / name, task, (0, index), None, {"base": base, "tuned": comparison.describe(index)})
        for (index, _), name in one_set.file_names(task.name, of_all=False).items()
        if index > 0
    ]


def file_names(comparison: Comparison, tasks: Sequence[Task]) -> list[str]:
    """Return the names of the files that `run_tasks` keeps."""
    return [cell.path.name for task in tasks for cell in cells_of_each(comparison, Path(), task)]


def _cell(
    comparison: Comparison, path: Path, task: Task, checkpoints: tuple[int, ...], data: str | None, origin: dict
) -> Cell:
    """Return a cell whose file must say that its result is of certain checkpoints.

    Args:
        comparison: The checkpoints and the data sets.
        path: The file.
        task: What is measured.
        checkpoints: What it is measured of, by index.
        data: The name of the data set; None for all of them.
        origin: What the provenance of a result says about the checkpoints.
    """
    tokens: Any = comparison.data if data is None else comparison.data[data]
    digest = tokens.digest if data is not None else {name: one.digest for name, one in comparison.data.items()}
    digests = [comparison.files[index].digest for index in checkpoints]

    def check_origin(result: Any) -> None:
        differing = task.differing(result, digests) if task.differing is not None else ()
        comparison.check_origin(path, result.provenance, origin, digest, differing)

    return Cell(task, checkpoints, data or "", tokens, path, check_origin)


def _load_group(comparison: Comparison, group: tuple[int, ...], loaded: dict[int, Checkpoint]) -> list[Checkpoint]:
    """Load the models of a group into `loaded`; others leave it first, so that memory holds one group at a time."""
    for index in [index for index in loaded if index not in group]:
        del loaded[index]
    for index in group:
        if index not in loaded:
            loaded[index] = comparison.load(index)
    return [loaded[index] for index in group]


def _measure(cell: Cell, models: Sequence[Checkpoint]) -> Any:
    """Measure a cell and keep its result in its file."""
    results: list[Any] = []

    def measure(journal: Path) -> None:
        result: Any = cell.task.measure(models, cell.tokens, journal)
        if hasattr(result, "data"):
            result = dataclasses.replace(result, data=cell.data)
        results.append(result)
        result.save(cell.path)

    journaled(cell.path, measure)
    return results[0]
