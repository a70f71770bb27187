"""Surfaces of several checkpoints on several data sets, each kept in its own file of one folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from landscape.checkpoints import Checkpoint
from landscape.data.tokens import TokenData
from landscape.objective.scope import Run, Scope
from landscape.results import journaled, to_plain
from landscape.study.comparison import Comparison
from landscape.study.effort import surface_effort
from landscape.study.runner import Task, cells_of_all, cells_of_each, run_cells
from landscape.surfaces.kind import AlongDirections, SurfaceKind
from landscape.surfaces.measure import measure_surface
from landscape.surfaces.result import Surface
from landscape.weights.directions import load_directions, save_directions


def compare_surfaces(
    comparison: Comparison,
    folder: Path,
    kind: SurfaceKind,
    *,
    draws: int = 1,
    heights: Sequence[str] = (),
    run: Run = Run(progress=True),
) -> dict[str, Surface]:
    """Measure surfaces of checkpoints on every data set, and keep each in its own file of a folder.

    A kind that is of each checkpoint gives a surface for each, on the same axes; other kinds give one of all. What
    `folder` holds already is read, what a killed run left half done is finished. Directions that are costly to find
    are kept in `folder` too.

    Args:
        comparison: The checkpoints and the data sets.
        folder: Where the results are kept.
        kind: The kind of surface and its settings.
        draws: The number of draws of random directions. The first has the seed of the kind, the next the seed after
            it, and so on; all have the same span.
        heights: What is measured at each point beside the loss.
        run: `autocast`, `progress` and for some kinds `offload_base` have a use here; every surface has a journal of
            its own.

    Returns:
        The surfaces by the name of the file that keeps each, draw by draw.

    Raises:
        InputError: The kind takes another number of checkpoints or has no draws, or a file in `folder` is of something
            else.
    """
    count = len(comparison.files)
    kind.check_count(count)

    def differing(drawn: SurfaceKind, surface: Surface, digests: Sequence[str]) -> list[str]:
        agreed = drawn.identity(digests) | {"autocast": run.autocast}
        settings = surface.provenance.settings
        others = ["heights"] if [grid.name for grid in surface.heights] != list(heights) else []
        return [word for word, value in agreed.items() if settings.get(word) != to_plain(value)] + others

    def with_directions(kind: AlongDirections, checkpoint: Checkpoint, tokens: TokenData) -> AlongDirections:
        """Return the kind with the directions of this checkpoint, where they are costly and have a file."""
        if not kind.kept_directions:
            return kind
        path = folder / names[checkpoint.name, tokens].replace("surface", kind.kept_directions)
        path = path.with_suffix(".safetensors")

        def find(journal: Path) -> None:
            search = Run(progress=run.progress, journal=journal)
            save_directions(kind.find_directions(checkpoint, tokens, Scope(), search), path)

        journaled(path, find)  # kept, so that a killed run continues along the same
        return dataclasses.replace(kind, directions=load_directions(path, checkpoint.model))

    @functools.cache
    def shared_span() -> float:
        """Return the span that all checkpoints and draws share, which is found when the first is measured."""
        spans = []
        for index in range(count):
            checkpoint = comparison.load(index)
            for tokens in comparison.data.values():
                assert isinstance(kind, AlongDirections)
                spans.append(with_directions(kind, checkpoint, tokens).find_span(checkpoint, tokens, run))
            del checkpoint
        return max(spans)

    def measure(drawn: SurfaceKind, models: Sequence[Checkpoint], tokens: TokenData, journal: Path) -> Surface:
        if isinstance(drawn, AlongDirections):
            if drawn.has_open_span:
                drawn = dataclasses.replace(drawn, span=shared_span())
            drawn = with_directions(drawn, models[0], tokens)
        return measure_surface(drawn, models, tokens, height=heights, run=dataclasses.replace(run, journal=journal))

    cells = []
    for number, drawn in enumerate(kind.draws(draws)):
        task = Task(
            _task_name(number),
            Surface,
            functools.partial(measure, drawn),
            differing=functools.partial(differing, drawn),
            effort=surface_effort(drawn, count),
        )
        if kind.is_of_each():
            cells += cells_of_each(comparison, folder, task)
        else:
            cells += cells_of_all(comparison, folder, task, kind.named_checkpoints(count))
    names = {(comparison.names[cell.checkpoints[0]], cell.tokens): cell.path.name for cell in cells}
    results = dict(run_cells(comparison, cells))
    return {cell.path.name: results[cell] for cell in cells}


def surface_files(comparison: Comparison, kind: SurfaceKind, draws: int) -> list[str]:
    """Return the names of the files in which `compare_surfaces` keeps surfaces."""
    return [
        name
        for number in range(draws)
        for name in comparison.file_names(_task_name(number), of_all=not kind.is_of_each()).values()
    ]


def _task_name(number: int) -> str:
    """Return the start of the names of the files of one draw; the first is the surface that is drawn."""
    return f"surface-draw{number + 1}" if number else "surface"


def summarize(file: str, surface: Surface) -> dict:
    """Return a surface in a few numbers, for `summary.json`: what a script reads without loading the grid."""
    return {
        "file": file,
        "checkpoint": surface.name,
        "data": surface.data,
        "loss_at_center": surface.center,
        "markers": surface.markers,
        "path": surface.path,
        "metrics": surface.metrics(),
        "heights": [
            {"name": grid.name, "unit": grid.unit, "center": grid.center, "stderr": grid.center_stderr}
            | {"lowest": float(grid.values.min()), "highest": float(grid.values.max()), "terms": grid.weight}
            for grid in surface.heights
        ],
        "supervised_tokens": surface.weight,
        "nonfinite": surface.nonfinite,
        "fidelity": surface.fidelity,
        "autocast": surface.autocast,
        "seconds": surface.provenance.seconds,
    }
