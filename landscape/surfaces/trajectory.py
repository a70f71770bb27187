"""The plane in which a training run moved, and the loss over it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.objective.loss_functions import loss_name
from landscape.objective.scope import Run, Scope
from landscape.surfaces.grid import grid_axis, per_axis
from landscape.surfaces.result import Marker, PathFit, Surface
from landscape.surfaces.sweep import Place, sweeping
from landscape.weights.directions import Direction, check_same_tensors
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, inner_product, vector_digest

_FOLDER, _STEP = "trajectory", re.compile(r"step-\d+")  # as `finetune` keeps them


def trajectory_sources(checkpoints: Sequence[str | Path]) -> list[str]:
    """The checkpoints of a path in order: those given, or of one folder those that `finetune` kept and the result.

    Raises InputError where a single folder has kept none.
    """
    if len(checkpoints) != 1:
        return [str(checkpoint) for checkpoint in checkpoints]
    folder = Path(checkpoints[0]).expanduser()
    kept = sorted(path for path in folder.glob(f"{_FOLDER}/*") if _STEP.fullmatch(path.name))
    if not kept:
        raise InputError(
            f"{folder} has kept no path ({_FOLDER}/step-...); fine-tune with --keep-trajectory, or name the "
            "checkpoints of the path in order."
        )
    return [*map(str, kept), str(folder)]


def trajectory_directions(checkpoints: Sequence[nn.Module | Checkpoint], count: int = 2) -> list[Direction]:
    """The first `count` principal directions of the path theta_1, ..., theta_T about its end, as unit vectors.

    Eigenvectors of the second moment sum_t d_t d_t' of the differences d_t = theta_t - theta_T, by way of the Gram
    matrix <d_s, d_t> (Li et al. 2018, arXiv 1712.09913, sec. 7, who also subtract the mean: here the plane goes
    through the end, so that it is the one nearest to the path). In order of what they hold of the path; signed such
    that the point farthest from the end lies to the left and, along the second, above. All parameters count, frozen
    ones too. The checkpoints and their differences are in memory at once.

    Raises InputError for fewer checkpoints than `count` + 1, naming the first tensor whose shape differs, and where
    the path has fewer dimensions than `count`.
    """
    return _principal(checkpoints, count)[0]


def compute_trajectory(
    checkpoints: Sequence[nn.Module | Checkpoint],
    data: Iterable[Batch],
    *,
    points: int | Sequence[int] = 25,
    margin: float = 0.25,
    scope: Scope = Scope(),
    run: Run = Run(progress=True),
) -> Surface:
    """Loss on the plane of the path's first two principal directions through its end, the last of `checkpoints`.

    Axes are distances in parameter space. Markers are the checkpoints projected onto the plane, with the loss there;
    `.path` says how far off each lies, and what fraction of the path's variance the plane explains, beside what a
    random walk would give (see `PathFit`). The grid spans the path and `margin` of its extent around it.

    Raises InputError as `trajectory_directions` does, and for wrong arguments.
    """
    scope.only("compute_trajectory", "loss_fn")
    run.only("compute_trajectory", "journal", "autocast")
    if not 0 <= margin < np.inf:
        raise InputError(f"margin={margin} is no fraction of the path's extent; it must be at least 0.")
    directions, coordinates, path = _principal(checkpoints, 2)
    module, name, described = identify(checkpoints[-1])
    vectors = [direction.tensors for direction in directions]

    def place(x: Sequence[float]) -> Place:
        return 1.0, list(zip(x, vectors, strict=True))

    counts = per_axis(points, 2)
    digests = [c.digest if isinstance(c, Checkpoint) else vector_digest(_weights(c)) for c in checkpoints]
    settings = {
        "kind": "trajectory",
        "points": counts,
        "margin": margin,
        "path": digests,
        "loss": loss_name(scope.loss_fn),
        "autocast": run.autocast,
    }
    with sweeping(
        module,
        data,
        place,
        Parameters(module, frozen=True),
        loss_fn=scope.loss_fn,
        autocast=run.autocast,
        settings=settings,
        others=vectors,
        journal=run.journal,
    ) as sweep:
        low, high = coordinates.min(axis=0), coordinates.max(axis=0)
        border = margin * (high - low)
        bounds = zip(low - border, high + border, counts, strict=True)
        axes = tuple(grid_axis(float(lo), float(hi), n) for lo, hi, n in bounds)
        loss = sweep.over(axes, f"{name} trajectory", run.progress)
        places = [(float(x), float(y)) for x, y in coordinates]
        markers = [Marker(step, at, sweep.loss_at(at)) for step, at in zip(path.names, places, strict=True)]
        lowered = sweep.autocast(markers[-1].loss)
    return Surface(
        name=name,
        data=str(getattr(data, "source", "data")),
        kind="trajectory",
        axes=axes,
        axis_labels=tuple(direction.label for direction in directions),
        loss=loss,
        center=markers[-1].loss,
        markers=tuple(markers),
        normalize=None,
        seed=None,
        direction_cosine=0.0,
        fidelity=sweep.checked_fidelity(),
        autocast=lowered,
        weight=sweep.weight,
        provenance=sweep.provenance(settings, None, described),
        path=path,
    )


def random_walk_variance(steps: int, count: int = 2) -> tuple[float, ...]:
    """What the first `count` principal directions hold of a random walk of `steps` even steps, about its end.

    Of a walk in many dimensions <d_s, d_t> is proportional to min(s, t), counted from the end. As steps grow, the
    first two tend to 8/pi^2 = 81% and 9%. (About the mean, as in Antognini & Sohl-Dickstein 2018, arXiv 1806.08805:
    6/pi^2 = 61% and 15%.)
    """
    from_end = np.arange(1, steps + 1)
    values = np.linalg.eigvalsh(np.minimum.outer(from_end, from_end))[::-1]
    return tuple(float(value) for value in values[:count] / values.sum())


def _principal(
    checkpoints: Sequence[nn.Module | Checkpoint], count: int
) -> tuple[list[Direction], np.ndarray, PathFit]:
    """Directions, coordinates of all checkpoints along them (the last at the origin), and what they leave out."""
    if len(checkpoints) <= count:
        raise InputError(f"a path of {len(checkpoints)} checkpoints has no {count} directions; it takes {count + 1}.")
    end = _weights(checkpoints[-1])
    steps = []
    for checkpoint in checkpoints[:-1]:
        weights = _weights(checkpoint)
        check_same_tensors(end, weights)
        steps.append({name: _difference(weights[name], tensor) for name, tensor in end.items()})
    gram = np.array(
        [[inner_product(a, b) if j <= i else 0.0 for j, b in enumerate(steps)] for i, a in enumerate(steps)]
    )
    gram = np.tril(gram) + np.tril(gram, -1).T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    if values[-1] <= 1e-12 * max(values[0], 0.0):
        found = int((values > 1e-12 * max(values[0], 0.0)).sum())
        raise InputError(f"the path has {found} dimension(s), not {count}; along a line, plot it with interpolation.")
    fractions = values / np.trace(gram)
    coordinates = vectors * np.sqrt(values)
    signs = np.where(coordinates[np.abs(coordinates).argmax(axis=0), range(count)] > 0, 1.0, -1.0)
    signs[0] = -signs[0]  # from the left
    coordinates = np.vstack([coordinates * signs, np.zeros(count)])
    directions = []
    for k in range(count):
        weights_of = vectors[:, k] * signs[k] / np.sqrt(values[k])
        tensors = {
            name: torch.stack([step[name] * float(w) for step, w in zip(steps, weights_of, strict=True)]).sum(dim=0)
            for name in end
        }
        # short: it has to fit beside a small plot
        label = f"PC {k + 1} ({fractions[k]:.1%})"
        directions.append(Direction(tensors, "trajectory", label))
    distances = np.append(np.sqrt(np.diag(gram)), 0.0)
    residuals = np.sqrt(np.maximum(distances**2 - (coordinates**2).sum(axis=1), 0.0))
    path = PathFit(
        names=_names(checkpoints),
        explained=tuple(map(float, fractions)),
        random_walk=random_walk_variance(len(steps), count),
        distances=tuple(map(float, distances)),
        residuals=tuple(map(float, residuals)),
    )
    return directions, coordinates, path


def _weights(model: nn.Module | Checkpoint) -> Vector:
    return Parameters(identify(model)[0], frozen=True).values()


def _difference(tensor: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(end.dtype, torch.float32)
    return tensor.to(end.device, dtype) - end.to(dtype)


def _names(checkpoints: Sequence[nn.Module | Checkpoint]) -> tuple[str, ...]:
    named: list[Any] = [c.name if isinstance(c, Checkpoint) else f"point {i + 1}" for i, c in enumerate(checkpoints)]
    return tuple(named)
