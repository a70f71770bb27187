"""Surfaces of several checkpoints on several data sets, each kept in its own file of one folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from landscape.checkpoints import Checkpoint
from landscape.objective.scope import Run, Scope
from landscape.results import journaled, to_plain
from landscape.study.comparison import Comparison
from landscape.surfaces.kind import AlongDirections, SurfaceKind
from landscape.surfaces.measure import measure_surface
from landscape.surfaces.result import Surface
from landscape.weights.directions import load_directions, save_directions


def compare_surfaces(
    comparison: Comparison, folder: Path, kind: SurfaceKind, *, run: Run = Run(progress=True)
) -> dict[str, Surface]:
    """Surfaces of every checkpoint on every data set, by the name of the file in `folder` that keeps each.

    A kind that is of each checkpoint gives a surface for each, on the same axes; other kinds give one of all. What
    `folder` holds already is read, what a killed run left half done is finished. Directions that are costly to find
    are kept in `folder` too.

    Args:
        comparison: The checkpoints and the data sets.
        folder: Where the results are kept.
        kind: The kind of surface and its settings.
        run: `autocast`, `progress` and for some kinds `offload_base` have a use here; every surface has a journal of
            its own.

    Raises:
        InputError: The kind takes another number of checkpoints, or a file in `folder` is of something else.
    """
    count = len(comparison.files)
    kind.check_count(count)
    names = comparison.file_names("surface", of_all=not kind.is_of_each())
    members = {index: [index] if kind.is_of_each() else list(range(count)) for index, _ in names}

    def read(key: tuple[int, str]) -> Surface:
        surface = Surface.load(folder / names[key])
        own = members[key[0]]
        agreed = kind.identity([comparison.files[index].digest for index in own]) | {"autocast": run.autocast}
        settings = surface.provenance.settings
        differing = [word for word, value in agreed.items() if settings.get(word) != to_plain(value)]
        named = [own[position] for position in kind.named_checkpoints(len(own))]
        comparison.check_origin(folder / names[key], surface.provenance, named, key[1], differing)
        return surface

    finished = {key: read(key) for key, name in names.items() if (folder / name).exists()}
    missing = [key for key in names if key not in finished]
    unfinished = sorted({index for index, _ in missing})
    for index in unfinished[1:]:
        comparison.load(index)  # what cannot be loaded is better said now than after hours on the first

    def with_directions(kind: AlongDirections, checkpoint: Checkpoint, key: tuple[int, str]) -> AlongDirections:
        if not kind.kept_directions:
            return kind
        path = folder / names[key].replace("surface", kind.kept_directions).replace(".json", ".safetensors")

        def find(journal: Path) -> None:
            search = Run(progress=run.progress, journal=journal)
            save_directions(kind.find_directions(checkpoint, comparison.data[key[1]], Scope(), search), path)

        journaled(path, find)  # kept, so that a killed run continues along the same
        return dataclasses.replace(kind, directions=load_directions(path, checkpoint.model))

    if isinstance(kind, AlongDirections) and kind.has_open_span and missing:
        spans = []
        for index in range(count):
            checkpoint = comparison.load(index)
            for data_name, data in comparison.data.items():
                own = with_directions(kind, checkpoint, (index, data_name))
                spans.append(own.find_span(checkpoint, data, run))
        kind = dataclasses.replace(kind, span=max(spans))

    def measure(models: Sequence[Checkpoint], index: int, data_name: str, journal: Path) -> None:
        own = with_directions(kind, models[0], (index, data_name)) if isinstance(kind, AlongDirections) else kind
        surface = measure_surface(
            own, models, comparison.data[data_name], run=dataclasses.replace(run, journal=journal)
        )
        dataclasses.replace(surface, data=data_name).save(folder / names[index, data_name])

    for index in unfinished:
        models = [comparison.load(member) for member in members[index]]
        for data_name in [name for i, name in missing if i == index]:
            journaled(folder / names[index, data_name], functools.partial(measure, models, index, data_name))
    return {name: finished.get(key) or Surface.load(folder / name) for key, name in names.items()}


def summarize(file: str, surface: Surface) -> dict:
    """A surface in a few numbers, for `summary.json`: what a script reads without loading the grid."""
    return {
        "file": file,
        "checkpoint": surface.name,
        "data": surface.data,
        "loss_at_center": surface.center,
        "markers": surface.markers,
        "path": surface.path,
        "metrics": surface.metrics(),
        "supervised_tokens": surface.weight,
        "nonfinite": surface.nonfinite,
        "fidelity": surface.fidelity,
        "autocast": surface.autocast,
        "seconds": surface.provenance.seconds,
    }
