"""Surfaces of several checkpoints on several data sets, each kept in its own file of one folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.curvature.eigenvalues import eigen_directions
from landscape.data.tokens import TokenData
from landscape.errors import InputError
from landscape.objective.scope import Run
from landscape.results import journaled
from landscape.study.comparison import Comparison
from landscape.study.runner import Task, cells_of_all, cells_of_each, run_cells
from landscape.surfaces.grid import ends
from landscape.surfaces.surface import Span, Surface, auto_span, compute_interpolation, compute_plane, compute_surface
from landscape.surfaces.trajectory import compute_trajectory
from landscape.weights.directions import Direction, load_directions, random_directions, save_directions

CHECKPOINTS_OF = {"interpolate": 2, "plane": 3}
OF_ALL = (*CHECKPOINTS_OF, "trajectory")  # kinds of surface that are of several checkpoints


def compare_surfaces(
    comparison: Comparison,
    folder: Path,
    *,
    kind: str = "random",
    dim: int = 2,
    points: Sequence[int] = (25, 25),
    span: Span = 1.0,
    normalize: str = "filter",
    seed: int = 0,
    autocast: str | None = None,
    offload_base: bool = False,
    progress: bool = True,
) -> dict[str, Surface]:
    """Surfaces of every checkpoint on every data set, by the name of the file in `folder` that keeps each.

    "random" gives one per checkpoint, along the same draw of directions on the same axes; "interpolate" one for
    two checkpoints; "plane" one for three and "trajectory" one for a path (`span` is then a margin); "eigen" one per
    checkpoint along the eigenvectors of its own loss on that data, which `folder` keeps too. What `folder` holds
    already is read, what a killed run left half done is finished. Raises InputError where checkpoints and kind do
    not fit together.
    """
    check_count(kind, len(comparison.files))
    if kind == "interpolate":
        grid: dict[str, Any] = {"points": points[0], "span": span}
    elif kind in ("plane", "trajectory"):
        grid = {"points": points, "margin": span}
    elif kind == "eigen":
        grid = {"points": points, "span": span}
    else:
        grid = {"points": points, "span": span, "normalize": normalize, "seed": seed}
    run = Run(autocast=autocast, progress=progress)

    def differing(surface: Surface) -> list[str]:
        wanted: dict[str, Any] = {"kind": kind, "normalize": grid.get("normalize"), "seed": grid.get("seed")}
        wanted["autocast"] = autocast
        if kind in ("random", "eigen"):
            wanted["points"] = list(points)
            wanted |= {} if span == "auto" else {"span": [ends(span)] * dim}
        if kind == "trajectory":
            wanted["path"] = [file.digest for file in comparison.files]
        actual: dict[str, Any] = {
            "path": surface.provenance.settings.get("path"),
            "kind": surface.kind,
            "normalize": surface.normalize,
            "seed": surface.seed,
            "autocast": surface.autocast and surface.autocast.dtype,
        }
        actual |= {"points": list(surface.loss.shape), "span": [(axis[0], axis[-1]) for axis in surface.axes]}
        return [word for word, value in wanted.items() if actual[word] != value]

    def along(checkpoint: Checkpoint, tokens: TokenData) -> list[Direction] | None:
        """Return the directions of an eigen surface, which have a file of their own; None for other kinds."""
        if kind != "eigen":
            return None
        path = folder / eigenvectors[checkpoint.name, tokens]

        def compute(journal: Path) -> None:
            eigen_run = Run(progress=progress, journal=journal)
            save_directions(eigen_directions(checkpoint, tokens, dim, seed=seed, run=eigen_run), path)

        journaled(path, compute)  # kept, so that a killed run continues along the same
        return load_directions(path, checkpoint.model)

    @functools.cache
    def grid_of_all() -> dict[str, Any]:
        """Return the grid that all surfaces share, with the span that "auto" stands for."""
        if span != "auto":
            return grid
        spans = []
        for index in range(len(comparison.files)):
            checkpoint = comparison.load(index)
            for tokens in comparison.data.values():
                directions = along(checkpoint, tokens) or random_directions(
                    checkpoint.model, dim, normalize=normalize, seed=seed, on_host=offload_base
                )
                where = Run(autocast=autocast, offload_base=offload_base)
                spans.append(auto_span(checkpoint, tokens, directions, run=where))
            del checkpoint
        return grid | {"span": max(spans)}

    def measure(models: Sequence[Checkpoint], tokens: TokenData, journal: Path) -> Surface:
        options = grid_of_all() | {"run": dataclasses.replace(run, journal=journal)}
        if kind == "interpolate":
            return compute_interpolation(models[0], models[1], tokens, **options)
        if kind == "plane":
            return compute_plane(models, tokens, **options)
        if kind == "trajectory":
            return compute_trajectory(models, tokens, **options)
        options |= {"dim": dim, "run": dataclasses.replace(options["run"], offload_base=offload_base)}
        return compute_surface(models[0], tokens, along(models[0], tokens), **options)

    task = Task("surface", Surface, measure, differing=differing)
    if kind in OF_ALL:  # a trajectory's surface is of its end; what led there is in the settings
        last = len(comparison.files) - 1
        cells = cells_of_all(comparison, folder, task, [last] if kind == "trajectory" else range(last + 1))
    else:
        cells = cells_of_each(comparison, folder, task)
    eigenvectors = {
        (comparison.names[cell.checkpoints[0]], cell.tokens): cell.path.name.replace("surface", "eigenvectors").replace(
            ".json", ".safetensors"
        )
        for cell in cells
    }
    results = dict(run_cells(comparison, cells))
    return {cell.path.name: results[cell] for cell in cells}


def check_count(kind: str, count: int) -> None:
    """Raise InputError where a kind of surface does not take `count` checkpoints."""
    wanted = CHECKPOINTS_OF.get(kind, count)
    if wanted != count:
        raise InputError(f"--kind {kind} takes {wanted} checkpoints, got {count}.")
    if kind == "trajectory" and count < 3:
        raise InputError(f"--kind trajectory takes at least 3 checkpoints, in order, got {count}.")


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
