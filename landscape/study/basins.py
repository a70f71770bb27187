"""How far a capability holds, as a task of the runner and a row of a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.basins.compute import compute_basin
from landscape.basins.result import Basin
from landscape.checkpoints import Checkpoint
from landscape.objective.ascent import ASCENT_GRADIENTS
from landscape.objective.scope import Run, Scope
from landscape.study.effort import Effort
from landscape.study.runner import Task

_POINTS = 13  # of one ray: the rungs of the ladder and the bisection


def basin_task(
    name: str,
    options: Mapping[str, Any],
    *,
    base: Checkpoint | None = None,
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> Task:
    """Return the task of measuring one basin.

    Args:
        name: The name of the task.
        options: As `compute_basin` takes them.
        base: The checkpoint that the others were tuned from. Where the task is done with two checkpoints, the first of
            them takes its place.
        seed: Seed of the first random direction.
        scope: Which weights and which loss.
        run: How it is run; the journal is the runner's.
    """

    def measure(models: Sequence[Checkpoint], tokens: Any, journal: Path) -> Basin:
        origin = models[0] if len(models) > 1 else base
        if origin is not None and origin.digest == models[-1].digest:
            origin = None  # the base itself, beside those that were tuned from it, has taken no step
        return compute_basin(
            models[-1],
            tokens,
            base=origin,
            seed=seed,
            scope=scope,
            run=dataclasses.replace(run, journal=journal),
            **options,
        )

    rays = int(options.get("directions", 16)) + 2
    return Task(name, Basin, measure, effort=Effort(points=_POINTS * rays, gradients=ASCENT_GRADIENTS, vectors=4))


def basin_row(basin: Basin) -> dict[str, Any]:
    """Return a basin as a row of numbers."""
    low, high = basin.interval
    return {
        "name": basin.name,
        "data": basin.data,
        "height": basin.height,
        "center": basin.center,
        "center_stderr": basin.center_stderr,
        "drop": basin.drop,
        "median_radius": basin.median,
        "low": low,
        "high": high,
        "directions": len(basin.radii),
        "censored": basin.censored,
        "worst_radius": None if basin.worst is None else basin.worst.value,
        "weight_norm": basin.weight_norm,
        "step_norm": basin.step_norm,
        "median_in_steps": basin.steps,
        "radius_along_step": None if basin.step is None else basin.step.value,
        "has_left": basin.has_left,
        "smoothed": None if basin.bound is None else basin.bound.smoothed,
        "smoothing_bound": None if basin.bound is None else basin.bound.bound,
    }
