"""What the studies measure at one checkpoint: sharpness by an entry of the settings, planes, basins, and norms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

import landscape

SURFACE = ("surface_curvature", "average_gradient", "mean_absolute_gradient")
QUIET = landscape.Run(progress=False)


def spread(examples: tuple, count: int) -> tuple:
    """So many examples at even distances, all where there are fewer."""
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return tuple(examples[place] for place in places)


def sharpness(model: Any, data: Any, entry: dict, seed: int) -> float:
    """The value of the metric that a `[[metrics]]` entry of the settings describes."""
    options = {
        name: value for name, value in entry.items() if name not in ("column", "metric", "on", "sham", "invariant")
    }
    return landscape.compute_sharpness(model, data, metric=entry["metric"], seed=seed, run=QUIET, **options).value


def planes(model: Any, data: Any, settings: dict, seed: int) -> dict[str, float]:
    """Mean and standard error, over planes of their own random directions, of the three numbers of `SURFACE`."""
    drawn = [
        landscape.compute_surface(
            model, data, points=settings["points"], span=settings["span"], seed=seed + plane, run=QUIET
        ).metrics()
        for plane in range(settings["planes"])
    ]
    row = {}
    for name in SURFACE:
        values = np.array([getattr(metrics, name) for metrics in drawn])
        row[name] = float(values.mean())
        row[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values)))
    return row


def basin_radii(model: Any, data: Any, settings: dict, seed: int, base: Any = None) -> dict[str, float]:
    """How far the loss holds along random rays (median), the worst case, and with a base along the step from there.

    The first two are over the norm of the weights, the last is in steps. A radius that is longer than its ray counts as
    the end of the ray.
    """
    few = dataclasses.replace(data, examples=spread(data.examples, settings["examples"]))
    basin = landscape.compute_basin(
        model, few, drop=settings["drop"], directions=settings["directions"], base=base, seed=seed, run=QUIET
    )
    along = {"random": basin.median, "worst": basin.worst.value}
    if basin.step is not None:
        along["step"] = basin.step.value
    ends = {"random": 1.0, "worst": 1.0, "step": 2.0}  # of the rays of `compute_basin`
    return {f"basin_{name}": min(radius, ends[name]) for name, radius in along.items()}


def norms(origin: Any, tuned: Any) -> tuple[float, float]:
    """The distance of the tuned weights from the base's, and their norm."""
    start = dict(origin.named_parameters())
    pairs = [(start[name].detach().double(), w.detach().double()) for name, w in tuned.named_parameters()]
    distance = math.sqrt(sum(float((b - a).square().sum()) for a, b in pairs))
    return distance, math.sqrt(sum(float(b.square().sum()) for _, b in pairs))
