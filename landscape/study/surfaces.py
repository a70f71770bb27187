"""Surfaces of several checkpoints on several data sets, each kept in its own file of one folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from landscape.checkpoints import Checkpoint
from landscape.curvature.eigenvalues import eigen_directions
from landscape.errors import InputError
from landscape.objective.scope import Run
from landscape.results import journaled
from landscape.study.comparison import Comparison
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
    of_all = kind in OF_ALL
    names = comparison.file_names("surface", of_all)
    members = {index: range(len(comparison.files)) if of_all else [index] for index, _ in names}
    if kind == "trajectory":
        members = {0: [len(comparison.files) - 1]}  # the surface is of the end; what led there is in the settings
    if kind == "interpolate":
        grid: dict[str, Any] = {"points": points[0], "span": span}
    elif kind in ("plane", "trajectory"):
        grid = {"points": points, "margin": span}
    elif kind == "eigen":
        grid = {"points": points, "span": span}
    else:
        grid = {"points": points, "span": span, "normalize": normalize, "seed": seed}

    def read(key: tuple[int, str]) -> Surface:
        surface = Surface.load(folder / names[key])
        wanted: dict[str, Any] = {"kind": kind, "normalize": grid.get("normalize"), "seed": grid.get("seed")}
        wanted["autocast"] = autocast
        if kind in ("random", "eigen"):
            wanted["points"] = list(points)
            wanted |= {} if span == "auto" else {"span": [ends(span)] * dim}
        if kind == "trajectory":
            wanted["path"] = [file.digest for file in comparison.files]
        found: dict[str, Any] = {
            "path": surface.provenance.settings.get("path"),
            "kind": surface.kind,
            "normalize": surface.normalize,
            "seed": surface.seed,
            "autocast": surface.autocast and surface.autocast.dtype,
        }
        found |= {"points": list(surface.loss.shape), "span": [(axis[0], axis[-1]) for axis in surface.axes]}
        differing = [word for word, value in wanted.items() if found[word] != value]
        comparison.check_origin(folder / names[key], surface.provenance, members[key[0]], key[1], differing)
        return surface

    finished = {key: read(key) for key, name in names.items() if (folder / name).exists()}
    missing = [key for key in names if key not in finished]
    unfinished = sorted({index for index, _ in missing})
    for index in unfinished[1:]:
        comparison.load(index)  # what cannot be loaded is better said now than after hours on the first

    def along(checkpoint: Checkpoint, key: tuple[int, str]) -> list[Direction] | None:
        if kind != "eigen":
            return None
        path = folder / names[key].replace("surface", "eigenvectors").replace(".json", ".safetensors")

        def find(journal: Path) -> None:
            how: dict[str, Any] = {"seed": seed, "run": Run(progress=progress, journal=journal)}
            save_directions(eigen_directions(checkpoint, comparison.data[key[1]], dim, **how), path)

        journaled(path, find)  # kept, so that a killed run continues along the same
        return load_directions(path, checkpoint.model)

    if span == "auto" and missing:
        spans = []
        for index in range(len(comparison.files)):
            checkpoint = comparison.load(index)
            for data_name, data in comparison.data.items():
                directions = along(checkpoint, (index, data_name))
                if directions is None:
                    directions = random_directions(
                        checkpoint.model, dim, normalize=normalize, seed=seed, on_host=offload_base
                    )
                spans.append(
                    auto_span(checkpoint, data, directions, run=Run(autocast=autocast, offload_base=offload_base))
                )
        grid["span"] = max(spans)

    def measure(models: list[Any], index: int, data_name: str, journal: Path) -> None:
        where = Run(autocast=autocast, journal=journal, progress=progress)
        how = grid | {"run": where}
        data = comparison.data[data_name]
        if kind == "interpolate":
            surface = compute_interpolation(models[0], models[1], data, **how)
        elif kind == "plane":
            surface = compute_plane(models, data, **how)
        elif kind == "trajectory":
            surface = compute_trajectory(models, data, **how)
        else:
            how |= {"dim": dim, "run": dataclasses.replace(where, offload_base=offload_base)}
            surface = compute_surface(models[0], data, along(models[0], (index, data_name)), **how)
        dataclasses.replace(surface, data=data_name).save(folder / names[index, data_name])

    for index in unfinished:
        loaded = range(len(comparison.files)) if kind == "trajectory" else members[index]
        models = [comparison.load(member) for member in loaded]
        for data_name in [name for i, name in missing if i == index]:
            journaled(folder / names[index, data_name], functools.partial(measure, models, index, data_name))
    return {name: finished.get(key) or Surface.load(folder / name) for key, name in names.items()}


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
